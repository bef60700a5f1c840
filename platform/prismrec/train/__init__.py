"""The loop and everything it calls: sharding, optimizers, evaluation, saving.

`prismrec.train(recipe)` starts a run: the function has the name of this package, so the package can
be called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from prismrec.config import Recipe


class _CallablePackage(ModuleType):
    def __call__(self, recipe: Recipe, *, ray: bool = True, resume: bool = False) -> Any:
        """`prismrec.jobs.api.train`."""
        return importlib.import_module("prismrec.jobs.api").train(recipe, ray=ray, resume=resume)


sys.modules[__name__].__class__ = _CallablePackage
