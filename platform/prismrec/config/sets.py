"""What the sets of a recipe cannot be, on its tables and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prismrec.config.data import Lookup
from prismrec.config.embedding import (
    COUPLING_OPTIMIZERS,
    MAX_WIDTH,
    EmbeddingSection,
    SetOptions,
)
from prismrec.config.errors import nearest
from prismrec.config.numbers import MARK
from prismrec.config.rows import once_for_all, rows_of

LINEAR = "linear"
"""Name of the set that holds first-order weights: column t is the weight for task t."""


def linear_set(num_tasks: int) -> SetOptions:
    """The set of first-order weights: as many columns as there are tasks, up to a multiple of 4."""
    return SetOptions(name=LINEAR, dim=-(-num_tasks // 4) * 4)


def set_problems(
    section: EmbeddingSection, features: Sequence[Lookup], linear: SetOptions | None
) -> Iterator[str]:
    """Why the sets of a model do not go with each other, the features and the tables.

    Args:
        section: `[embedding]`.
        features: those of the recipe that are looked up.
        linear: the set of first-order weights, for a model that has them.
    """
    yield from _name_problems(section)
    yield from _coverage_problems(section, features, covers_all=linear is not None)
    yield from once_for_all(_row_problems(section, features, linear))


def packing_problem(optimizer: str, widths: Sequence[int], layout: str, is_allowed: bool) -> str:
    """Why sets cannot share the rows of a table, from the key on; nothing if they can.

    Args:
        optimizer: rule that updates them.
        widths: of each set.
        layout: "packed" or "spread".
        is_allowed: whether they may change each other's steps.
    """
    if len(widths) == 1:
        return ""
    if optimizer in COUPLING_OPTIMIZERS and not is_allowed:
        return (
            f": {optimizer} scales a row as a whole, which couples packed sets; use layout = "
            "'separate', optimizer.name = 'adagrad', or embedding.allow_coupled_sets = true"
        )
    if layout == "packed" and sum(widths) > MAX_WIDTH:
        return (
            f".layout: packing {len(widths)} sets makes rows of width {sum(widths)}, over "
            f"{MAX_WIDTH}; use layout = 'spread' or 'separate', or narrower sets"
        )
    return ""


def _name_problems(section: EmbeddingSection) -> Iterator[str]:
    names = [each.name for each in section.sets]
    for index, name in enumerate(names):
        where = f"embedding.sets[{index}].name"
        if name == LINEAR:
            yield f"{where}: '{LINEAR}' is taken by the first-order weights; choose another name"
        elif not name or name.startswith("_") or any(part in name for part in (".", "/", "__")):
            yield (
                f"{where}: the name of a set is not empty, does not begin with '_' and cannot hold "
                f"'.', '/' or '__', got '{name}'; choose another name"
            )
        elif name in names[:index]:
            yield (
                f"{where}: sets[{names.index(name)}] is called '{name}' too; choose another name"
            )
    for table, options in section.tables.items():
        known = [each.name for each in section.resolved_sets]
        for index, each in enumerate(options.pretrained):
            if each.set not in known:
                yield (
                    f"embedding.tables.{table}.pretrained[{index}].set: no set is called "
                    f"'{each.set}'; {nearest(each.set, known)}"
                )


def _coverage_problems(
    section: EmbeddingSection, features: Sequence[Lookup], *, covers_all: bool
) -> Iterator[str]:
    names = [feature.name for feature in features]
    known = dict.fromkeys([*names, *(name.partition(MARK)[0] for name in names)])
    for index, each in enumerate(section.sets):
        where = f"embedding.sets[{index}].features"
        if each.features == ():
            yield (
                f"{where}: set '{each.name}' covers no feature; name at least one or leave "
                "`features` out"
            )
        for feature in each.features or ():
            if feature not in known:
                yield f"{where}: no sparse feature is called '{feature}'; {nearest(feature, known)}"
    missed = [n for n in names if not any(each.covers(n) for each in section.resolved_sets)]
    if missed and not covers_all:
        yield (
            "embedding.sets: no set covers "
            + " and ".join(f"'{name}'" for name in missed)
            + "; each feature has to be in the `features` of a set, or out of features.sparse"
        )


def _row_problems(
    section: EmbeddingSection, features: Sequence[Lookup], linear: SetOptions | None
) -> Iterator[tuple[str, str]]:
    """Problems of sets that share rows, each with its table."""
    for row in rows_of(section, features, linear):
        if row.layout in ("packed", "spread"):
            problem = packing_problem(
                row.optimizer.name, row.widths, row.layout, section.allow_coupled_sets
            )
            has_own = row.options.model_fields_set & {"layout", "optimizer"}
            where = f"embedding.tables.{row.table}" if has_own else "embedding"
            if problem:
                yield where + problem, row.table
