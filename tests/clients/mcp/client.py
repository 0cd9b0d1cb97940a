"""The official Python SDK, as it is, on an MCP host's configuration: one scenario a line of what works.

client.py CONFIG MODE SCENARIO...   MODE is legacy (connections) or auto (the newest version)
"""

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager

import anyio
import jsonschema
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# A client of the newest version over HTTP has no connection: it says itself which requests belong together.
connections = 0


@asynccontextmanager
async def connected(config, mode):
    global connections
    connections += 1
    server = config["mcpServers"]["cooper"]
    if "command" in server:
        where = StdioServerParameters(
            command=server["command"], args=server["args"], env={**os.environ, **server.get("env", {})}
        )
    else:
        own = {"Cooper-Connection": f"{os.getpid()}-{connections}"} if mode == "auto" else {}
        http = create_mcp_http_client(headers={**server["headers"], **own})
        where = streamable_http_client(server["url"], http_client=http)
    async with Client(where, mode=mode) as client:
        yield client


def text(result):
    return "\n".join(part.text for part in result.content if part.type == "text")


async def done(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, f"{tool}: {text(result)}"
    return result.structured_content


async def refused(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert result.is_error, f"{tool}: {text(result)}"
    error = result.meta["cooper/error"]
    assert error["code"] in text(result) and error["message"] in text(result), text(result)
    return error


async def tools(client, again):
    listed = (await client.list_tools()).tools
    print(json.dumps([tool.name for tool in listed]))
    for tool in listed:
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        assert tool.input_schema["type"] == tool.output_schema["type"] == "object", tool.name
        assert "$ref" not in json.dumps([tool.input_schema, tool.output_schema]), tool.name
        assert len(tool.description) > 20, tool.name
        hints = tool.annotations
        assert None not in (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint), tool.name


async def state(client, again):
    first = await done(client, "run_python", code="import math; x = 20")
    assert first["session_created"] and first["status"] == "ok", first
    second = await done(client, "run_python", code="x + 1")
    assert second["result"] == "21" and "session_created" not in second, second
    assert second["session_id"] == first["session_id"]
    failed = await done(client, "run_python", code="1 / 0")
    assert failed["status"] == "error" and failed["error"]["name"] == "ZeroDivisionError", failed
    assert "1 / 0" in failed["error"]["traceback"]
    shell = await done(client, "run_shell", command="echo out; echo err >&2; exit 3")
    assert (shell["exit_code"], shell["stdout"], shell["stderr"]) == (3, "out\n", "err\n"), shell


async def apart(client, again):
    await done(client, "run_python", code="mine = 1")
    async with again() as other:
        theirs = await done(other, "run_python", code="mine")
        assert theirs["error"]["name"] == "NameError" and theirs["session_created"], theirs
    assert (await done(client, "run_python", code="mine"))["result"] == "1"


async def ends(client, again):
    async with again() as other:
        session = (await done(other, "run_python", code="1"))["session_id"]
    error = await refused(client, "run_python", code="1", session_id=session)
    assert error["code"] in ("session_not_found", "session_ended"), error


async def images(client, again):
    code = f"""
import base64
class Plot:
    def _repr_png_(self): return base64.b64decode({PNG!r})
Plot()
"""
    result = await client.call_tool("run_python", {"code": code})
    shown = [part for part in result.content if part.type == "image"]
    assert [part.mime_type for part in shown] == ["image/png"] and shown[0].data == PNG, result
    assert result.structured_content["displays"] == ["image/png"], result.structured_content


async def progress(client, again):
    heard = []

    async def hear(progress, total, message):
        heard.append((progress, message))

    code = "import time\nfor i in range(4): print(i, flush=True); time.sleep(0.3)"
    result = await client.call_tool("run_python", {"code": code}, progress_callback=hear)
    assert result.structured_content["stdout"] == "0\n1\n2\n3\n"
    assert "".join(message or "" for _, message in heard) == "0\n1\n2\n3\n" and len(heard) > 1, heard
    assert heard == sorted(heard, key=lambda it: it[0]), heard


async def cancels(client, again):
    session = (await done(client, "run_python", code="kept = 'kept'"))["session_id"]
    begun = anyio.Event()

    async def hear(progress, total, message):
        begun.set()

    async def endless():
        code = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.05)"
        await client.call_tool("run_python", {"code": code}, progress_callback=hear)

    async with anyio.create_task_group() as group:
        group.start_soon(endless)
        with anyio.fail_after(30):
            await begun.wait()
        group.cancel_scope.cancel()
    with anyio.fail_after(30):
        while True:
            newest = (await done(client, "task_list", session_id=session, limit=1))["tasks"][0]
            if newest["ended_at_ms"]:
                break
    assert newest["status"] == "cancelled", newest
    assert (await done(client, "run_python", code="kept"))["result"] == "'kept'"


async def long(client, again):
    code = "import time\nprint('early', flush=True)\ntime.sleep(1)\nprint('late')"
    begun = await done(client, "run_python", code=code, wait_ms=300)
    assert begun["status"] == "running" and begun["stdout"] in ("", "early\n"), begun
    at = {"exec_id": begun["exec_id"], "stdout_offset": begun["next_stdout_offset"]}
    ended = await done(client, "exec_poll", **at)
    assert ended["status"] == "ok" and begun["stdout"] + ended["stdout"] == "early\nlate\n", ended
    behind = await done(client, "run_shell", command="read line; echo got $line", background=True, stdin_open=True)
    assert behind["status"] in ("queued", "running"), behind
    await done(client, "exec_write_stdin", exec_id=behind["exec_id"], text="this\n")
    assert (await done(client, "exec_poll", exec_id=behind["exec_id"]))["stdout"] == "got this\n"
    sleeper = await done(client, "run_shell", command="echo on; sleep 600", wait_ms=1000)
    await done(client, "exec_signal", exec_id=sleeper["exec_id"], signal="kill")
    assert (await done(client, "exec_poll", exec_id=sleeper["exec_id"]))["status"] in ("killed", "error")
    much = await done(client, "run_python", code="print('x' * 5000)", max_output_bytes=1000)
    assert much["truncated"] and len(much["stdout"]) == 1000, much
    rest = await done(client, "exec_poll", exec_id=much["exec_id"], stdout_offset=1000)
    assert rest["stdout"] == "x" * 4000 + "\n", rest


async def files(client, again):
    written = await done(client, "file_write", path="a/b.txt", content="one\ntwo\n")
    assert written["size_bytes"] == 8
    read = await done(client, "file_read", path="a/b.txt")
    assert read["text"] == "one\ntwo\n" and not read["truncated"]
    await done(client, "file_edit", path="a/b.txt", edits=[{"old": "two", "new": "zwei"}])
    found = await done(client, "file_search", pattern="zw.i", regex=True)
    assert [(it["path"], it["line"]) for it in found["matches"]] == [("a/b.txt", 2)], found
    await done(client, "file_move", **{"from": "a/b.txt", "to": "c.txt"})
    listed = await done(client, "file_list", recursive=True)
    assert {"a", "c.txt"} <= {it["path"] for it in listed["files"]}, listed
    assert (await done(client, "file_stat", path="c.txt", sha256=True))["sha256"]
    await done(client, "file_write", path="plot.png", content_base64=PNG)
    image = await client.call_tool("file_read", {"path": "plot.png"})
    assert [part.type for part in image.content] == ["image"] and image.content[0].data == PNG
    await done(client, "file_write", path="bytes", content_base64="/wD+")
    assert (await done(client, "file_read", path="bytes"))["base64"] == "/wD+"
    assert (await done(client, "file_delete", path="c.txt"))["entries"] == 1
    assert (await refused(client, "file_read", path="c.txt"))["code"] == "file_not_found"
    assert (await refused(client, "file_read", path="../../etc/passwd"))["code"] == "path_escapes"
    ran = await done(client, "file_write", path="main.py", content="import sys; print(sys.argv[1:])")
    assert (await done(client, "run_python", file=ran["path"], args=["a"]))["stdout"] == "['a']\n"


async def packages(client, again):
    await done(client, "install_packages", packages=["staves"])
    listed = await done(client, "list_packages")
    assert "staves" in [package["name"] for package in listed["packages"]], listed
    assert (await done(client, "run_python", code="import staves; print('in')"))["stdout"] == "in\n"
    missing = await done(client, "install_packages", packages=["no-such-thing"])
    assert missing["status"] == "error", missing


async def artifacts(client, again):
    code = "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/a b.csv', 'w').write('1,2\\n')"
    made = (await done(client, "run_python", code=code + "; print('said')"))
    (kept,) = made["artifacts"]
    assert kept["name"] == "a b.csv", made
    (listed,) = (await done(client, "artifact_list"))["artifacts"]
    got = await done(client, "artifact_get", artifact_id=listed["artifact_id"])
    assert got["text"] == "1,2\n"
    assert (await client.read_resource(kept["uri"])).contents[0].text == "1,2\n"
    resources = {str(it.uri) for it in (await client.list_resources()).resources}
    stdout = f"cooper://executions/{made['exec_id']}/stdout"
    assert {kept["uri"], stdout} <= resources, resources
    assert (await client.read_resource(stdout)).contents[0].text == "said\n"
    patterns = (await client.list_resource_templates()).resource_templates
    assert any(it.uri_template.endswith("artifacts/{+name}") for it in patterns)
    file = f"cooper://sessions/{made['session_id']}/files/artifacts/a%20b.csv"
    assert (await client.read_resource(file)).contents[0].text == "1,2\n"
    for wrong in ["cooper://nothing/x", file + ".gone", "cooper://executions/tsk_0/stdout"]:
        try:
            await client.read_resource(wrong)
        except MCPError as error:
            assert error.error.data["code"] and error.error.message, error
        else:
            raise AssertionError(wrong)


async def sessions(client, again):
    made = await done(client, "session_create", name="mcp-by-name", limits={"memory_mib": 512}, idle_timeout_ms=600000)
    assert made["state"] == "ready" and made["memory_mib"] == 512, made
    await done(client, "run_python", code="y = 5", session_id="mcp-by-name")
    saved = await done(client, "checkpoint_create", session_id=made["id"], variables=True)
    assert saved["variables"] >= 1, saved
    back = await done(client, "checkpoint_restore", checkpoint_id=saved["id"])
    assert (await done(client, "run_python", code="y", session_id=back["id"]))["result"] == "5"
    assert saved["id"] in [it["id"] for it in (await done(client, "checkpoint_list"))["checkpoints"]]
    assert (await done(client, "session_extend", session_id=made["id"], ttl_ms=3600000))["expires_at_ms"] > 0
    live = {it["id"] for it in (await done(client, "session_list"))["sessions"]}
    assert {made["id"], back["id"]} <= live
    for session in (made["id"], back["id"]):
        assert (await done(client, "session_destroy", session_id=session))["state"] == "destroyed"
    await done(client, "checkpoint_delete", checkpoint_id=saved["id"])
    assert (await done(client, "session_info"))["state"] == "ready"


async def errors(client, again):
    try:
        await client.call_tool("no_such_tool", {})
    except MCPError as error:
        assert "no_such_tool" in error.error.message and error.error.code == -32602, error
    else:
        raise AssertionError("a tool that is not there")
    wrong = await refused(client, "run_python", cod="1")
    assert wrong["code"] == "invalid_argument" and "`cod`" in wrong["message"] and "`code`" in wrong["message"]
    assert (await refused(client, "run_python"))["code"] == "invalid_argument"
    assert (await refused(client, "run_python", code="1", wait_ms=10**9))["code"] == "invalid_argument"
    absent = "ses_00000000000000000000000000"
    foreign = os.environ["FOREIGN_SESSION"]
    nobodys = await refused(client, "run_python", code="1", session_id=absent)
    theirs = await refused(client, "run_python", code="1", session_id=foreign)
    assert theirs["code"] == "session_not_found", theirs
    assert json.dumps(theirs).replace(foreign, "ID") == json.dumps(nobodys).replace(absent, "ID")
    theirs = await refused(client, "file_read", path="x", session_id=foreign)
    assert theirs["code"] == "session_not_found", theirs
    big = await refused(client, "run_python", code="#" * (1 << 20) + "#")
    assert big["code"] in ("too_large", "invalid_argument"), big


async def earlier(client, again):
    said = lambda result: json.loads(text(result))
    assert text(await client.call_tool("echo", {"message": "hello"})) == "hello"
    wrote = said(await client.call_tool("fs.write", {"path": "m.py", "contents": "print(6 * 7)"}))
    assert said(await client.call_tool("task.get_status", {"task_id": wrote["task_id"]}))["status"] == "completed"
    assert text(await client.call_tool("fs.read", {"path": "m.py"})) == "print(6 * 7)"
    assert "m.py" in text(await client.call_tool("fs.list", {}))
    ran = said(await client.call_tool("run.python", {"file": "m.py"}))
    assert ran["status"] == "queued" and ran["session_id"] == wrote["session_id"], ran
    with anyio.fail_after(30):
        while said(await client.call_tool("task.get_status", {"task_id": ran["task_id"]}))["status"] != "completed":
            pass
    result = said(await client.call_tool("task.get_result", {"task_id": ran["task_id"]}))
    assert result["output"] == "42\n" and result["exit_code"] == 0, result
    code = "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/t', 'w').write('kept')"
    await done(client, "run_python", code=code)
    (kept,) = (await done(client, "artifact_list"))["artifacts"]
    assert text(await client.call_tool("artifact.get", {"artifact_id": kept["artifact_id"]})) == "kept"


async def repairs(client, again):
    stack = os.environ["STACK"]
    assert stack in [it["name"] for it in (await done(client, "stack_list"))["stacks"]]
    log = "Traceback (most recent call last):\n  File \"/app/app.py\", line 1, in <module>\n" + (
        "ModuleNotFoundError: No module named 'yaml'\n"
    )
    found = await done(client, "repair_diagnose", service="web", stack=stack, log=log, wait_ms=120000)
    assert found["dry_run"] and found["ended"] and "yaml" in found["cause"], found
    plan = await done(client, "repair_plan", run_id=found["run_id"])
    assert plan["plan_hash"] == found["plan_hash"] and "PyYAML" in json.dumps(plan["review"]), plan
    listed = await done(client, "run_list")
    assert found["run_id"] in [run["run_id"] for run in listed["runs"]]
    artifact = await done(client, "run_artifact", run_id=found["run_id"], name="plan.json")
    assert json.loads(artifact["text"]), artifact


async def waits(client, again):
    """A plan that waits is seen by everybody, and decided by who may."""
    run = os.environ["RUN"]
    status = await done(client, "run_wait", run_id=run)
    assert status["state"] == "awaiting_approval" and status["approval"]["decision"] == "pending", status
    listed = (await done(client, "approval_list"))["approvals"]
    (waiting,) = [it for it in listed if it["run_id"] == run]
    names = [tool.name for tool in (await client.list_tools()).tools]
    decision = {"run_id": run, "approve": False, "comment": "not now", "plan_hash": waiting["plan_hash"]}
    if os.environ["MAY_DECIDE"] == "no":
        assert "approval_decide" not in names and not waiting["may_decide"]
        try:
            await client.call_tool("approval_decide", decision)
        except MCPError as error:
            assert error.error.code == -32602
        else:
            raise AssertionError("decided")
        assert (await done(client, "run_status", run_id=run))["state"] == "awaiting_approval"
    else:
        assert waiting["may_decide"]
        assert (await done(client, "approval_decide", **decision))["state"] == "rejected"


async def main():
    config = json.load(open(sys.argv[1]))
    mode = sys.argv[2]
    again = lambda: connected(config, mode)
    for name in sys.argv[3:]:
        async with again() as client:
            version = client.session.protocol_version
            assert (version >= "2026-07-28") == (mode == "auto"), version
            await globals()[name](client, again)
        print("works:", name, flush=True)


asyncio.run(main())
