"""A client that knows nothing of Cooper but its proto files: every feature of sessions, as a developer would use it.

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

from cooper.v1 import common_pb2, sessions_pb2, sessions_pb2_grpc, tasks_pb2, tasks_pb2_grpc  # noqa: E402

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
