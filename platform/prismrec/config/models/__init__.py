"""Recipe section of the model: a name and the fields of that model, one class each.

The builders that turn a section into modules are `prismrec.models.zoo`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from prismrec.config.external import PATTERN
from prismrec.config.models.base import Common
from prismrec.config.models.heads import HEADS
from prismrec.config.models.multitask import MULTITASK
from prismrec.config.models.single import SINGLE
from prismrec.config.section import Section


class Custom(Section):
    """A model outside the package, called as `build(fields, options)`."""

    name: str = Field(pattern=PATTERN)
    """`package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the function as they stand."""
    reads_domain: bool = False
    """Whether it is given the domain of each row, which `features.domain` then has to name."""


BUILT_IN: dict[str, type[Common]] = {**SINGLE, **MULTITASK, **HEADS}
"""Every model of the zoo by its recipe name."""
