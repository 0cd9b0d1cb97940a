"""A client that knows nothing of Cooper but its proto files: sessions, as a developer would use them.

Called with the directory of the proto files; COOPER_URL and COOPER_TOKEN say where to. Prints the name of each feature
that works, and fails at the first that does not.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from google.protobuf import any_pb2
from grpc_status import rpc_status
from grpc_tools import protoc


def generate(protos):
    """Makes the stubs, and puts them where they can be imported from."""
    made = tempfile.mkdtemp(prefix="cooper-stubs-")
    files = sorted(str(file.relative_to(protos)) for file in Path(protos).glob("cooper/v1/*.proto"))
    status = protoc.main(["protoc", f"-I{protos}", f"--python_out={made}", f"--grpc_python_out={made}", *files])
    assert status == 0, "protoc failed"
    sys.path.insert(0, made)


generate(sys.argv[1])

from cooper.v1 import checkpoints_pb2, checkpoints_pb2_grpc, common_pb2, sessions_pb2, sessions_pb2_grpc  # noqa: E402
from cooper.v1 import executions_pb2, executions_pb2_grpc, tasks_pb2, tasks_pb2_grpc, templates_pb2, templates_pb2_grpc  # noqa: E402

TOKEN = [("authorization", f"Bearer {os.environ['COOPER_TOKEN']}")]
channel = grpc.insecure_channel(urlsplit(os.environ["COOPER_URL"]).netloc)


class Service:
    """A stub whose calls carry the token."""

    def __init__(self, stub):
        self._stub = stub(channel)

    def __getattr__(self, name):
        call = getattr(self._stub, name)
        return lambda request, **options: call(request, metadata=TOKEN, timeout=60, **options)


sessions = Service(sessions_pb2_grpc.SessionsStub)
tasks = Service(tasks_pb2_grpc.TasksStub)
executions = Service(executions_pb2_grpc.ExecutionsStub)
checkpoints = Service(checkpoints_pb2_grpc.CheckpointsStub)
templates = Service(templates_pb2_grpc.TemplatesStub)


def refused(call):
    """The stable code of a call that must fail."""
    try:
        answer = call()
        list(answer) if hasattr(answer, "__next__") else None
    except grpc.RpcError as error:
        for detail in rpc_status.from_call(error).details:
            info = error_info(detail)
            if info is not None:
                return info
        raise AssertionError(f"a refusal without a code: {error}")
    raise AssertionError("it was not refused")


def error_info(detail: any_pb2.Any):
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    return info.reason if detail.Unpack(info) else None


def execute(session, code=None, **spec):
    """Runs something to its end: its outcome, standard output and standard error."""
    if code is not None:
        spec["python"] = tasks_pb2.PythonSpec(code=code)
    request = tasks_pb2.SubmitTaskRequest(spec=tasks_pb2.TaskSpec(session_id=session, **spec))
    return drain(tasks.Execute(request))


def drain(events):
    streams = {common_pb2.STREAM_STDOUT: b"", common_pb2.STREAM_STDERR: b""}
    for event in events:
        if event.HasField("output"):
            assert event.output.offset == len(streams[event.output.stream]), "every byte once"
            streams[event.output.stream] += event.output.data
        if event.HasField("ended"):
            return event.ended, streams[common_pb2.STREAM_STDOUT], streams[common_pb2.STREAM_STDERR]
    raise AssertionError("the stream ended before the task")


FEATURES = []


def feature(check):
    FEATURES.append(check)
    return check


@feature
def create_list_update_destroy():
    request = sessions_pb2.CreateSessionRequest(
        idempotency_key="python-client", labels={"client": "python"}, ttl_ms=3_600_000, metadata={"note": "mine"}
    )
    made = sessions.CreateSession(request)
    assert sessions.CreateSession(request).id == made.id, "the same key is the same session"
    assert made.state == common_pb2.SESSION_STATE_READY and made.facilities
    listed = sessions.ListSessions(sessions_pb2.ListSessionsRequest(labels={"client": "python"})).sessions
    assert [session.id for session in listed] == [made.id]
    changed = sessions.UpdateSession(
        sessions_pb2.UpdateSessionRequest(session_id=made.id, labels={"more": "yes"}, ttl_ms=0)
    )
    assert dict(changed.labels) == {"client": "python", "more": "yes"} and changed.expires_at_ms == 0
    gone = sessions.DestroySession(sessions_pb2.DestroySessionRequest(session_id=made.id))
    assert gone.state == common_pb2.SESSION_STATE_DESTROYED
    assert refused(lambda: execute(made.id, "1")) == "session_ended"


@feature
def stateful_execution(session):
    ended, _, _ = execute(session, "x = 6")
    assert ended.state == common_pb2.TASK_STATE_SUCCEEDED
    ended, out, err = execute(session, "import sys; print('out'); print('err', file=sys.stderr); x * 7")
    assert (ended.outcome.result.data["text/plain"], out, err) == (b"42", b"out\n", b"err\n")
    ended, _, _ = execute(session, "1 / 0")
    assert ended.outcome.exception.name == "ZeroDivisionError" and ended.outcome.exit_code == 1


@feature
def commands(session):
    shell = tasks_pb2.ShellSpec(argv=["sh", "-c", "cat; exit 3"], stdin=b"given")
    ended, out, _ = execute(session, shell=shell)
    assert (ended.outcome.exit_code, out) == (3, b"given")


@feature
def background_execution_polled_at_an_offset(session):
    code = "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.05)"
    spec = tasks_pb2.TaskSpec(session_id=session, python=tasks_pb2.PythonSpec(code=code))
    task = tasks.SubmitTask(tasks_pb2.SubmitTaskRequest(spec=spec))
    first = next(e.output for e in tasks.Follow(tasks_pb2.FollowRequest(task_id=task.id)) if e.HasField("output"))
    assert first.offset == 0
    rest = b""
    for event in tasks.Follow(tasks_pb2.FollowRequest(task_id=task.id, stdout_offset=len(first.data))):
        rest += event.output.data if event.HasField("output") else b""
    assert first.data + rest == b"0\n1\n2\n"


@feature
def input_and_signals_of_a_running_execution(session):
    code = "import time\nname = input()\nprint('hello', name, flush=True)\ntime.sleep(60)"
    spec = tasks_pb2.TaskSpec(session_id=session, python=tasks_pb2.PythonSpec(code=code), stdin_open=True)
    task = tasks.SubmitTask(tasks_pb2.SubmitTaskRequest(spec=spec)).id
    write = executions_pb2.WriteStdinRequest(task_id=task, offset_bytes=0, data=b"Ada\n")
    # Repeated, as after a cut: given once.
    assert [executions.WriteStdin(write).offset_bytes for _ in range(2)] == [4, 4]
    output = b""
    while output != b"hello Ada\n":
        output = executions.ReadOutput(executions_pb2.ReadOutputRequest(task_id=task)).data
    signal = executions_pb2.SignalExecutionRequest(task_id=task, signal=executions_pb2.SIGNAL_INT)
    executions.SignalExecution(signal)
    events = tasks.Follow(tasks_pb2.FollowRequest(task_id=task))
    ended = next(event.ended for event in events if event.HasField("ended"))
    assert ended.outcome.exception.name == "KeyboardInterrupt"
    assert execute(session, "name")[0].outcome.result.data["text/plain"] == b"'Ada'"
    assert refused(lambda: executions.SignalExecution(signal)) == "not_running"


@feature
def a_terminal_of_another_size(session):
    command = tasks_pb2.ShellSpec(argv=["sh", "-c", "stty size; read line; stty size"])
    spec = tasks_pb2.TaskSpec(session_id=session, shell=command, terminal=tasks_pb2.Terminal(columns=90, rows=20))
    task = tasks.SubmitTask(tasks_pb2.SubmitTaskRequest(spec=spec)).id
    size = tasks_pb2.Terminal(columns=70, rows=10)
    read = executions_pb2.ReadOutputRequest(task_id=task)
    while executions.ReadOutput(read).data != b"20 90\r\n":
        pass
    executions.ResizeTerminal(executions_pb2.ResizeTerminalRequest(task_id=task, size=size))
    executions.WriteStdin(executions_pb2.WriteStdinRequest(task_id=task, data=b"\n"))
    list(tasks.Follow(tasks_pb2.FollowRequest(task_id=task)))
    assert executions.ReadOutput(read).data == b"20 90\r\n\r\n10 70\r\n"


@feature
def history(session):
    entries = executions.SessionHistory(executions_pb2.SessionHistoryRequest(session_id=session, output_bytes=100))
    entries = list(entries)
    assert len(entries) > 3 and entries[-1].stdout == b"20 90\r\n\r\n10 70\r\n"
    made = [entry.task.created_at_ms for entry in entries]
    assert made == sorted(made)


@feature
def interrupt_keeps_the_state(session):
    execute(session, "kept = 'yes'")
    spec = tasks_pb2.TaskSpec(session_id=session, python=tasks_pb2.PythonSpec(code="print('on'); import time; time.sleep(60)"))
    task = tasks.SubmitTask(tasks_pb2.SubmitTaskRequest(spec=spec))
    events = tasks.Follow(tasks_pb2.FollowRequest(task_id=task.id))
    next(event for event in events if event.HasField("output"))
    tasks.CancelTask(tasks_pb2.CancelTaskRequest(task_id=task.id))
    ended = next(event.ended for event in events if event.HasField("ended"))
    assert ended.state == common_pb2.TASK_STATE_CANCELLED
    assert execute(session, "kept")[0].outcome.result.data["text/plain"] == b"'yes'"


@feature
def files(session):
    header = sessions_pb2.WriteFileHeader(session_id=session, path="a/b.bin", create_dirs=True)
    body = bytes(range(256)) * 1024
    parts = [sessions_pb2.WriteFileRequest(header=header)]
    parts += [sessions_pb2.WriteFileRequest(data=body[at : at + 65536]) for at in range(0, len(body), 65536)]
    assert sessions.WriteFile(iter(parts)).stat.size_bytes == len(body)
    request = sessions_pb2.ReadFileRequest(session_id=session, path="a/b.bin", offset_bytes=256, length_bytes=300)
    assert b"".join(part.data for part in sessions.ReadFile(request)) == body[256:556]
    listed = sessions.ListFiles(sessions_pb2.ListFilesRequest(session_id=session, path="a")).files
    assert [(file.path, file.kind) for file in listed] == [("a/b.bin", "file")]
    escape = sessions_pb2.ReadFileRequest(session_id=session, path="../../session.json")
    assert refused(lambda: sessions.ReadFile(escape)) == "path_escapes"


@feature
def fresh_execution(session):
    execute(session, "count = 1")
    fresh = tasks_pb2.PythonSpec(code="count += 1; count", mode=tasks_pb2.EXECUTION_MODE_FRESH)
    assert execute(session, python=fresh)[0].outcome.result.data["text/plain"] == b"2"
    assert execute(session, "count")[0].outcome.result.data["text/plain"] == b"1"


@feature
def files_found_searched_edited_moved_and_removed(session):
    execute(session, "import os; os.makedirs('tree/deep'); open('tree/deep/a.txt', 'w').write('one\\ntwo\\n')")
    listed = sessions.ListFiles(sessions_pb2.ListFilesRequest(session_id=session, path="tree", recursive=True)).files
    assert [file.path for file in listed] == ["tree/deep", "tree/deep/a.txt"], listed
    search = sessions_pb2.SearchFilesRequest(session_id=session, path="tree", pattern="t.o", regex=True)
    assert [(found.path, found.line) for found in sessions.SearchFiles(search).matches] == [("tree/deep/a.txt", 2)]
    edit = sessions_pb2.Edit(old=b"two", new=b"three")
    request = sessions_pb2.EditFileRequest(session_id=session, path="tree/deep/a.txt", edits=[edit])
    assert sessions.EditFile(request).replaced == 1
    assert refused(lambda: sessions.EditFile(request)) == "edit_no_match"
    move = sessions_pb2.MoveFileRequest(session_id=session, **{"from": "tree/deep/a.txt", "to": "b.txt"})
    sessions.MoveFile(move)
    body = sessions.ReadFile(sessions_pb2.ReadFileRequest(session_id=session, path="b.txt"))
    assert b"".join(part.data for part in body) == b"one\nthree\n"
    sessions.DeleteFile(sessions_pb2.DeleteFileRequest(session_id=session, path="tree", recursive=True))
    assert refused(lambda: sessions.StatFile(sessions_pb2.StatFileRequest(session_id=session, path="tree"))) == "file_not_found"


@feature
def checkpoint_and_restore(session):
    execute(session, "open('kept', 'w').write('as it was')")
    saved = checkpoints.CreateCheckpoint(checkpoints_pb2.CreateCheckpointRequest(session_id=session))
    execute(session, "import os; os.remove('kept')")
    restored = checkpoints.RestoreCheckpoint(checkpoints_pb2.RestoreCheckpointRequest(checkpoint_id=saved.id)).id
    assert execute(restored, "open('kept').read()")[0].outcome.result.data["text/plain"] == b"'as it was'"
    sessions.DestroySession(sessions_pb2.DestroySessionRequest(session_id=restored))
    checkpoints.DeleteCheckpoint(checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=saved.id))
    gone = checkpoints_pb2.GetCheckpointRequest(checkpoint_id=saved.id)
    assert refused(lambda: checkpoints.GetCheckpoint(gone)) == "checkpoint_not_found"


@feature
def template():
    file = templates_pb2.RecipeFile(path="seed", content=b"7")
    recipe = templates_pb2.Recipe(files=[file], warm_up="seed = int(open('seed').read())")
    build = templates.BuildTemplate(templates_pb2.BuildTemplateRequest(name="from-python", recipe=recipe))
    built = [event.built for event in build if event.HasField("built")][0]
    made = sessions.CreateSession(sessions_pb2.CreateSessionRequest(template="from-python"))
    assert (made.template, built.version) == ("from-python@1", 1)
    assert execute(made.id, "seed")[0].outcome.result.data["text/plain"] == b"7"
    sessions.DestroySession(sessions_pb2.DestroySessionRequest(session_id=made.id))
    templates.DeleteTemplate(templates_pb2.DeleteTemplateRequest(template="from-python"))


@feature
def network_policy_of_a_live_session(session):
    policy = sessions_pb2.NetworkPolicy(mode=sessions_pb2.NETWORK_MODE_PROXY, domains=["*.example.com"])
    changed = sessions.UpdateSession(sessions_pb2.UpdateSessionRequest(session_id=session, network=policy))
    assert list(changed.network.domains) == ["*.example.com"]


@feature
def packages(session):
    ended, _, _ = execute(session, install=tasks_pb2.InstallSpec(packages=["six"]))
    assert ended.state == common_pb2.TASK_STATE_SUCCEEDED
    assert execute(session, "import six; six.__name__")[0].outcome.result.data["text/plain"] == b"'six'"


def main():
    session = sessions.CreateSession(sessions_pb2.CreateSessionRequest()).id
    for check in FEATURES:
        began = time.monotonic()
        check(session) if check.__code__.co_argcount else check()
        print(f"{check.__name__} ({(time.monotonic() - began) * 1000:.0f} ms)", flush=True)
    sessions.DestroySession(sessions_pb2.DestroySessionRequest(session_id=session))


main()
