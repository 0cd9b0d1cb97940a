// The official TypeScript SDK, as it is, on an MCP host's configuration: client.mjs CONFIG
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const server = JSON.parse(readFileSync(process.argv[2])).mcpServers.cooper;
const transport = server.command
  ? new StdioClientTransport({ ...server, env: { ...process.env, ...server.env } })
  : new StreamableHTTPClientTransport(new URL(server.url), { requestInit: { headers: server.headers } });
const client = new Client({ name: "test", version: "1" });
await client.connect(transport);
const works = (name) => console.log("works:", name);
const call = async (name, args, options) => {
  const result = await client.callTool({ name, arguments: args }, undefined, options);
  assert(!result.isError, JSON.stringify(result.content));
  return result;
};

const { tools } = await client.listTools();
assert(tools.length > 30 && tools.every((tool) => tool.outputSchema && tool.annotations && tool.description));
works("tools");

await call("run_python", { code: "x = 20" });
assert.equal((await call("run_python", { code: "x + 1" })).structuredContent.result, "21");
works("state");

const heard = [];
const code = "import time\nfor i in range(3): print(i, flush=True); time.sleep(0.3)";
await call("run_python", { code }, { onprogress: (progress) => heard.push(progress.message ?? "") });
assert.equal(heard.join(""), "0\n1\n2\n");
works("progress");

const abort = new AbortController();
const endless = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.05)";
await assert.rejects(
  call("run_python", { code: endless }, { signal: abort.signal, onprogress: () => abort.abort("enough") }),
);
let newest;
do newest = (await call("task_list", { limit: 1 })).structuredContent.tasks[0];
while (!newest.ended_at_ms);
assert.equal(newest.status, "cancelled");
assert.equal((await call("run_python", { code: "x" })).structuredContent.result, "20");
works("cancels");

const begun = (await call("run_python", { code: "import time; time.sleep(1); print('late')", wait_ms: 100 })).structuredContent;
assert.equal(begun.status, "running");
assert.equal((await call("exec_poll", { exec_id: begun.exec_id })).structuredContent.stdout, "late\n");
works("long");

await call("file_write", { path: "t.txt", content: "text" });
assert.equal((await call("file_read", { path: "t.txt" })).content[0].text, "text");
works("files");

const save = "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/a.txt', 'w').write('kept')";
const [kept] = (await call("run_python", { code: save })).structuredContent.artifacts;
assert.equal((await client.readResource({ uri: kept.uri })).contents[0].text, "kept");
works("artifacts");

const absent = await client.callTool({ name: "file_read", arguments: { path: "absent" } });
assert(absent.isError && absent.content[0].text.startsWith("file_not_found"));
await assert.rejects(client.callTool({ name: "no_such_tool", arguments: {} }), /no_such_tool/);
works("errors");
if (transport.terminateSession) await transport.terminateSession();
await client.close();
