"""The synthetic world: users, items and days whose every probability is known.

A user's interests drift over item categories; what he liked or finished becomes his history,
whose effect is strongest for the target's own category and fades with position and time; for
some users the two tasks oppose each other; four numbers act without being monotone; items are
shown again and conversions come late. Days are cut into slots of six hours: rows of one slot
see the histories as they were when it began, as if logs arrived every six hours.

Legend: n rows of a slot, P behaviours in a history.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prismrec.config import UserError
from prismrec.data.schema import FILE_NAME, Column, DataSchema
from prismrec.data.world_state import WorldState
from prismrec.data.world_truth import (
    DAY_S,
    DIRECTORY,
    NAME,
    NUM_CITIES,
    NUM_DEVICES,
    NUM_HOURS,
    NUMERIC,
    TRUTH_FILE,
    Truth,
    WorldOptions,
    draw_truth,
    repeat_effect,
    write_truth,
    zipf_cumulative,
)
from prismrec.data.world_vectors import write_vectors
from prismrec.data.write import (
    GROUPS_OF_SMALL_DATA,
    MIN_GROUP_ROWS,
    Progress,
    staged,
    write_parts,
)

SLOTS_PER_DAY = 4
SLOT_S = DAY_S // SLOTS_PER_DAY
SLOT_SHARES = (0.12, 0.25, 0.30, 0.33)
"""Share of a day's rows in each slot: nights are quiet."""
CHUNK_ROWS = 2**16
MAX_GROUP_ROWS = 2**17
MAX_REQUEST_ROWS = 6
NUM_CANDIDATES = 3
REPEAT_SHARE = 0.1
"""Share of rows that show again one of the user's last items."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def write_world(
    out: Path,
    rows: int,
    days: int,
    seed: int,
    options: WorldOptions | None = None,
    progress: Progress | None = None,
) -> DataSchema:
    """Write a world of exactly `rows` exposures over `days` days; truth and vectors lie beside it.

    The same arguments give the same bytes. Memory does not grow with the rows but for the users'
    histories and the pairs of user and item seen: about 1 GiB at 10 million rows.

    Args:
        out: directory to make; another world that lies there is replaced.
        rows: exposures written, at least one a slot.
        days: `day` is 0..days-1.
        seed: of everything drawn.
        options: what else may be turned.
        progress: called after every slot with the rows written and all rows.

    Raises:
        UserError: fewer rows than slots, no day, or something else than a data set lies at `out`.
    """
    options = options or WorldOptions()
    if days < 1 or rows < days * SLOTS_PER_DAY * 4:
        raise UserError(
            f"{out}: {rows} rows over {days} days are too few; "
            f"a world needs a day or more and {SLOTS_PER_DAY * 4} rows a day"
        )
    truth = draw_truth(rows, days, seed, options)
    world = _World(truth, options, seed)
    schema = _schema(truth)
    group = min(MAX_GROUP_ROWS, max(MIN_GROUP_ROWS, -(-rows // GROUPS_OF_SMALL_DATA)))
    is_world = (out / DIRECTORY / TRUTH_FILE).is_file()
    if (out / FILE_NAME).is_file() and not is_world:
        raise UserError(
            f"{out}: a data set lies here already that is no synthetic world, so it is not replaced; "
            "remove it or choose another directory"
        )
    with staged(out, overwrite=is_world) as directory:
        tables = world.tables(_rows_per_slot(rows, days), progress)
        write_parts(directory, tables, schema, rows_per_group=group)
        about = {"rows": rows, "days": days, "seed": seed}
        write_truth(directory, truth, options, world.state.interest, about)
        write_vectors(directory, truth, seed)
    return schema


def world_schema(
    rows: int, days: int, seed: int, options: WorldOptions | None = None
) -> DataSchema:
    """The schema that `write_world` would write, without a row."""
    return _schema(draw_truth(rows, days, seed, options or WorldOptions()))


def _rows_per_slot(rows: int, days: int) -> list[int]:
    """Rows of every written slot; days differ by one row at most."""
    ends = np.cumsum(SLOT_SHARES)
    slots: list[int] = []
    for day in range(days):
        of_day = rows // days + (day < rows % days)
        cuts = [0, *(round(of_day * end) for end in ends[:-1]), of_day]
        slots += [after - before for before, after in itertools.pairwise(cuts)]
    return slots


class _World:
    """Lives through slots and gives their rows."""

    def __init__(self, truth: Truth, options: WorldOptions, seed: int) -> None:
        self.truth, self.options, self.seed = truth, options, seed
        self.state = WorldState.at_birth(truth.interest)
        num_items = len(truth.item_category)
        self._popularity = zipf_cumulative(num_items, options.item_exponent)
        self._item_of_rank = np.argsort(truth.item_rank)
        old = np.flatnonzero(truth.item_born < 0)
        self._stand_in = old[np.arange(num_items) % len(old)]
        self._active = np.cumsum(truth.activity)
        self._active[-1] = 1.0
        self._requests = 0

    def tables(self, slots: list[int], progress: Progress | None) -> Iterator[pa.Table]:
        """The rows of the written days, in order of time, after a warm-up that is not written."""
        lead = self.options.warmup_days * SLOTS_PER_DAY
        counts = [slots[number % SLOTS_PER_DAY] for number in range(lead)] + slots
        done, total = 0, sum(slots)
        for number, count in enumerate(counts):
            slot = number - lead
            rng = np.random.default_rng([self.seed, 1 + number])
            if number and slot % SLOTS_PER_DAY == 0:
                self.state.drift(rng, self.options.daily_persistence)
            yield from self._live(rng, slot, count)
            if slot >= 0 and progress is not None:
                done += count
                progress(done, total)

    def _live(self, rng: np.random.Generator, slot: int, count: int) -> Iterator[pa.Table]:
        """One slot: who sees what, what follows, and what is remembered. Warm-up gives no table."""
        truth, state = self.truth, self.state
        request, user, time = self._draw_requests(rng, slot, count)
        item = self._draw_items(rng, user, slot // SLOTS_PER_DAY)
        exposures = state.seen.add(user * len(truth.item_category) + item)
        behaved = np.zeros(count, bool)
        for start in range(0, count, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            columns: dict[str, object] = {
                "time": time[rows],
                "day": time[rows] // DAY_S,
                "request_id": request[rows],
                "user_id": user[rows],
                "item_id": item[rows],
                "exposures": exposures[rows],
            }
            self._add_outcomes(rng, columns)
            behaved[rows] = (columns["like"] == 1) | (columns["finish"] == 1)
            if slot >= 0:
                yield pa.table(columns)
        state.histories.append(user[behaved], item[behaved], time[behaved])
        state.shown.append(user, item)

    def _draw_requests(
        self, rng: np.random.Generator, slot: int, count: int
    ) -> tuple[Ints, Ints, Ints]:
        """Request, user and second of every row; rows of a request share user and second."""
        sizes = rng.integers(1, MAX_REQUEST_ROWS + 1, count)
        num_requests = int(np.searchsorted(np.cumsum(sizes), count)) + 1
        user = np.searchsorted(self._active, rng.random(num_requests), side="right")
        time = slot * SLOT_S + np.sort(rng.integers(0, SLOT_S, num_requests))
        owner = np.repeat(np.arange(num_requests), sizes[:num_requests])[:count]
        first = self._requests
        if slot >= 0:
            self._requests += num_requests
        return first + owner, user[owner], time[owner]

    def _draw_items(self, rng: np.random.Generator, user: Ints, day: int) -> Ints:
        """The best of a few popular items for the user's interest, or one shown lately."""
        truth, count = self.truth, len(user)
        draws = rng.random((count, NUM_CANDIDATES))
        ranks = np.searchsorted(self._popularity, draws, side="right")
        items = self._item_of_rank[ranks]
        items = np.where(truth.item_born[items] <= day, items, self._stand_in[items])
        liking = np.einsum("nk,nck->nc", self.state.interest[user], truth.item_vector[items])
        best = np.argmax(liking + rng.gumbel(size=liking.shape), axis=1)
        chosen = items[np.arange(count), best]
        lengths = self.state.shown.lengths(user)
        again = (rng.random(count) < REPEAT_SHARE) & (lengths > 0)
        back = (rng.random(count) * lengths).astype(np.int64)
        return np.where(again, self.state.shown.pick(user, back), chosen).astype(np.int64)

    def _add_outcomes(self, rng: np.random.Generator, columns: dict[str, object]) -> None:
        """Add histories, context, true probabilities and labels to the rows of a chunk."""
        truth = self.truth
        user, item, time = (_ints(columns, name) for name in ("user_id", "item_id", "time"))
        context = {
            "category": truth.item_category[item],
            "advertiser": truth.item_advertiser[item],
            "city": truth.city[user],
            "device": truth.device[user],
            "hour": time % DAY_S // 3600,
        }
        columns.update(context)
        interest = np.einsum("nk,nk->n", self.state.interest[user], truth.item_vector[item])
        history = self._add_histories(columns)
        like = self.options.like_bias + interest + history + truth.item_quality[0, item]
        like += repeat_effect(_ints(columns, "exposures"))
        sign = np.where(truth.opposed[user], -1.0, 1.0)
        finish = (
            self.options.finish_bias + sign * (interest + history) + truth.item_quality[1, item]
        )
        for name, effect in truth.context.items():
            like += effect[0, context[name]]
            finish += effect[1, context[name]]
        for name, number in NUMERIC.items():
            values = number.draw(rng, len(item)).astype(np.float32)
            missing = rng.random(len(item)) < number.missing_share
            like += np.where(missing, 0.0, number.like(values.astype(np.float64)))
            finish += np.where(missing, 0.0, number.finish(values.astype(np.float64)))
            columns[name] = pa.array(values, mask=missing)
        after_finish = self.options.conversion_bias + interest + truth.item_quality[2, item]
        chances = {"like": _sigmoid(like), "finish": _sigmoid(finish)}
        given_finish = _sigmoid(after_finish)
        happened = {task: rng.random(len(item)) < chance for task, chance in chances.items()}
        happened["conversion"] = happened["finish"] & (rng.random(len(item)) < given_finish)
        chances["conversion"] = chances["finish"] * given_finish
        delay = rng.exponential(truth.delay_s[context["category"]]).astype(np.int64)
        for task, labels in happened.items():
            columns[task] = labels.astype(np.int8)
            columns[f"p_{task}"] = chances[task].astype(np.float32)
        columns["p_conversion_given_finish"] = given_finish.astype(np.float32)
        columns["conversion_delay"] = pa.array(delay, mask=~happened["conversion"])
        columns["true_interest"] = interest.astype(np.float32)
        columns["true_history"] = history.astype(np.float32)

    def _add_histories(self, columns: dict[str, object]) -> Floats:
        """Add the three history columns and give the history's effect (n,)."""
        user, target, time = (_ints(columns, name) for name in ("user_id", "category", "time"))
        options, truth = self.options, self.truth
        lengths = self.state.histories.lengths(user)
        width = int(lengths.max(initial=0))
        items, seconds = self.state.histories.newest_first(user, width)
        categories = truth.item_category[items]
        gaps = (time[:, None] - seconds).astype(np.float32)
        position = np.arange(width, dtype=np.float32)
        exists = position < lengths[:, None]
        fading = np.exp(
            -position / np.float32(options.position_decay)
            - gaps / np.float32(options.gap_decay_days * DAY_S)
        )
        weights = truth.category_correlation.astype(np.float32)[target[:, None], categories]
        effect = np.where(exists, weights * fading, np.float32(0)).sum(axis=1, dtype=np.float64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        oldest_first = exists[:, ::-1]
        for name, values in (
            ("items", items.astype(np.int64)),
            ("categories", categories),
            ("times", gaps),
        ):
            flat = pa.array(values[:, ::-1][oldest_first])
            columns[f"history_{name}"] = pa.ListArray.from_arrays(offsets, flat)
        return options.history_strength * effect


def _ints(columns: dict[str, object], name: str) -> Ints:
    values = columns[name]
    assert isinstance(values, np.ndarray)
    return values


def _sigmoid(logits: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits))


