from __future__ import annotations

import re
from pathlib import Path

import pytest

from prismrec.cluster import versions

ROOT = Path(__file__).resolve().parents[3]
GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}


def _problem(changes: dict[str, str | None]) -> str:
    problem = versions.pair_problem({**GOOD, **changes}.get)
    return "" if problem is None else " -> ".join(problem)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({}, r"^$"),
        ({"torch": "2.11.0", "torchrec": "1.6.1", "fbgemm-gpu-cpu": "1.6.0"}, r"^$"),
        ({"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0", "torch": "2.13.0+cu130"}, r"^$"),
        ({"torch": None}, r"^torch is not installed -> .* torch==2\.13\.0$"),
        ({"torch": "2.9.1"}, r"torch 2\.9\.1 belongs to no known .*2\.13 or 2\.11"),
        ({"torch": "2.11.0"}, r"torchrec 1\.8\.0, but torch 2\.11\.0 needs 1\.6; fbgemm 1\.8\.0"),
        ({"torchrec": None}, r"^torchrec missing, .*--no-deps torchrec==1\.8\.0 fbgemm-gpu-cpu=="),
        ({"fbgemm-gpu-cpu": None}, r"^fbgemm missing"),
        ({"fbgemm-gpu-cpu": "1.10.0"}, r"^fbgemm 1\.10\.0, but torch 2\.13\.0\+cpu needs 1\.8 ->"),
        (
            {"fbgemm-gpu": "1.8.0"},
            r"both installed .* uninstall -y fbgemm-gpu fbgemm-gpu-cpu; .* fbgemm-gpu-cpu==1\.8\.0",
        ),
        ({"fbgemm-gpu": "1.8.0", "torch": "2.13.0"}, r"both installed .* fbgemm-gpu==1\.8\.0$"),
        (
            {"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.7.0", "torch": "2.13.0"},
            r"^fbgemm 1\.7\.0.* fbgemm-gpu==1\.8\.0$",
        ),
    ],
)
def test_pair(changes: dict[str, str | None], pattern: str) -> None:
    assert re.search(pattern, _problem(changes)), _problem(changes)


def test_this_environment_is_one_release_train() -> None:
    assert versions.pair_problem() is None
    assert versions.installed("no-such-distribution") is None


def test_pins_are_those_of_the_requirements_files() -> None:
    lines = [
        line
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text().splitlines()
    ]
    stack = versions.STACKS[0]
    pinned = {
        "torch": stack.torch,
        "torchrec": stack.torchrec,
        "fbgemm-gpu-cpu": stack.fbgemm,
        "fbgemm-gpu": stack.fbgemm,
        **{name: pin for name, pin in versions.PINS.items() if name != "numpy"},
    }
    for name, pin in pinned.items():
        assert f"{versions.EXTRAS.get(name, name)}=={pin}" in lines
    assert f"numpy>={versions.PINS['numpy']},<2.5" in lines
