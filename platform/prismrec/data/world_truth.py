"""What the synthetic world is made of, and what it says about the best that a model can reach.

Legend: U users, I items, C categories, K width of an interest, P behaviours in a history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prismrec.config import UserError, nearest
from prismrec.data.filters import row_filter
from prismrec.data.source import open_data

DIRECTORY = "_truth"
"""Beside the rows of a world: `truth.json` and Parquet files with the planted parameters."""
NAME = "world"
"""What the schema of every world is called."""
TRUTH_FILE = "truth.json"
TASKS = ("like", "finish", "conversion")
DAY_S = 86_400

INTEREST_WIDTH = 8
NUM_CITIES, NUM_DEVICES, NUM_HOURS = 50, 4, 24
ITEMS_PER_ADVERTISER = 20

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """What may be turned in the synthetic world.

    Args:
        num_users: users; a fortieth of the rows if not given.
        num_items: items; a fiftieth of the rows if not given.
        num_categories: item categories, at least 5.
        opposed_share: share of users for whom what speaks for `like` speaks against `finish`.
        new_item_share: share of items that appear only in the course of the days.
        item_exponent: exponent of the Zipf law of item popularity.
        category_exponent: exponent of the Zipf law of categories over items.
        history_strength: log-odds of the newest behaviour when it is of the target's category.
        position_decay: behaviours after which an effect has fallen to 1/e.
        gap_decay_days: days after which an effect has fallen to 1/e.
        daily_persistence: correlation of a user's interests on two days in a row.
        warmup_days: days lived before the first one written, so that histories exist.
        like_bias: log-odds of `like` before all effects; lower makes it rarer.
        finish_bias: the same of `finish`.
        conversion_bias: the same of a conversion after a finish.
    """

    num_users: int | None = None
    num_items: int | None = None
    num_categories: int = 24
    opposed_share: float = 0.3
    new_item_share: float = 0.1
    item_exponent: float = 0.9
    category_exponent: float = 0.6
    history_strength: float = 2.0
    position_decay: float = 3.0
    gap_decay_days: float = 10.0
    daily_persistence: float = 0.95
    warmup_days: int = 3
    like_bias: float = -2.6
    finish_bias: float = -1.2
    conversion_bias: float = -2.2

    def __post_init__(self) -> None:
        if self.num_categories < 5:
            raise UserError(f"num_categories: at least 5 are needed, got {self.num_categories}")
        for name in ("opposed_share", "new_item_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"{name}: a share between 0 and 1 is needed, got {getattr(self, name)}"
                )

    @classmethod
    def of(cls, texts: Sequence[str]) -> WorldOptions:
        """The options in texts such as `opposed_share=0.5`, the usual ones otherwise.

        >>> WorldOptions.of(["opposed_share=0.5", "num_items=900"]).num_items
        900

        Raises:
            UserError: no such option, or a value that it cannot have.
        """
        kinds = {each.name: float if each.type == "float" else int for each in fields(cls)}
        values: dict[str, Any] = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in kinds:
                raise UserError(f"option '{text}' of the world: {nearest(name, kinds)}")
            kind = kinds[name]
            try:
                values[name] = kind(value)
            except ValueError:
                number = "a whole number" if kind is int else "a number"
                raise UserError(
                    f"option '{text}' of the world: {name} is {number}, got '{value}'"
                ) from None
        return cls(**values)


@dataclass(frozen=True)
class NumericEffect:
    """A number of the context and its effect on the log-odds of the two tasks.

    Args:
        draw: values by generator and count.
        like: effect on `like`; `finish` likewise.
        low: end of the grid the effect is written on; `high` likewise.
        missing_share: share of rows where it is null and has no effect.
    """

    draw: Callable[[np.random.Generator, int], Floats]
    like: Callable[[Floats], Floats]
    finish: Callable[[Floats], Floats]
    low: float
    high: float
    missing_share: float = 0.0


def _bump(centre: float) -> Callable[[Floats], Floats]:
    return lambda x: 1.2 * np.exp(-(((x - centre) / 0.1) ** 2)) - 0.2


NUMERIC: dict[str, NumericEffect] = {
    "x1": NumericEffect(
        lambda rng, n: rng.standard_normal(n),
        lambda x: 0.7 * np.sin(2.5 * x),
        lambda x: 0.7 * np.cos(2.5 * x),
        -3,
        3,
    ),
    "x2": NumericEffect(lambda rng, n: rng.random(n), _bump(0.3), _bump(0.7), 0, 1),
    "x3": NumericEffect(
        lambda rng, n: rng.lognormal(1.0, 1.0, n),
        lambda x: 0.35 - 0.35 * (np.log(x) - 1) ** 2,
        lambda x: 0.35 * (np.log(x) - 1) ** 2 - 0.35,
        0.15,
        50,
    ),
    "x4": NumericEffect(
        lambda rng, n: 10 * rng.standard_normal(n),
        lambda x: 0.06 * np.abs(x) - 0.48,
        lambda x: 0.48 - 0.06 * np.abs(x),
        -30,
        30,
        missing_share=0.1,
    ),
}
"""None is monotone, two tell the tasks apart, one has a heavy tail, one is missing at times."""


def repeat_effect(exposures: Ints | Floats) -> Floats:
    """Log-odds by how often the user saw the item before: a reminder once, then fatigue.

    >>> repeat_effect(np.array([0, 1, 2, 5, 50]))
    array([ 0. ,  0.3,  0. , -0.9, -1.5])
    """
    seen = np.minimum(np.asarray(exposures, np.float64), 7)
    return np.where(seen == 0, 0.0, 0.6 - 0.3 * seen)


@dataclass(frozen=True)
class Truth:
    """Everything that is drawn once for a world.

    Args:
        category_correlation: (C, C) share of the history's strength by target and behaviour category.
        item_vector: (I, K).
        item_category: (I,).
        item_advertiser: (I,).
        item_quality: (3, I) log-odds by task.
        item_rank: (I,) popularity rank from 0.
        item_born: (I,) first day, negative when it was there before.
        interest: (U, K) before the first day.
        opposed: (U,) bool.
        activity: (U,) share of the requests.
        city: (U,); `device` likewise.
        context: log-odds by task of the low-cardinality columns, each (2, values).
        delay_s: (C,) mean delay of a conversion in seconds.
    """

    category_correlation: Floats
    item_vector: Floats
    item_category: Ints
    item_advertiser: Ints
    item_quality: Floats
    item_rank: Ints
    item_born: Ints
    interest: Floats
    opposed: NDArray[np.bool_]
    activity: Floats
    city: Ints
    device: Ints
    context: dict[str, Floats]
    delay_s: Floats

    @property
    def num_advertisers(self) -> int:
        """Advertisers of the world."""
        return self.context["advertiser"].shape[1]


def draw_truth(rows: int, days: int, seed: int, options: WorldOptions) -> Truth:
    """The planted parameters of a world of that size."""
    rng = np.random.default_rng([seed, 0])
    num_users = options.num_users or max(200, rows // 40)
    num_items = options.num_items or max(200, rows // 50)
    num_categories = options.num_categories
    advertisers = max(1, num_items // ITEMS_PER_ADVERTISER)
    centres = rng.standard_normal((num_categories, INTEREST_WIDTH))
    category = zipf_ranks(rng, num_items, num_categories, options.category_exponent)
    is_new = rng.random(num_items) < options.new_item_share
    is_new[0] = False  # so that there is something to show before new items come
    born = np.where(is_new, rng.integers(0, days, num_items), -1 - options.warmup_days)
    activity = rng.lognormal(0.0, 0.8, num_users)
    effects = {
        "advertiser": 0.3 * rng.standard_normal((2, advertisers)),
        "city": 0.2 * rng.standard_normal((2, NUM_CITIES)),
        "device": 0.3 * rng.standard_normal((2, NUM_DEVICES)),
        "hour": 0.3 * np.sin(np.arange(NUM_HOURS) / NUM_HOURS * 2 * np.pi + [[0.0], [2.0]]),
    }
    noise = rng.standard_normal((num_items, INTEREST_WIDTH))
    return Truth(
        category_correlation=correlation_of(num_categories),
        item_vector=(centres[category] + 0.7 * noise) / np.sqrt(INTEREST_WIDTH),
        item_category=category,
        item_advertiser=rng.integers(0, advertisers, num_items),
        item_quality=np.array([[0.6], [0.5], [0.5]]) * rng.standard_normal((3, num_items)),
        item_rank=rng.permutation(num_items),
        item_born=born,
        interest=rng.standard_normal((num_users, INTEREST_WIDTH)),
        opposed=rng.random(num_users) < options.opposed_share,
        activity=activity / activity.sum(),
        city=zipf_ranks(rng, num_users, NUM_CITIES, 1.0),
        device=rng.integers(0, NUM_DEVICES, num_users),
        context=effects,
        delay_s=3600.0 * rng.uniform(6, 72, num_categories),
    )


def correlation_of(num_categories: int) -> Floats:
    """(C, C): 1 with itself, 0.3 with the two neighbours on a ring, -0.3 with the opposite one.

    >>> correlation_of(6)[0]
    array([ 1. ,  0.3,  0. , -0.3,  0. ,  0.3])
    """
    first = np.zeros(num_categories)
    first[0], first[1], first[-1], first[num_categories // 2] = 1.0, 0.3, 0.3, -0.3
    steps = np.arange(num_categories)
    return first[(steps[None, :] - steps[:, None]) % num_categories]


def zipf_ranks(rng: np.random.Generator, count: int, num_ranks: int, exponent: float) -> Ints:
    """`count` ranks from 0, rank r with a weight of (r + 1) ** -exponent."""
    return np.searchsorted(zipf_cumulative(num_ranks, exponent), rng.random(count), side="right")


def zipf_cumulative(num_ranks: int, exponent: float) -> Floats:
    """(num_ranks,) cumulative probabilities of a Zipf law, the last above any draw from [0, 1)."""
    weights = np.arange(1, num_ranks + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights) / weights.sum()
    cumulative[-1] = 1.0
    return cumulative


def write_truth(
    directory: Path,
    truth: Truth,
    options: WorldOptions,
    last_interest: Floats,
    about: dict[str, int],
) -> None:
    """Write the planted parameters beside the rows of a world in `directory`.

    Args:
        directory: of the data set.
        truth: what was drawn.
        options: with which laws.
        last_interest: (U, K) interests at the end of the last day.
        about: further numbers for `truth.json`, such as the seed.
    """
    folder = directory / DIRECTORY
    folder.mkdir()
    text = {**about, **asdict(options), "num_users": len(truth.opposed), **_LAWS}
    text["num_items"] = len(truth.item_category)
    (folder / TRUTH_FILE).write_text(json.dumps(text, indent=1) + "\n")
    tables = {
        "users": {
            "user_id": np.arange(len(truth.opposed)),
            "opposed": truth.opposed,
            "activity": truth.activity,
            "first_interest": _rows(truth.interest),
            "last_interest": _rows(last_interest),
        },
        "items": {
            "item_id": np.arange(len(truth.item_category)),
            "category": truth.item_category,
            "advertiser": truth.item_advertiser,
            "popularity_rank": truth.item_rank,
            "born_day": truth.item_born,
            **{f"quality_{task}": truth.item_quality[row] for row, task in enumerate(TASKS)},
            "vector": _rows(truth.item_vector),
        },
        "categories": {
            "category": np.arange(len(truth.delay_s)),
            "mean_delay_s": truth.delay_s,
            "correlation": _rows(truth.category_correlation),
        },
        "numeric": _numeric_curves(),
        "context": _context_effects(truth),
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


_LAWS = {
    "like": "like_bias + interest + history + numbers + context + quality_like + repeat",
    "finish": "finish_bias + sign * (interest + history) + numbers + context + quality_finish; "
    "sign is -1 for opposed users",
    "conversion": "given finish: conversion_bias + interest + quality_conversion",
    "history": "sum over behaviours of history_strength * correlation[target, behaviour] "
    "* exp(-(position - 1) / position_decay) * exp(-gap_days / gap_decay_days); newest is position 1",
    "repeat": "0 at first sight, then 0.6 - 0.3 * min(exposures, 7)",
    "delay": "exponential with mean_delay_s of the category",
}


def _rows(matrix: Floats) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def _numeric_curves() -> dict[str, pa.Array]:
    grids = {name: np.linspace(effect.low, effect.high, 201) for name, effect in NUMERIC.items()}
    return {
        "column": pa.array([name for name in NUMERIC for _ in range(201)]),
        "value": pa.array(np.concatenate(list(grids.values()))),
        "like": pa.array(np.concatenate([NUMERIC[name].like(grids[name]) for name in NUMERIC])),
        "finish": pa.array(np.concatenate([NUMERIC[name].finish(grids[name]) for name in NUMERIC])),
    }


def _context_effects(truth: Truth) -> dict[str, pa.Array]:
    sizes = {name: effect.shape[1] for name, effect in truth.context.items()}
    effects = np.concatenate([truth.context[name] for name in sizes], axis=1)
    return {
        "column": pa.array([name for name, size in sizes.items() for _ in range(size)]),
        "id": pa.array(np.concatenate([np.arange(size) for size in sizes.values()])),
        "like": pa.array(effects[0]),
        "finish": pa.array(effects[1]),
    }


def best_auc(path: str | Path, task: str, where: Sequence[str] = ()) -> float:
    """The AUC of the true probabilities of a world: what no model can be expected to beat.

    Args:
        path: a world.
        task: `like`, `finish` or `conversion` (over all rows, not only the finished ones).
        where: conditions as in `data.splits` that its rows pass; every row if there are none.

    Raises:
        UserError: not a world, not one of its tasks, or labels that are all equal.
    """
    if task not in TASKS:
        raise UserError(f"task '{task}': {nearest(task, TASKS)}")
    source = open_data(str(path))
    if source.schema.name != NAME or f"p_{task}" not in source.schema.columns:
        raise UserError(f"{path}: is no synthetic world, so its best AUC is not known")
    rows = row_filter(where, source, "where").expression
    tables = [
        fragment.to_table(source.arrow(file), columns=[task, f"p_{task}"], filter=rows)
        for file in range(len(source.files))
        for fragment in source.fragments(file)
    ]
    table = pa.concat_tables(tables)
    labels, chances = table[task].to_numpy().astype(bool), table[f"p_{task}"].to_numpy()
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        raise UserError(f"{path}: task '{task}' has one class only in these rows, so it has no AUC")
    values, counts = np.unique(chances, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_rank[np.searchsorted(values, chances[labels])].sum())
    pairs = positives * (len(labels) - positives)
    return (rank_sum - positives * (positives + 1) / 2) / pairs
