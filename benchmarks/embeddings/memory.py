"""Peak memory of our tables in training, above that of the process after its imports.

    python -m benchmarks.embeddings.memory --k 4 --width 16 --rows 200000

One process makes the tables as the training loop does, initialises them and takes some steps. It says
how much its memory grew at the most, and what the tables and one batch need.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.channel import ROOT
from benchmarks.embeddings.cases import IDS, Case

GOAL = 1.1
_STEPS = 5
_FIXED = ("ranks", "kind", "data_type")
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one run.

    Args:
        needed: weights, optimizer state, and one batch's ids, outputs and output gradients.
        added: what the process had at its peak more than after its imports.
    """

    needed: int
    added: int

    @property
    def ratio(self) -> float:
        """Added over needed."""
        return self.added / self.needed


def measure_memory(case: Case, layout: str, threads: int) -> Memory:
    """Train our tables for some steps in a process of its own.

    Args:
        case: sizes; one rank.
        layout: "packed" or "separate".
        threads: cores.

    Raises:
        RuntimeError: the process failed; the end of what it said is in the message.
    """
    options = {name: value for name, value in asdict(case).items() if name not in _FIXED}
    options |= {"layout": layout, "threads": threads}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.embeddings.memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("memory: " + " | ".join(done.stderr.strip().splitlines()[-5:]))
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure one case and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--bag", type=int, default=1)
    parser.add_argument("--ids", choices=IDS, default="uniform")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--layout", choices=["packed", "separate"], default="packed")
    parser.add_argument("--threads", type=int, default=1)
    asked = vars(parser.parse_args())
    layout, threads = asked.pop("layout"), asked.pop("threads")
    with TemporaryDirectory() as directory:
        print(json.dumps(_trained(Case(**asked, ranks=1), layout, threads, Path(directory))))


def _trained(case: Case, layout: Any, threads: int, directory: Path) -> dict[str, int]:
    import torch

    from benchmarks.embeddings.cases import draw
    from benchmarks.embeddings.peers import Ours, shard, spec_of
    from benchmarks.embeddings.timing import prepare, step
    from prismrec.embeddings.access import initialize, local_shards
    from prismrec.embeddings.collection import SetViews
    from prismrec.train.process_group import process_group
    from prismrec.train.quiet import library_output

    torch.set_num_threads(threads)
    with (
        library_output(directory / "log", verbose=False),
        process_group(case.device) as ranks,
    ):
        meter = _Meter(case.device)
        spec = spec_of(case, layout)
        tables = shard(spec, case.batch, ranks)
        initialize(local_shards(tables.dmp, spec, 0, tables.plain_states()), spec)
        peer = Ours("ours", "ours", layout, tables, SetViews(spec), spec.fields)
        outputs = case.tables * case.batch * case.k * case.width
        gradients = torch.full((outputs,), 1e-3, device=ranks.device)
        timed = prepare(peer, draw(case, 1), gradients, ranks)
        for index in range(_STEPS):
            step(timed, index)
        ids = case.tables * case.batch * case.bag
        return {"needed": 8 * case.numbers + 8 * ids + 8 * outputs, "added": meter.added()}


class _Meter:
    """The memory that comes on top of what there is now.

    Args:
        device: "cpu" counts the process's resident memory, "cuda" what it has on its device.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = device == "cuda"
        if self._is_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            _RESET.write_text("5")
            self._before = _kibibytes("VmRSS") << 10

    def added(self) -> int:
        """Bytes at the peak, less those at the beginning."""
        if self._is_cuda:
            import torch

            return torch.cuda.max_memory_allocated() - self._before
        return (_kibibytes("VmHWM") << 10) - self._before


def _kibibytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main()
