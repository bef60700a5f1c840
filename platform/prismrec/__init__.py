"""prismrec trains ads and recommendation ranking models with sharded embeddings.

>>> import prismrec
>>> prismrec.load.__module__
'prismrec.config.load'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prismrec.config import ConfigError, Recipe, UserError, load
    from prismrec.jobs.api import analyze, evaluate, plan, predict, semantic_ids, train
    from prismrec.jobs.plan import Machines

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "prismrec.config",
    "Machines": "prismrec.jobs.plan",
    "Recipe": "prismrec.config",
    "UserError": "prismrec.config",
    "load": "prismrec.config",
    "analyze": "prismrec.jobs.api",
    "evaluate": "prismrec.jobs.api",
    "plan": "prismrec.jobs.api",
    "predict": "prismrec.jobs.api",
    "semantic_ids": "prismrec.jobs.api",
}

__all__ = [
    "ConfigError",
    "Machines",
    "Recipe",
    "UserError",
    "analyze",
    "evaluate",
    "load",
    "plan",
    "predict",
    "semantic_ids",
    "train",
]


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used: `import prismrec` loads no torch."""
    if name == "train":
        return importlib.import_module("prismrec.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'prismrec' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
