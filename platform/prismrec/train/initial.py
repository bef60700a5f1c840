"""The weights that a run starts with: those of another run, vectors from files, or drawn ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from prismrec.checkpoint.directory import find_checkpoint
from prismrec.checkpoint.maps import restore_maps
from prismrec.checkpoint.tables import CheckpointTables
from prismrec.config import Recipe, UserError
from prismrec.config.train import WarmStart
from prismrec.data.encode.tables import encoded_tables
from prismrec.data.source import DataSource
from prismrec.embeddings import access
from prismrec.embeddings.row_ids import TableIds
from prismrec.models import spec_of
from prismrec.train.matches import Match, Matches, all_matches
from prismrec.train.pretrained import (
    check_pretrained,
    describe_pretrained,
    fill_pretrained,
    wanted_vectors,
)
from prismrec.train.process_group import Ranks
from prismrec.train.run_files import RunFiles
from prismrec.train.sharding import ShardedModel
from prismrec.train.warm_start import TableStarter, fill_dense

_log = logging.getLogger(__name__)


def with_absolute_sources(recipe: Recipe) -> Recipe:
    """The recipe, with paths of what it starts with that mean the same in every process."""
    tables = {
        name: options.model_copy(
            update={
                "pretrained": tuple(
                    each.model_copy(update={"path": str(Path(each.path).absolute())})
                    for each in options.pretrained
                )
            }
        )
        for name, options in recipe.embedding.tables.items()
    }
    embedding = recipe.embedding.model_copy(update={"tables": tables})
    train = recipe.train
    if train.warm_start is not None:
        source = str(Path(train.warm_start.source).absolute())
        section = train.warm_start.model_copy(update={"source": source})
        train = train.model_copy(update={"warm_start": section})
    return recipe.model_copy(update={"embedding": embedding, "train": train})


def check_start(recipe: Recipe, source: DataSource) -> None:
    """Refuse what can be known to be wrong before a process starts.

    Raises:
        UserError: there is no such checkpoint, a mapping names what is not there, or see
            `check_pretrained`.
    """
    spec = spec_of(recipe, source.schema)
    ids = TableIds(encoded_tables(recipe, source.schema))
    section = recipe.train.warm_start
    if section is not None:
        weights = section.model_copy(update={"optimizer_state": False})
        with CheckpointTables(find_checkpoint(section.source)) as tables:
            TableStarter(weights, tables, spec, ids)
    check_pretrained(recipe, spec, ids)


def start_weights(
    recipe: Recipe, source: DataSource, sharded: ShardedModel, files: RunFiles
) -> list[Matches]:
    """Fill the freshly drawn weights with what the recipe takes from elsewhere, and put down what.

    Collective: every rank calls it.

    Returns:
        What was filled: nothing, one or two reports, which rank 0 has also written to
        `RunFiles.matched` and `run.json`.

    Raises:
        UserError: what is asked for is missing or does not fit, or `strict` finds no match.
    """
    ids, ranks = TableIds(encoded_tables(recipe, source.schema)), sharded.ranks
    found = []
    section = recipe.train.warm_start
    if section is not None:
        found.append(_from_run(section, ids, sharded))
    if wanted_vectors(recipe):
        filled = _on_all_ranks(
            ranks, lambda: fill_pretrained(recipe, sharded.spec, ids, sharded.shards())
        )
        found.append(describe_pretrained(filled))
    if found:
        access.drop_cached_rows(sharded.dmp)
    if found and ranks.is_first:
        text = all_matches(found)
        _log.info("%s", text)
        files.matched.write_text(text)
        files.record({each.title: each.to_json() for each in found})
    return found


def _from_run(section: WarmStart, ids: TableIds, sharded: ShardedModel) -> Matches:
    path = _chosen(section.source, sharded.ranks)

    def fill() -> Iterable[Match]:
        with CheckpointTables(path) as tables:
            starter = TableStarter(section, tables, sharded.spec, ids)
            _adopt_maps(starter.managed_sources, tables, sharded)
            yield from starter.fill(sharded.shards())

    filled = _on_all_ranks(sharded.ranks, fill)
    with CheckpointTables(path) as tables:
        if any(match.kind == "table state" and match.matched for match in filled):
            before = tables.reader.manifest.extra.get("steps_before", 0)
            sharded.steps_before = before + tables.step
            sharded.set_steps_done(0)
        dense = fill_dense(
            section,
            tables,
            {
                "dense": sharded.dense(),
                "dense_optimizer": sharded.dense_optimizer(),
                "ema": sharded.averages(),
            },
        )
    matches = Matches("warm_start", str(path), (*filled, *dense))
    if section.strict:
        matches.refuse_partial("train.warm_start.strict")
    return matches


def _adopt_maps(names: dict[str, str], tables: CheckpointTables, sharded: ShardedModel) -> None:
    """Give the rows of managed tables to the ids that have them in another run.

    Args:
        names: of tables, here and there.
        tables: the other run's checkpoint, open.
        sharded: this run's model.
    """
    ours = {state.table: state for state in sharded.managed.blank() if state.table in names}
    theirs = [replace(state, table=names[table]) for table, state in ours.items()]
    restore_maps(tables.reader.path, theirs)
    adopted = [replace(state, table=name) for name, state in zip(ours, theirs, strict=True)]
    sharded.managed.adopt(adopted, tables.step)


def _chosen(source: str, ranks: Ranks) -> Path:
    """The checkpoint that rank 0 finds: ranks may see a shared directory differently."""
    path, problem = "", ""
    if ranks.is_first:
        try:
            path = str(find_checkpoint(source))
        except UserError as error:
            problem = f"train.warm_start.source: {error.message}"
    problem = ranks.first_text(problem)
    if problem:
        raise UserError(problem)
    return Path(ranks.first_text(path))


def _on_all_ranks(ranks: Ranks, fill: Callable[[], Iterable[Match]]) -> list[Match]:
    """The matches with the rows of all ranks.

    A rank that met a mistake tells the others, so that all of them end by the same sentence.
    """
    matches: list[Match] = []
    problem = ""
    try:
        matches = list(fill())
    except UserError as error:
        problem = error.message
    problem = ranks.first_text(problem)
    if problem:
        raise UserError(problem)
    counts = torch.tensor([match.matched for match in matches], dtype=torch.int64)
    totals = ranks.sum(counts.to(ranks.device)).tolist()
    return [replace(m, matched=total) for m, total in zip(matches, totals, strict=True)]
