"""What is refused before a node is started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from prismrec.cluster import network, nodes, runtime, state
from prismrec.config import UserError


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.setenv(state.DIRECTORY, str(tmp_path / "state"))
    for name in (state.MODE, state.TOKEN, state.TOKEN_PATH, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in set(os.environ) - set(before):  # what a command sets for its own process
        del os.environ[name]


def test_a_port_that_is_taken() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"--port {port}: cannot be listened at on 127\.0\.0\.1 "
        ):
            nodes.up(nodes.Options(port=port))
        with pytest.raises(UserError, match=rf"--dashboard-port {port}: cannot be listened"):
            nodes.up(nodes.Options(port=network.free_port("127.0.0.1"), dashboard_port=port))


def test_what_is_no_port_and_no_address() -> None:
    with pytest.raises(UserError, match=r"--port 70000: cannot be listened at on 127\.0\.0\.1"):
        nodes.up(nodes.Options(port=70000))
    with pytest.raises(UserError, match=r"--dashboard-host localhost: give an IP address such as"):
        nodes.up(nodes.Options(port=network.free_port("127.0.0.1"), dashboard_host="localhost"))
    assert network.free_port("::1") > 0


def test_what_a_node_left_that_died_is_removed(tmp_path: Path) -> None:
    def died() -> Path:
        files = tmp_path / "files"
        (files / "ray").mkdir(parents=True)
        state.write_node(
            state.Node("head", "127.0.0.1:1", "127.0.0.1", "", "lo", 2**22, 1.0, str(files))
        )
        return files

    files = died()
    assert state.read_node() is None
    assert nodes.down() is not None
    assert not files.exists()
    assert nodes.down() is None
    files = died()
    with pytest.raises(UserError, match="is no address of a cluster"):
        nodes.join("nowhere", nodes.Options())
    assert not files.exists()


def test_a_token_that_is_named_and_empty_is_none() -> None:
    assert not state.names_token({state.TOKEN: ""})
    assert state.names_token({state.TOKEN_PATH: "/run/token"})


def test_an_address_or_interface_of_another_machine() -> None:
    with pytest.raises(UserError, match=r"no network interface of this machine has the address"):
        nodes.up(nodes.Options(host="203.0.113.9"))
    with pytest.raises(UserError, match=r"--interface: 'wlan9' is not up on this machine; use one"):
        nodes.up(nodes.Options(interface="wlan9"))


@pytest.mark.parametrize("address", ["10.0.0.1", ":6379", "10.0.0.1:port", "10.0.0.1:0"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(
        UserError, match=r"join: '.*' is no address of a cluster; give host and port"
    ):
        nodes.join(address, nodes.Options())


def test_joining_needs_a_token_and_somebody_who_answers() -> None:
    with pytest.raises(
        UserError, match=r"no token of the cluster; copy the token file .* \(mode 600\)"
    ):
        nodes.join("127.0.0.1:6379", nodes.Options())
    state.make_token()
    port = network.free_port("127.0.0.1")
    with pytest.raises(UserError, match=rf"join: nothing answers at 127\.0\.0\.1:{port}"):
        nodes.join(f"127.0.0.1:{port}", nodes.Options())


def test_joining_at_what_is_not_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    state.make_token()

    def start(*_: object) -> NoReturn:
        raise UserError(f"Ray did not start on 127.0.0.1: {said}")

    monkeypatch.setattr(nodes, "_start", start)
    monkeypatch.setattr(nodes, "is_loopback", lambda _: False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        said = "ray.exceptions.RpcError: RPC error: Received http2 header with status: 404"
        with pytest.raises(UserError, match=rf"answers at 127.0.0.1:{port} is not the head .*404"):
            nodes.join(f"127.0.0.1:{port}", nodes.Options())
        said = "Version mismatch"
        with pytest.raises(UserError, match="did not start on 127.0.0.1: Version mismatch"):
            nodes.join(f"127.0.0.1:{port}", nodes.Options())


def test_auto_is_this_machine_s_node_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"this machine has no node of a cluster; start one with"):
        runtime.known_address("auto")
    assert runtime.known_address(None) is None
    assert runtime.known_address("10.0.0.1:6379") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert runtime.known_address("auto") == "auto"


def test_nothing_is_waited_for_where_nothing_answers() -> None:
    port = network.free_port("127.0.0.1")
    with (
        pytest.raises(UserError, match=rf"--address: nothing answers at 127\.0\.0\.1:{port} "),
        runtime.ray_runtime(f"127.0.0.1:{port}", num_workers=1, verbose=False),
    ):
        pass


def test_ending_where_there_is_no_node() -> None:
    assert nodes.down() is None


def test_the_interface_follows_the_address_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    carrying = network.pick_interface("127.0.0.1")
    assert network.talk_over("127.0.0.1") == carrying
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == carrying
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "bond7")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    assert network.talk_over("127.0.0.1") == "bond7"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "bond7"
