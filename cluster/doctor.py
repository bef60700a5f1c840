"""Is this machine fit to train? Every check says what it found and, where needed, the exact fix.

What imports the stack runs in a process of its own, with a deadline: a broken library, a crash in
native code or a hanging network then costs one readable line, not the whole table.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prismrec.cluster import machine, network, versions
from prismrec.config import UserError

DEADLINE_S = 60.0
"""Seconds a probe may take; imports from a cold disk are the slow part."""
GLOO_TIMEOUT_S = 10.0
"""Seconds in which two local ranks must find each other."""
MIN_MEMORY = 4 * machine.GIB
MIN_DISK = 5 * machine.GIB
MIN_SHARED = machine.GIB


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Args:
        name: what was looked at.
        status: `warn` costs speed or room; with `fail`, training does not work.
        found: what is there.
        fix: what to do about it; empty where nothing is wrong.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Answer:
    """What a probe returned, or the last line of what went wrong in it."""

    value: Any = None
    error: str = ""


def run_checks() -> list[Check]:
    """Every check, in the order of the table; takes a few seconds."""
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(probe, "torch")
        sharding, table = pool.submit(probe, "sharding"), pool.submit(probe, "table")
        ranks = pool.submit(probe_ranks)
        return [
            check_python(),
            check_pair(),
            check_torch(torch.result()),
            check_sharding(sharding.result()),
            check_table(table.result()),
            *(check_pin(name, pin) for name, pin in versions.PINS.items()),
            check_device(torch.result()),
            *check_room(Path.cwd()),
            check_network(os.environ.get("GLOO_SOCKET_IFNAME")),
            check_ranks(ranks.result()),
        ]


def check_python() -> Check:
    """The interpreter's version."""
    fits = sys.version_info[:2] >= (3, 11)
    return Check(
        "python",
        "ok" if fits else "fail",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if fits else "install Python 3.11 or newer and make a new virtual environment",
    )


def check_pair() -> Check:
    """Whether torch, TorchRec and FBGEMM share one binary interface."""
    problem = versions.pair_problem()
    if problem is not None:
        return Check("release train", "fail", *problem)
    build = "fbgemm-gpu-cpu" if versions.installed("fbgemm-gpu-cpu") else "fbgemm-gpu"
    names = ("torch", "torchrec", build)
    return Check(
        "release train", "ok", ", ".join(f"{name} {versions.installed(name)}" for name in names)
    )


def check_torch(answer: Answer) -> Check:
    """Whether torch imports."""
    if answer.error:
        fix = f"python -m pip install --force-reinstall torch=={versions.STACKS[0].torch}"
        return Check("torch", "fail", f"cannot be imported: {answer.error}", fix)
    return Check("torch", "ok", f"imports as {answer.value['version']}")


def check_sharding(answer: Answer) -> Check:
    """Whether TorchRec and FBGEMM import and FBGEMM's operators are there."""
    if answer.error:
        found = f"cannot be used: {answer.error}"
        return Check("torchrec and fbgemm", "fail", found, _reinstall())
    return Check("torchrec and fbgemm", "ok", "import, and the operators are registered")


def check_table(answer: Answer) -> Check:
    """Whether a fused table looks up and learns the right numbers on the CPU."""
    expected = {"before": [3.0] * 4, "after": [2.0] * 4}
    if answer.value == expected:
        return Check("table update", "ok", "a lookup and a fused update give the right numbers")
    found = answer.error or f"got {answer.value}, expected {expected}"
    return Check("table update", "fail", found, _reinstall())


def check_pin(name: str, pin: str) -> Check:
    """Whether a package has the pinned version."""
    release = pin if pin.count(".") == 2 else f"{pin}.*"
    fix = f"python -m pip install '{versions.EXTRAS.get(name, name)}=={release}'"
    version = versions.installed(name)
    if version is None:
        return Check(name, "fail", "not installed", fix)
    if not versions.matches(version, pin):
        return Check(name, "warn", f"{version}; only {pin} is tested", fix)
    return Check(name, "ok", version)


def check_device(answer: Answer) -> Check:
    """The device that trains: GPUs with their memory, or the CPU with its bfloat16 instructions."""
    gpus = answer.value["gpus"] if answer.value else []
    if not gpus:
        flags = ", ".join(machine.bf16_instructions())
        found = f"CPU, bfloat16 by {flags}" if flags else "CPU without bfloat16 instructions"
        if shutil.which("nvidia-smi") is None or answer.error:
            return Check("device", "ok", found)
        fix = "install the CUDA build of torch that fits the driver (nvidia-smi shows its version)"
        return Check("device", "warn", f"{found}; a GPU driver is here, torch sees no GPU", fix)
    found = ", ".join(f"{name} {_gib(size)}" for name, size in gpus)
    if versions.installed("fbgemm-gpu") is None:
        fix = versions.STACKS[0].install_command(cuda=True)
        return Check("device", "warn", f"{found}; FBGEMM is the CPU build", fix)
    return Check("device", "ok", found)


def check_room(directory: Path) -> list[Check]:
    """Cores, memory, disk and shared memory; the last matters for Ray's object store."""
    total, free = machine.memory()
    disk, shared = machine.free_disk(directory), machine.shared_memory()
    return [
        Check("cores", "ok", str(machine.usable_cores())),
        _at_least(
            "memory",
            free,
            MIN_MEMORY,
            f"{_gib(free)} free of {_gib(total)}",
            f"end other programs, or give the machine {_gib(MIN_MEMORY)} for two workers",
        ),
        _at_least(
            "disk",
            disk,
            MIN_DISK,
            f"{_gib(disk)} free in {directory}",
            "make room, or run from a directory on a larger disk",
        ),
        _at_least(
            "shared memory",
            MIN_SHARED if shared is None else shared,
            MIN_SHARED,
            "this system has no /dev/shm" if shared is None else f"/dev/shm has {_gib(shared)}",
            "start the container with a larger one, such as docker run --shm-size=4g",
        ),
    ]


