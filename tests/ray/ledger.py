"""The judge of runs that were disturbed: which rows are in the weights."""

from __future__ import annotations

from collections import Counter

from prismrec.config import Recipe, load
from prismrec.data.encode.tables import encoders_of
from prismrec.data.ledger import Ledger
from prismrec.data.reader import Reader
from prismrec.data.source import open_data
from tests.ray import commands
from tests.ray.commands import Home


def every_row_once(at: Home, epochs: int = 2) -> None:
    """The final checkpoint's ledger holds every row of every epoch exactly once."""
    extra = commands.manifest(at.run())["extra"]
    ledger, recipe = Ledger.from_json(extra["ledger"]), load(at.recipe)
    reader = training_reader(recipe)
    assert ledger.epochs == tuple(range(epochs))
    assert ledger.num_rows == epochs * reader.num_rows == extra["state"]["rows_seen"]
    for epoch in ledger.epochs:
        rows: Counter[tuple[int, int, int]] = Counter()
        for lane, ranges in enumerate(ledger.ranges(epoch)):
            for start, stop in ranges:
                places = reader.rows_at(epoch, lane, start, stop)
                rows.update(zip(*(part.tolist() for part in places), strict=True))
        assert len(rows) == reader.num_rows
        assert set(rows.values()) == {1}


def training_reader(recipe: Recipe) -> Reader:
    source = open_data(recipe.data.path)
    encoders = encoders_of(recipe, source.schema)
    return Reader(source, recipe, "train", encoders, training=True)
