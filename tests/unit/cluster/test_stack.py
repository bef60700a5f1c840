"""What counts as the same stack."""

from __future__ import annotations

import platform

import pytest

from prismrec.cluster import stack
from prismrec.config import UserError

HERE = {"python": "3.11.7", "torch": "2.13.0+cpu", "fbgemm": "1.8.0", "ray": "2.60.0"}


def test_versions_of_this_environment() -> None:
    versions = stack.stack_versions()
    assert tuple(versions) == stack.STACK
    assert versions["python"] == platform.python_version()
    assert "missing" not in versions.values()


def test_either_build_of_fbgemm_counts_and_a_missing_package_is_told() -> None:
    known = {"torch": "2.13.0", "fbgemm-gpu": "1.8.0"}
    versions = stack.stack_versions(known.get)
    assert (versions["torch"], versions["fbgemm"], versions["ray"]) == (
        "2.13.0",
        "1.8.0",
        "missing",
    )


@pytest.mark.parametrize(
    ("name", "version", "differs"),
    [
        ("python", "3.11.9", False),
        ("python", "3.12.1", True),
        ("torch", "2.13.0+cu130", False),
        ("torch", "2.13.1", True),
        ("fbgemm", "missing", True),
    ],
)
def test_what_differs(name: str, version: str, differs: bool) -> None:
    assert stack.differing(HERE, HERE | {name: version}) == ([name] if differs else [])


def test_the_refusal_has_both_lists() -> None:
    there = HERE | {"torch": "2.11.0", "ray": "2.59.0"}
    expected = (
        r"node 10\.0\.0\.3: torch, ray differ from this machine: it has python 3\.11\.7, torch 2\.11\.0, "
        r"fbgemm 1\.8\.0, ray 2\.59\.0; this machine has python 3\.11\.7, torch 2\.13\.0\+cpu, .*ray 2\.60\.0; "
        "install the same versions on both"
    )
    with pytest.raises(UserError, match=expected):
        stack.check_stack(HERE, there, "10.0.0.3", "this machine")
    stack.check_stack(HERE, HERE, "10.0.0.3", "this machine")
