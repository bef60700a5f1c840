"""What a recipe with sequences cannot ask for."""

from __future__ import annotations

from collections.abc import Iterator

from prismrec.config.data import FeaturesSection, SparseFeature
from prismrec.config.embedding import Communication, EmbeddingSection, TableOptions
from prismrec.config.errors import nearest
from prismrec.config.ids import ManagedIds
from prismrec.config.sequences import SequenceFeature

SEQUENCE_KINDS = ("data_parallel", "table_wise", "column_wise", "row_wise")
"""Ways to place a table whose vectors are not pooled."""


def sequence_problems(features: FeaturesSection, section: EmbeddingSection) -> Iterator[str]:
    """Why sequences do not go with the features and the tables; nothing if they do.

    Args:
        features: `[features]`.
        section: `[embedding]`.
    """
    if not features.sequences:
        return
    names = [each.name for each in features.sequences]
    for name in sorted({each for each in names if names.count(each) > 1}):
        yield f"features.sequences: two are called '{name}'; choose another name"
    for index, sequence in enumerate(features.sequences):
        for problem in _target_problems(sequence, features.sparse):
            yield f"features.sequences[{index}].{problem}"
        for problem in _time_problems(sequence, features.time):
            yield f"features.sequences[{index}].{problem}"
    for table in sorted(features.sequence_tables):
        yield from _table_problems(table, section)
        for at, feature in enumerate(features.sparse):
            if feature.table_name == table and feature.weights:
                yield f"features.sparse[{at}].table: {pooled_problem(feature, table)}"
    yield from _section_problems(section)


def pooled_problem(feature: SparseFeature, table: str) -> str:
    """Why a bag cannot look up the table of a sequence.

    Args:
        feature: the bag.
        table: name of the table.
    """
    return (
        f"'{feature.name}' is a bag, and table '{table}' gives a sequence its vectors one by one, "
        "without pooling; give the bag a table of its own"
    )


def _target_problems(sequence: SequenceFeature, sparse: tuple[SparseFeature, ...]) -> Iterator[str]:
    known = [each.name for each in sparse]
    for at, each in enumerate(sequence.behaviours):
        if each.target not in known:
            yield (
                f"behaviours[{at}].target: no sparse feature is called '{each.target}'; "
                + nearest(each.target, known)
            )


def _time_problems(sequence: SequenceFeature, time: str | None) -> Iterator[str]:
    if sequence.gaps and sequence.times:
        yield "times: `gaps` say the same; give one of the two"
    if sequence.times and time is None:
        yield "times: features.time has to name the column with the time of a row; or give `gaps`"
    # Not which keys are given: a resolved recipe gives them all.
    fields = SequenceFeature.model_fields
    given = {key for key in fields if getattr(sequence, key) != fields[key].default}
    if not sequence.has_gaps:
        for key in ("buckets", "num_buckets"):
            if key in given:
                yield f"{key}: no column tells when a behaviour was; give `gaps` or `times`"
    if not sequence.times and "time_unit" in given:
        yield "time_unit: it is that of `times`, which are not given; leave it out"


def _table_problems(table: str, section: EmbeddingSection) -> Iterator[str]:
    options = section.tables.get(table, TableOptions())
    where = f"embedding.tables.{table}"
    if isinstance(options.ids, ManagedIds):
        yield (
            f"{where}.ids: rows are given to the ids of pooled features only, and a sequence looks "
            "this table up; use ids = 'hash' or 'vocabulary'"
        )
    for key, bad, good in (
        ("layout", ("spread",), "'packed' or 'separate'"),
        (
            "sharding",
            ("table_row_wise", "table_column_wise", "grid"),
            " or ".join(f"'{kind}'" for kind in SEQUENCE_KINDS),
        ),
    ):
        own, everyones = getattr(options, key), getattr(section, key)
        if (own or everyones) in bad:
            yield (
                f"{f'{where}.{key}' if own else f'embedding.{key}'}: '{own or everyones}' is for "
                f"tables of pooled features, and a sequence looks up '{table}'; set {good} for it"
            )


def _section_problems(section: EmbeddingSection) -> Iterator[str]:
    if section.communication != Communication():
        yield (
            "embedding.communication: the vectors of sequences travel as they are, and so have all "
            "others to; leave it out, or leave features.sequences out"
        )
    if section.ranks_per_copy is not None:
        yield (
            "embedding.ranks_per_copy: tables of sequences have one copy over all ranks; leave it "
            "out, or leave features.sequences out"
        )
