"""What this machine remembers: modes of the files, whose token counts, nodes that have ended."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from prismrec.cluster import state
from prismrec.config import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (state.MODE, state.TOKEN, state.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(state.DIRECTORY, str(tmp_path / "state"))
    return tmp_path / "state"


def node(pid: int, created: float) -> state.Node:
    return state.Node("head", "127.0.0.1:6379", "127.0.0.1", "http://127.0.0.1:8265", "lo", pid,
                      created, "/nowhere")  # fmt: skip


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_reads_directory_token_and_node(home: Path) -> None:
    own = psutil.Process()
    old = os.umask(0)
    try:
        token = state.make_token()
        state.write_node(node(own.pid, own.create_time()))
    finally:
        os.umask(old)
    assert (mode(home), mode(token), mode(home / "node.json")) == (0o700, 0o600, 0o600)


def test_a_token_is_drawn_once_and_is_long() -> None:
    first = state.make_token().read_text()
    assert state.make_token().read_text() == first
    assert len(bytes.fromhex(first)) == 32
    state.token_file().unlink()
    assert state.make_token().read_text() != first


def test_the_directory_may_be_the_system_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(state.DIRECTORY)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state.state_directory() == tmp_path / "xdg/prismrec"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state.state_directory() == tmp_path / ".local/state/prismrec"


def test_a_directory_that_others_write_into_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(UserError, match=r"other users can write into it; chmod 700 "):
        state.make_token()


def test_our_token_is_presented_unless_another_is_named(tmp_path: Path) -> None:
    token = state.make_token()
    ours: dict[str, str] = {}
    state.use_token(ours)
    assert ours == {state.MODE: "token", state.TOKEN_PATH: str(token)}
    theirs = {state.TOKEN: "0" * 64}
    state.use_token(theirs)
    assert theirs == {state.TOKEN: "0" * 64, state.MODE: "token"}


def test_the_token_s_file_is_the_one_that_is_named(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.token_file() == home / "auth_token"
    monkeypatch.setenv(state.TOKEN_PATH, str(tmp_path / "theirs"))
    assert state.token_file() == tmp_path / "theirs"


def test_no_token_is_made_up_where_there_is_none() -> None:
    environment: dict[str, str] = {}
    state.use_token(environment)
    assert environment == {state.MODE: "token"}


def test_a_token_that_others_can_read_is_refused() -> None:
    state.make_token().chmod(0o640)
    with pytest.raises(UserError, match=r"other users can read the cluster's token; chmod 600 /"):
        state.use_token({})


def test_authentication_cannot_be_switched_off() -> None:
    with pytest.raises(UserError, match=r"RAY_AUTH_MODE is 'disabled': .*; unset it"):
        state.use_token({state.MODE: "disabled"})


def test_a_node_is_there_while_its_process_is() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    created = psutil.Process(process.pid).create_time()
    state.write_node(node(process.pid, created))
    assert state.read_node() == node(process.pid, created)
    state.write_node(node(process.pid, created - 60))  # its number was another process's before
    assert state.read_node() is None
    state.write_node(node(process.pid, created))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert state.read_node() is None  # a process that nobody waited for yet has ended, too
    process.wait()
    assert state.read_node() is None
    state.forget_node()
    assert state.read_node() is None


def test_a_file_that_is_no_state_file_is_told(home: Path) -> None:
    state.make_token()
    (home / "node.json").write_text('{"role": "head"}')
    with pytest.raises(UserError, match=r"node\.json: not a state file \(.*\); remove it"):
        state.read_node()
