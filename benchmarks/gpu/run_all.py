"""Everything that is measured on a GPU, in one go: each part a process of its own with a deadline.

    python -m benchmarks.gpu.run_all --out out/gpu
    python -m benchmarks.gpu.run_all --device cpu --size trial --out out/gpu_trial

A part that fails or takes too long does not stop the others. `gpu.json`, `gpu.md` and `gpu.log` in OUT
are written anew after every part, and a part that is ended keeps what it had. The exit code is 1 if a
part failed or did not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.channel import ROOT
from benchmarks.gpu.parts import PARTS, Part, chosen
from benchmarks.gpu.report import Document, markdown, summary
from benchmarks.machine import machine

_LEAST_S = 10
"""Seconds with which a part is still begun."""
_LOG_LINES = 25


@dataclass(frozen=True, slots=True)
class Setting:
    """How the parts are run.

    Args:
        device: "cpu" or "cuda".
        size: "full" or "trial".
        out: directory of the results.
        minutes: that all parts may take.
        command: that started the run, for the page.
    """

    device: str
    size: str
    out: Path
    minutes: float
    command: str


@dataclass(slots=True)
class Outcome:
    """What a part came to.

    Args:
        status: "done", or why it is not.
        seconds: it took.
        log: the end of its output, where it is not done.
        found: its results, as far as it got.
    """

    status: str
    seconds: float = 0.0
    log: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    def document(self, part: Part) -> dict[str, Any]:
        """As the report takes it."""
        empty: dict[str, Any] = {"tables": [], "goals": [], "facts": {}}
        facts = {"title": part.title, "status": self.status, "seconds": round(self.seconds, 1)}
        return {**facts, "log": self.log, **empty, **self.found}


def run(parts: Sequence[Part], setting: Setting) -> Document:
    """Run the parts one after the other; the report is written after each.

    Args:
        parts: in their order.
        setting: see there.

    Returns:
        The report's document.
    """
    setting.out.mkdir(parents=True, exist_ok=True)
    (setting.out / "gpu.log").write_text("")
    device, driver = _device(setting.device)
    document: Document = {
        "machine": machine(),
        "device": device,
        "driver": driver,
        "size": setting.size,
        "commands": [setting.command],
        "parts": {},
    }
    end = time.monotonic() + 60 * setting.minutes
    for part in parts:
        left = end - time.monotonic()
        print(f"{part.name}: at most {min(part.seconds, max(left, 0)):.0f} s", flush=True)
        outcome = Outcome("not run: no time was left")
        if left >= _LEAST_S:
            with tempfile.TemporaryDirectory() as scratch:
                outcome = _run(part, setting, min(part.seconds, left), (Path(scratch), document))
        document["parts"][part.name] = outcome.document(part)
        print(f"{part.name}: {outcome.status} ({outcome.seconds:.0f} s)", flush=True)
        (setting.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
        (setting.out / "gpu.md").write_text(markdown(document))
    return document


def failed(document: Document) -> list[str]:
    """Names of the parts that are not done."""
    return [name for name, part in document["parts"].items() if part["status"] != "done"]


def _run(part: Part, setting: Setting, seconds: float, rest: tuple[Path, Document]) -> Outcome:
    scratch, document = rest
    out, before, log = (scratch / name for name in ("found.json", "before.json", "log.txt"))
    facts = {name: each["facts"] for name, each in document["parts"].items()}
    before.write_text(json.dumps(facts))
    options = ("--device", setting.device, "--size", setting.size)
    files = ("--out", str(out), "--before", str(before))
    start = time.monotonic()
    with log.open("w") as written:
        process = subprocess.Popen(
            [*part.command, *options, *files],
            cwd=ROOT,
            env=_environment(document),
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = _wait(process, seconds)
    text = log.read_text(errors="replace")
    with (setting.out / "gpu.log").open("a") as all_logs:
        all_logs.write(f"==== {part.name}: {status}\n{text}\n")
    found = json.loads(out.read_text()) if out.exists() else {}
    if status == "done" and not found:
        status = "failed: it wrote no results"
    end = "" if status == "done" else "\n".join(text.strip().splitlines()[-_LOG_LINES:])
    return Outcome(status, time.monotonic() - start, end, found)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How a process ended, by itself or by its deadline; its children end with it."""
    try:
        code = process.wait(timeout=seconds)
        status = "done" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        status = f"ended after {seconds:.0f} s, its deadline"
    finally:  # Ctrl-C too: it does not reach a session of its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return status


def _environment(document: Document) -> dict[str, str]:
    """That of the parts: they find the checkout, talk over loopback and know the commit."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PRISMREC_COMMIT": document["machine"]["commit"],
    }


def _device(device: str) -> tuple[str, str]:
    """Name of the device and version of its driver, as the driver's own program says them."""
    if device == "cpu":
        return "the CPU", "none"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return "an unknown GPU", f"unknown ({type(error).__name__} of nvidia-smi)"
    name, _, driver = done.stdout.splitlines()[0].partition(", ")
    return name, driver


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.run_all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts: " + ", ".join(f"{part.name} ({part.group})" for part in PARTS),
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["full", "trial"], default="full")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[],
        help="names of parts, or `first` or `second`; all if not given",
    )
    parser.add_argument("--minutes", type=float, default=20, help="that all parts may take")
    parser.add_argument(
        "--out", type=Path, default=Path("out/gpu"), help="directory of the results"
    )
    asked = parser.parse_args(given)
    try:
        asked.chosen = chosen(asked.parts)
    except ValueError as error:
        parser.error(str(error))
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Run what is asked for and print what it came to; 1 if a part is not done."""
    asked = arguments(given)
    command = "python -m benchmarks.gpu.run_all " + shlex.join(
        sys.argv[1:] if given is None else given
    )
    setting = Setting(asked.device, asked.size, asked.out, asked.minutes, command)
    document = run(asked.chosen, setting)
    print(summary(document))
    missing = failed(document)
    print(f"not done: {', '.join(missing)}" if missing else "all parts are done")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
