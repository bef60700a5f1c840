"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.channel import ROOT

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow")
COMMIT = "PRISMREC_COMMIT"
"""Environment variable that names the commit where the files came without their history."""


def machine() -> dict[str, Any]:
    """Processor, memory, versions and commit, as they belong beside every number."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    kibibytes = Path("/proc/meminfo").read_text().split()[1]
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in facts.get("flags", "").split()],
        "memory_gib": round(int(kibibytes) / 2**20, 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": commit(),
        "load_before": os.getloadavg()[0],
    }


def sentence(facts: dict[str, Any]) -> str:
    """The same facts in one line."""
    versions = ", ".join(
        f"{name} {version}" for name, version in facts["versions"].items() if version
    )
    return (
        f"commit {facts['commit']}: {facts['processor']}, {facts['cores']} cores "
        f"({', '.join(facts['flags'])}), {facts['memory_gib']} GiB, Python {facts['python']}, "
        f"{versions}"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of this checkout, and whether anything but results was changed since."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    code = ("--", ".", ":!benchmarks/results")
    changed = git("status", "--porcelain", "--untracked-files=no", *code)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
