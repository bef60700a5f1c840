"""Which versions go together, and what is wrong with the installed ones.

TorchRec and FBGEMM are compiled against one minor version of torch; another one fails at import or,
worse, at the first kernel. Nothing is imported here: only the installed metadata is read.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """One release train: versions of torch, TorchRec and FBGEMM with the same binary interface."""

    torch: str
    torchrec: str
    fbgemm: str

    def install_command(self, cuda: bool) -> str:
        """The commands that put this train's sharding packages in place of whatever is there."""
        fbgemm = "fbgemm-gpu" if cuda else "fbgemm-gpu-cpu"
        return (
            "python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu; python -m pip install --no-deps "
            f"torchrec=={self.torchrec} {fbgemm}=={self.fbgemm}"
        )


STACKS = (
    Stack(torch="2.13.0", torchrec="1.8.0", fbgemm="1.8.0"),
    Stack(torch="2.11.0", torchrec="1.6.1", fbgemm="1.6.0"),
)
"""Release trains known to work, the preferred one first."""

PINS = {"ray": "2.60.0", "mlflow": "3.17.2", "pyarrow": "25.0.1", "numpy": "2.4"}
"""Pinned versions; a shorter one allows any release below it."""

EXTRAS = {"ray": "ray[default,serve,train,data,tune]"}
"""Requirements that ask for more than the bare package."""

Lookup = Callable[[str], str | None]


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def matches(version: str, pin: str) -> bool:
    """Whether a version is the pinned one, a local build of it, or a release below it.

    >>> matches("2.13.0+cpu", "2.13.0"), matches("2.4.6", "2.4"), matches("2.40.1", "2.4")
    (True, True, False)
    """
    return f"{version.partition('+')[0]}.".startswith(f"{pin}.")


def stack_of(torch: str) -> Stack | None:
    """The release train of a torch version, or None where none is known.

    >>> stack_of("2.11.1+cu130").fbgemm
    '1.6.0'
    """
    return next((each for each in STACKS if matches(torch, _minor(each.torch))), None)


def pair_problem(lookup: Lookup = installed) -> tuple[str, str] | None:
    """What is wrong with torch, TorchRec and FBGEMM together and the command that puts it right.

    Args:
        lookup: gives the installed version of a distribution, or None.

    Returns:
        None where the three belong to one release train.
    """
    torch, torchrec = lookup("torch"), lookup("torchrec")
    cpu, cuda = lookup("fbgemm-gpu-cpu"), lookup("fbgemm-gpu")
    if torch is None:
        return "torch is not installed", f"python -m pip install torch=={STACKS[0].torch}"
    stack = stack_of(torch)
    if stack is None:
        known = " or ".join(_minor(each.torch) for each in STACKS)
        return (
            f"torch {torch} belongs to no known release train (known: {known})",
            f"python -m pip install torch=={STACKS[0].torch}; "
            + STACKS[0].install_command(cuda is not None),
        )
    command = stack.install_command(cuda=cuda is not None and cpu is None)
    if cpu is not None and cuda is not None:
        return (
            "fbgemm-gpu-cpu and fbgemm-gpu are both installed and overwrite each other's files",
            stack.install_command(cuda="+cpu" not in torch),
        )
    wrong = [
        f"{name} {version or 'missing'}, but torch {torch} needs {_minor(needed)}"
        for name, version, needed in (
            ("torchrec", torchrec, stack.torchrec),
            ("fbgemm", cpu or cuda, stack.fbgemm),
        )
        if version is None or not matches(version, _minor(needed))
    ]
    return ("; ".join(wrong), command) if wrong else None


def _minor(version: str) -> str:
    """The first two numbers of a version, which decide the binary interface."""
    return ".".join(version.split(".")[:2])
