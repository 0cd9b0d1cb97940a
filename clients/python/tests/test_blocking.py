"""The blocking client against a cluster that is there: COOPER_URL and COOPER_TOKEN name it."""

import time
from pathlib import Path
from typing import Iterator

import pytest

import cooper
from cooper import Cluster, ExecutionFailed, NotFound, Session


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def session(cluster: Cluster) -> Iterator[Session]:
    with cluster.session(labels={"client": "package"}) as session:
        yield session


def test_variables_stay_and_the_last_expression_is_the_value(session: Session) -> None:
    assert session.run("x = 20 + 1").value is None
    result = session.run("import sys; print('out'); print('err', file=sys.stderr); x * 2")
    assert (result.text, result.stdout, result.stderr, result.ok) == ("42", "out\n", "err\n", True)
    assert session.run("x", fresh=True).text == "21"


def test_what_the_code_raises_is_in_the_result_and_check_raises_it_here(session: Session) -> None:
    result = session.run("1 / 0")
    assert not result.ok and result.error is not None and result.error.name == "ZeroDivisionError"
    with pytest.raises(ExecutionFailed) as raised:
        result.check()
    assert raised.value.result is result and "ZeroDivisionError" in str(raised.value)


def test_commands_take_input_and_say_how_they_ended(session: Session) -> None:
    result = session.shell("cat; exit 3", stdin=b"given")
    assert (result.stdout, result.exit_code) == ("given", 3)
    assert session.shell(["printf", "%s", "a b"]).stdout == "a b"


def test_output_streams_as_it_comes(session: Session) -> None:
    execution = session.stream("input_line = input(); print('got', input_line)", stdin_open=True)
    execution.write(b"it\n", end=True)
    assert "".join(output.text for output in execution) == "got it\n"
    assert execution.result().ok


def test_an_interrupt_keeps_the_state(session: Session) -> None:
    session.run("kept = 7")
    execution = session.stream("print('on', flush=True)\nimport time\nwhile True: time.sleep(0.01)")
    for output in execution:
        assert output.text == "on\n"
        execution.interrupt()
    result = execution.result()
    assert result.error is not None and result.error.name == "KeyboardInterrupt"
    assert session.run("kept").text == "7"


def test_a_time_limit_ends_it(session: Session) -> None:
    started = time.monotonic()
    result = session.run("while True: pass", timeout=0.5)
    assert result.state == "timed_out" and time.monotonic() - started < 20
    with pytest.raises(ExecutionFailed, match="timed_out"):
        result.check()


def test_an_execution_goes_on_when_nobody_listens_and_is_found_again(session: Session) -> None:
    begun = session.stream("print('heard')").start()
    assert session.execution(begun.id).result().stdout == "heard\n"


def test_values_come_by_media_type(session: Session) -> None:
    result = session.run(
        "class Shown:\n    def _repr_mimebundle_(self, **_):\n"
        "        return {'text/html': '<b>x</b>', 'application/json': {'a': [1]}, 'text/plain': 'x'}\n"
        "display(Shown()); Shown()"
    )
    assert result.value is not None and result.value.html == "<b>x</b>" and result.value.json == {"a": [1]}
    assert [display.text for display in result.displays] == ["x"] and result.images == []


def test_files_of_any_size_go_in_and_out(session: Session, tmp_path: Path) -> None:
    here = tmp_path
    (here / "big").write_bytes(bytes(range(256)) * 8192)
    session.files.upload(here / "big", "in/big")
    session.files.download("in/big", here / "back")
    assert (here / "back").read_bytes() == (here / "big").read_bytes()
    wrote = session.files.write("notes/a.txt", "one\ntwo\n")
    assert session.files.read("notes/a.txt", offset=4) == b"two\n"
    with pytest.raises(cooper.CooperError, match="file_changed"):
        session.files.write("notes/a.txt", "lost", if_match="0" * 64)
    session.files.edit("notes/a.txt", "two", "2")
    assert session.files.stat("notes/a.txt").etag != wrote.etag
    assert [match.line for match in session.files.search("2", "notes")] == [2]
    session.files.move("notes/a.txt", "notes/b.txt")
    session.files.copy("notes/b.txt", "c.txt")
    listed = [file.path for file in session.files.list(recursive=True, glob="*.txt")]
    assert listed == ["c.txt", "notes/b.txt"]
    session.files.delete("notes", recursive=True)
    with pytest.raises(NotFound, match="file_not_found"):
        session.files.read("notes/b.txt")


def test_packages_and_artifacts(session: Session) -> None:
    session.install("iniconfig")
    assert "iniconfig" in {package.name for package in session.packages()}
    session.run("import iniconfig, os; os.makedirs('artifacts')").check()
    result = session.run("open('artifacts/report.txt', 'w').write('done')")
    assert [artifact.name for artifact in result.check().artifacts] == ["report.txt"]
    assert session.artifact("report.txt") == b"done"
    assert session.artifacts()[0].size_bytes == 4
    with pytest.raises(ExecutionFailed, match="install_failed"):
        session.install("no-such-package-of-coopers")


def test_a_checkpoint_brings_files_and_variables_back(cluster: Cluster, session: Session) -> None:
    session.run("saved = {'n': 1}")
    session.files.write("saved.txt", "here")
    saved = session.checkpoint("mine")
    assert saved.id in {checkpoint.id for checkpoint in cluster.checkpoints(session.id)}
    with cluster.restore(saved) as again:
        assert again.run("saved['n']").text == "1" and again.files.read_text("saved.txt") == "here"
    cluster.delete_checkpoint(saved)


def test_a_session_ends_with_its_block_unless_it_is_kept(cluster: Cluster) -> None:
    with cluster.session() as session:
        info = session.info()
        assert info.state == "ready" and info.python_version
    with pytest.raises(cooper.CooperError, match="session_ended"):
        session.run("1")
    with cluster.session(name="stays") as kept:
        kept.keep().run("y = 1")
    with cluster.attach("stays") as found:
        assert found.run("y").text == "1"
    found.destroy()


def test_the_cluster_is_found_by_the_environment() -> None:
    with Session(ttl=60) as session:
        assert session.run("1 + 1").text == "2"
        assert session.extend(120).expires_at_ms > session.known.created_at_ms


def test_errors_have_a_stable_code_and_say_what_to_do(cluster: Cluster) -> None:
    with pytest.raises(NotFound) as absent:
        cluster.attach("no-such-session")
    assert absent.value.code == "session_not_found" and absent.value.hint
    with pytest.raises(NotFound, match="run_not_found"):
        cluster.run("run_00000000000000000000000000")
    with pytest.raises(TypeError, match="no option 'memory'"):
        cluster.session(memory=1)  # type: ignore[call-arg]
    with Cluster(token="wrong") as stranger, pytest.raises(cooper.Unauthenticated):
        stranger.sessions()
