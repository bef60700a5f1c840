"""What every node of a cluster must have alike: versions of Python and of the libraries.

A difference would show as a failed import on one worker, or as a collective that never returns.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

from prismrec.cluster.versions import Lookup, installed
from prismrec.config import UserError

STACK = ("python", "torch", "torchrec", "fbgemm", "ray", "mlflow", "pyarrow")
"""What is compared; FBGEMM's builds for CPU and for CUDA count as one."""


def stack_versions(lookup: Lookup = installed) -> dict[str, str]:
    """The versions of this process's environment, "missing" where there is none.

    Args:
        lookup: gives the installed version of a distribution, or None.
    """
    found = {name: lookup(name) for name in STACK if name not in ("python", "fbgemm")}
    fbgemm = lookup("fbgemm-gpu-cpu") or lookup("fbgemm-gpu")
    versions = {"python": platform.python_version(), **found, "fbgemm": fbgemm}
    return {name: versions[name] or "missing" for name in STACK}


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of what differs between two stacks.

    A local build such as `+cpu` does not count, nor does the last number of Python's version.

    >>> differing({"torch": "2.13.0+cpu", "ray": "2.60.0"}, {"torch": "2.13.0", "ray": "2.59.1"})
    ['ray']
    """
    return [name for name in one if _plain(name, one[name]) != _plain(name, other.get(name, ""))]


def check_stack(here: Mapping[str, str], there: Mapping[str, str], where: str, whose: str) -> None:
    """Refuse a node whose versions are not those of `here`.

    Args:
        here: versions that count.
        there: versions of the node.
        where: what the node is called, such as its address.
        whose: what `here` is called, such as "this machine".

    Raises:
        UserError: what differs, with both lists.
    """
    wrong = differing(here, there)
    if wrong:
        raise UserError(
            f"node {where}: {', '.join(wrong)} differ from {whose}: it has {listed(there)}; "
            f"{whose} has {listed(here)}; install the same versions on both"
        )


def listed(versions: Mapping[str, str]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _plain(name: str, version: str) -> str:
    release = version.partition("+")[0]
    return ".".join(release.split(".")[:2]) if name == "python" else release
