"""Where the cluster is found; no cluster is needed."""

from pathlib import Path

import pytest

from cooper import ConfigInvalid, Unavailable
from cooper.options import network_policy
from cooper.settings import Settings


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("COOPER_URL", "COOPER_TOKEN", "COOPER_TOKEN_FILE", "COOPER_DATA", "COOPER_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def local(port: int) -> None:
    Path(".cooper").mkdir()
    Path(".cooper/endpoint").write_text(f"http://127.0.0.1:{port}\n")
    Path(".cooper/admin.token").write_text("local-admin\n")


def test_the_local_cluster_is_found_with_its_token() -> None:
    local(1234)
    assert Settings.find() == Settings("127.0.0.1:1234", "local-admin", False, None)
    assert Settings.find(url="http://localhost:1234").token == "local-admin"


def test_the_local_token_goes_nowhere_else() -> None:
    local(1234)
    assert Settings.find(url="http://127.0.0.1:4321").token is None
    assert Settings.find(url="https://example.com").token is None


def test_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("token").write_text("from a file\n")
    monkeypatch.setenv("COOPER_URL", "https://cooper.example.com")
    monkeypatch.setenv("COOPER_TOKEN_FILE", "token")
    assert Settings.find() == Settings("cooper.example.com:443", "from a file", True, None)
    assert Settings.find(url="http://[::1]").target == "[::1]:50051"


def test_what_is_missing_or_wrong_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="cooper up"):
        Settings.find()
    with pytest.raises(ConfigInvalid, match="no URL"):
        Settings.find(url="localhost:50051")
    monkeypatch.setenv("COOPER_TOKEN_FILE", "absent")
    with pytest.raises(ConfigInvalid, match="absent"):
        Settings.find(url="http://localhost:1")


def test_an_empty_list_of_hosts_is_not_the_internet() -> None:
    with pytest.raises(ValueError, match="every host"):
        network_policy([])