def _schema(truth: Truth) -> DataSchema:
    items, categories = len(truth.item_category), len(truth.delay_s)

    def ids(count: int, description: str = "", bag: bool = False) -> Column:
        return Column(kind="ids" if bag else "id", num_ids=count, description=description)

    def other(description: str) -> Column:
        return Column(kind="other", description=description)

    numbers = {
        name: Column(kind="number", description="acts without being monotone") for name in NUMERIC
    }
    behaviours = "liked or finished by the user before, newest last"
    columns = {
        "time": Column(kind="time", description="seconds since the first day"),
        "day": other("0 for the first day"),
        "request_id": other("rows shown together to one user"),
        "user_id": ids(len(truth.opposed)),
        "item_id": ids(items),
        "category": ids(categories, "of the item"),
        "advertiser": ids(truth.num_advertisers, "of the item"),
        "city": ids(NUM_CITIES, "of the user"),
        "device": ids(NUM_DEVICES, "of the user"),
        "hour": ids(NUM_HOURS, "of the day"),
        "history_items": ids(items, behaviours, bag=True),
        "history_categories": ids(categories, f"categories of the items {behaviours}", bag=True),
        "history_times": Column(
            kind="numbers", description="seconds from each behaviour to this row"
        ),
        "exposures": Column(kind="number", description="how often the user saw the item before"),
        **numbers,
        "like": Column(kind="label"),
        "finish": Column(kind="label"),
        "conversion": Column(
            kind="label", description="after a finish, whenever it came: see conversion_delay"
        ),
        "conversion_delay": other(
            "seconds from the row to the conversion; null where there is none"
        ),
        "p_like": other("true probability"),
        "p_finish": other("true probability"),
        "p_conversion": other("true probability, over all rows"),
        "p_conversion_given_finish": other("true probability among finished rows"),
        "true_interest": other("log-odds of `like` that come from the user's interest"),
        "true_history": other("log-odds of `like` that come from the history"),
    }
    return DataSchema(name=NAME, columns=columns, source="synthetic, made by prismrec")