def check_network(chosen: str | None) -> Check:
    """The interface that ranks talk over.

    Args:
        chosen: what `GLOO_SOCKET_IFNAME` says, if it is set.
    """
    known = network.addresses()
    missing = [name for name in (chosen or "").split(",") if name and name not in known]
    if missing:
        found = f"GLOO_SOCKET_IFNAME names {', '.join(missing)}, which is not up on this machine"
        return Check("network", "fail", found, f"unset it, or use one of: {', '.join(known)}")
    try:
        names = chosen.split(",") if chosen else [network.pick_interface()]
    except UserError as error:
        return Check("network", "fail", error.message, "ip link set lo up")
    others = [f"{name} {own[0]}" for name, own in known.items() if name not in names]
    found = ", ".join(f"{name} {known[name][0]}" for name in names if name)
    return Check("network", "ok", found + (f"; also up: {', '.join(others)}" if others else ""))


def check_ranks(answers: Sequence[Answer]) -> Check:
    """Whether two ranks on this machine exchanged the right numbers."""
    expected = [[0.0, 10.0], [1.0, 11.0]]
    got = [answer.value for answer in answers]
    if got == expected:
        return Check("2-rank all-to-all", "ok", "two gloo ranks exchanged the right numbers")
    errors = [f"rank {rank}: {each.error}" for rank, each in enumerate(answers) if each.error]
    found = "; ".join(errors) or f"the ranks hold {got}, expected {expected}"
    fix = "export GLOO_SOCKET_IFNAME=lo, and let local processes open TCP connections"
    return Check("2-rank all-to-all", "fail", found, fix)


def probe(name: str, *arguments: str) -> Answer:
    """Run one of `PROBES` in a new Python process and wait for its answer, or for the deadline."""
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        command = [sys.executable, "-P", "-m", "prismrec.cluster.doctor", name, str(answer)]
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [*command, *arguments],
                env={**os.environ, **quiet},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(error=f"no answer within {DEADLINE_S:.0f} s")
        if answer.exists():
            return Answer(**json.loads(answer.read_text()))
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        return Answer(error=f"the process ended with code {done.returncode}: {last}")


def probe_ranks() -> list[Answer]:
    """Start two gloo ranks that meet in a file and exchange numbers; their answers by rank."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as pool:
        rendezvous = str(Path(directory) / "rendezvous")
        return list(pool.map(lambda rank: probe("rank", rank, rendezvous), ("0", "1")))


def _torch() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "version": torch.__version__,
        "gpus": [(each.name, each.total_memory) for each in gpus],
    }


def _sharding() -> list[int]:
    import fbgemm_gpu  # noqa: F401 - registers the operators
    import torch
    import torchrec  # noqa: F401 - the import is what is probed

    sums = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2, 3])).tolist()
    if sums != [0, 1, 3, 6]:
        raise ValueError(f"complete_cumsum of 1, 2, 3 gave {sums}")
    return sums


def _table() -> dict[str, list[float]]:
    """Rows of ones and twos, summed; one step of SGD with rate 0.5 and gradient 1 on both."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(2, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=0.5,
    )
    weights = table.split_embedding_weights()[0]
    weights.copy_(torch.tensor([[1.0], [2.0]]).expand(2, 4))
    ids, offsets = torch.tensor([0, 1]), torch.tensor([0, 2])
    before = table(ids, offsets)
    before.sum().backward()
    return {"before": before[0].tolist(), "after": table(ids, offsets)[0].tolist()}


def _rank(rank: str, rendezvous: str) -> list[float]:
    """Send 10 * rank + r to every rank r.

    Collective: both ranks call it.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", network.pick_interface())
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=int(rank),
        world_size=2,
        timeout=datetime.timedelta(seconds=GLOO_TIMEOUT_S),
    )
    try:
        received = torch.zeros(2)
        dist.all_to_all_single(received, torch.tensor([0.0, 1.0]) + 10 * int(rank))
        return received.tolist()
    finally:
        dist.destroy_process_group()


PROBES: dict[str, Callable[..., Any]] = {
    "torch": _torch,
    "sharding": _sharding,
    "table": _table,
    "rank": _rank,
}
"""What `probe` can run; each returns something that JSON can hold, or raises."""


def _answer(name: str, file: str, *arguments: str) -> None:
    """Run a probe in this process and leave its answer in `file`."""
    try:
        answer = {"value": PROBES[name](*arguments)}
    except Exception as error:  # noqa: BLE001 - whatever a broken stack raises is the finding
        lines = str(error).strip().splitlines() or [""]
        answer = {"error": f"{type(error).__name__}: {lines[0]}"}
    Path(file).write_text(json.dumps(answer))


def _reinstall() -> str:
    """The command that puts the sharding packages of the installed torch in place."""
    torch = versions.installed("torch")
    stack = versions.stack_of(torch or "") or versions.STACKS[0]
    return stack.install_command(cuda=torch is not None and "+cpu" not in torch)


def _at_least(name: str, amount: int, needed: int, found: str, fix: str) -> Check:
    return Check(name, "ok", found) if amount >= needed else Check(name, "warn", found, fix)


def _gib(size: int) -> str:
    return f"{size / machine.GIB:.1f} GiB"


if __name__ == "__main__":
    _answer(*sys.argv[1:])
