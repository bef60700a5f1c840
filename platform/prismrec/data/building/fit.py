"""What a recipe needs fitted to its training rows, made as a part of the data set that is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismrec.config import Recipe, UserError, load
from prismrec.data.building.plan import BuildPlan
from prismrec.data.encode.numbers.statistics import needs_statistics
from prismrec.data.encode.vocabulary import vocabularies
from prismrec.data.filters import count_matching, row_filter
from prismrec.data.fit_numbers import PartFit, write_statistics
from prismrec.data.source import DataSource, open_data
from prismrec.data.vocabulary import IdCounter, VocabularyFile, count_ids, files_of, write_counted

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Fit:
    """What is fitted.

    Args:
        recipe: the recipe.
        source: the data set as it is written so far.
        columns: columns whose ids are counted, by the file of the vocabulary.
        firsts: for each row group, training rows before it.
    """

    recipe: Recipe
    source: DataSource
    columns: dict[str, tuple[str, ...]]
    firsts: tuple[int, ...]


def check_paths(plan: BuildPlan, out: Path) -> None:
    """Whether the files that the plan's recipe names lie in the data set, and the recipe reads it.

    Raises:
        UserError: one lies elsewhere, or there is none.
    """
    if plan.recipe is not None:
        _files(load(plan.recipe), plan, out)


def fit_recipe(
    plan: BuildPlan, stage: Path, out: Path, run: Callable[..., Iterator[Any]], tell: Tell
) -> dict[str, str]:
    """Write the vocabularies and statistics of the plan's recipe beside the rows.

    They equal those that `prismrec data vocabulary --recipe` and `prismrec data fit` would write.

    Args:
        plan: names the recipe.
        stage: the data set as it is written so far.
        out: where it will lie.
        run: does the work on every row group.
        tell: told how far it is.

    Returns:
        The files by what they are, `statistics` or the name of a table, as they will lie.

    Raises:
        UserError: the recipe does not fit the data set, or a number or a table has no value.
    """
    if plan.recipe is None:
        return {}
    recipe = load(plan.recipe)
    words, statistics = _files(recipe, plan, out)
    source = open_data(str(stage))
    groups = range(len(source.group_rows))
    columns = {str(each.out): each.columns for each in words}
    fit = _Fit(recipe, source, columns, _firsts(recipe, source))
    counters = {name: IdCounter() for name in columns}
    numbers: PartFit | None = None
    tell("Fitting", 0, len(groups))
    for done, (counted, part) in enumerate(run(_fit_group, fit, groups), 1):
        for name, each in counted.items():
            counters[name].join(each)
        if numbers is not None and part is not None:
            numbers.join(part)
        numbers = numbers or part
        tell("Fitting", done, len(groups))
    found = {}
    for table, each in zip(vocabularies(recipe), words, strict=True):
        write_counted(_staged(each.out, stage, out), counters[str(each.out)])
        found[table] = str(each.out)
    if statistics is not None and numbers is not None:
        write_statistics(numbers.statistics(source), _staged(statistics, stage, out))
        found["statistics"] = str(statistics)
    return found


def _fit_group(fit: _Fit, group: int) -> tuple[dict[str, IdCounter], PartFit | None]:
    conditions = fit.recipe.data.splits.train
    counted = count_ids(fit.source, fit.columns, conditions, groups=[group]) if fit.columns else {}
    part = None
    if needs_statistics(fit.recipe):
        part = PartFit(fit.recipe, fit.source)
        part.read(fit.source, fit.firsts[group], [group])
    return counted, part


def _firsts(recipe: Recipe, source: DataSource) -> tuple[int, ...]:
    """For each row group, the training rows before it."""
    rows = row_filter(recipe.data.splits.train, source, "data.splits.train")
    counts = source.group_rows
    if rows.expression is not None:
        counts = count_matching(source, rows.expression)
    return tuple((counts.cumsum() - counts).tolist())


def _files(recipe: Recipe, plan: BuildPlan, out: Path) -> tuple[list[VocabularyFile], Path | None]:
    """The vocabularies and the statistics that are to be written."""
    if Path(recipe.data.path).absolute() != out.absolute():
        raise UserError(
            f"recipe: {plan.recipe} reads {recipe.data.path}, but {out} is built; set its data.path"
        )
    words = files_of(recipe) if vocabularies(recipe) else []
    named = recipe.features.statistics if needs_statistics(recipe) else None
    statistics = Path(named) if named is not None else None
    for each in [*(word.out for word in words), *([statistics] if statistics else [])]:
        inside = each.absolute().is_relative_to(out.absolute())
        if not inside or not each.absolute().relative_to(out.absolute()).parts[0].startswith("_"):
            raise UserError(
                f"recipe: {plan.recipe} names {each}; a file that is built with the data set lies in "
                f"it and its name begins with '_', such as {out}/_fitted/{each.name}"
            )
    if not words and statistics is None:
        why = "names no vocabulary and no statistics"
        if recipe.features.statistics is not None:
            why = (
                "names no vocabulary, and none of its numbers has an encoding that needs statistics"
            )
        raise UserError(f"recipe: {plan.recipe} {why}; leave `recipe` out")
    return words, statistics


def _staged(path: Path, stage: Path, out: Path) -> Path:
    """Where a file of the data set lies until that is in place."""
    return stage / path.absolute().relative_to(out.absolute())
