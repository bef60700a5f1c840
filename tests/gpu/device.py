"""The device that these tests run on.

It is CUDA where there is one. `PRISMREC_GPU_TESTS=cpu` runs the same tests on the CPU instead, as a
trial: what the CPU lacks is skipped by name. With neither, all of them are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

_WANTED = os.environ.get("PRISMREC_GPU_TESTS")
DEVICE = _WANTED or ("cuda" if torch.cuda.is_available() else "")
IS_CUDA = DEVICE == "cuda"
WHY_NOT = "no CUDA device; PRISMREC_GPU_TESTS=cpu runs what the CPU has"


def needs_cuda(what: str) -> pytest.MarkDecorator:
    """Skips a test on the CPU, which lacks something.

    Args:
        what: it lacks, as the reason.
    """
    return pytest.mark.skipif(not IS_CUDA, reason=f"the CPU has no {what}")


def has_dense_kernel() -> bool:
    """Whether this build of FBGEMM can hold data_parallel tables on the device."""
    if not IS_CUDA:
        return True
    import fbgemm_gpu  # noqa: F401 - it registers the operators

    # one operator for each optimizer and pooling would be too many to name; this one feeds them all
    name = "fbgemm::dense_embedding_codegen_lookup_function"
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


def param(value: Any, *, lacks: Sequence[Any] = (), what: str = "") -> Any:
    """A parameter that the CPU may lack.

    Args:
        value: the parameter.
        lacks: values that the CPU lacks.
        what: the reason says that the CPU has no such thing; the value if not given.
    """
    marks = [needs_cuda(what or f"kernel of {value}")] if value in lacks else []
    return pytest.param(value, marks=marks, id=str(value))
