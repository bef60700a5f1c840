"""What this machine remembers of the cluster it belongs to: a node, and the token of the cluster.

Both are files that only their owner can read, in the user's state directory or in the one that
`PRISMREC_STATE_DIR` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from prismrec.config import UserError

DIRECTORY = "PRISMREC_STATE_DIR"
"""Environment variable that names the state directory."""
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True, slots=True)
class Node:
    """The Ray node that `prismrec cluster up` or `join` started on this machine.

    Args:
        role: "head" or "worker".
        address: host and port of the cluster, for `--address` of `train` and for `join`.
        node_address: the IP address by which the other machines know this one.
        dashboard: URL of the dashboard and of the jobs; empty on a worker.
        interface: what gloo and NCCL talk over.
        pid: the process that holds the node's other processes.
        created: when that process started, seconds since 1970, so that a later process with the
            same number is not taken for it.
        files: Ray's own files of this node: sockets and logs.
    """

    role: str
    address: str
    node_address: str
    dashboard: str
    interface: str
    pid: int
    created: float
    files: str

    def process(self) -> psutil.Process | None:
        """The node's main process, None where it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1
            if same and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None


def state_directory() -> Path:
    """The directory, made if need be, that only its owner can enter.

    Raises:
        UserError: it cannot be made, or other users can write into it.
    """
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    directory = Path(os.environ.get(DIRECTORY) or Path(home) / "prismrec").absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(
            f"{DIRECTORY}: cannot make {directory}: {error.strerror}; name a directory of yours"
        ) from None
    if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{directory}: other users can write into it; chmod 700 {directory}")
    return directory


def token_file() -> Path:
    """Where the cluster's token is kept on this machine, whether or not there is one yet.

    It is the file that the environment names, or one of ours.
    """
    named = os.environ.get(TOKEN_PATH)
    return Path(named).absolute() if named else state_directory() / "auth_token"


def make_token() -> Path:
    """The file of the token; a new token is drawn where there is none."""
    path = token_file()
    if not path.exists():
        _write_private(path, secrets.token_hex(32))
    return _private(path)


def use_token(environment: MutableMapping[str, str]) -> None:
    """Have Ray in this environment present the cluster's token.

    A token or a file that the environment names already stands, as on Kubernetes.

    Args:
        environment: such as `os.environ`, changed in place.

    Raises:
        UserError: token authentication is switched off, or others can read the token's file.
    """
    mode = environment.setdefault(MODE, "token")
    if mode != "token":
        raise UserError(
            f"{MODE} is '{mode}': whoever reaches the cluster could run programs on it; unset it"
        )
    if names_token(environment):
        return
    path = token_file()
    if path.exists():
        environment[TOKEN_PATH] = str(_private(path))


def names_token(environment: Mapping[str, str]) -> bool:
    """Whether an environment says which token is to be presented."""
    return bool(environment.get(TOKEN) or environment.get(TOKEN_PATH))


def read_node() -> Node | None:
    """The node of this machine, None where there is none or it has ended."""
    node = remembered_node()
    return node if node is not None and node.process() is not None else None


def remembered_node() -> Node | None:
    """The node that was started last on this machine and not taken down, alive or not."""
    path = _node_file()
    if not path.exists():
        return None
    try:
        node = Node(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a state file ({error}); remove it") from None
    return node


def write_node(node: Node) -> None:
    """Remember a node."""
    _node_file().unlink(missing_ok=True)
    _write_private(_node_file(), json.dumps(asdict(node), indent=1) + "\n")


def forget_node() -> None:
    """Remember no node any more."""
    _node_file().unlink(missing_ok=True)


def _node_file() -> Path:
    return state_directory() / "node.json"


def _write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _private(path: Path) -> Path:
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path}: other users can read the cluster's token; chmod 600 {path}")
    return path
