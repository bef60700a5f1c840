"""The benchmark of the tables: sizes, ids, bytes and shared memory as they say, and its page and chart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from benchmarks.embeddings.__main__ import arguments, plan_of, take, write
from benchmarks.embeddings.cases import (
    Sizes,
    distinct,
    draw,
    grouped,
    one_rank,
    traffic,
    two_ranks,
)
from benchmarks.embeddings.chart import svg
from benchmarks.embeddings.goals import Goal, goals, rate
from benchmarks.embeddings.memory import GOAL, measure_memory
from benchmarks.embeddings.page import added, markdown
from benchmarks.embeddings.peers import RATE, embedding_bags, ours, peers_of, raw, torchrec_tables
from benchmarks.embeddings.room import Room
from benchmarks.embeddings.timing import Windows, measure, prepare, step
from benchmarks.embeddings.worker import summary
from prismrec.train.process_group import Ranks, process_group

CPU = Sizes("cpu", 26, 200_000, 4_096)
SMALL = Sizes("cpu", 3, 64, 8)
FACTS = {
    "processor": "P",
    "cores": 2,
    "flags": ["avx2"],
    "memory_gib": 4.0,
    "python": "3.11",
    "versions": {"torch": "2"},
    "commit": "abc",
}


def test_the_largest_case_has_as_many_weights_at_every_width() -> None:
    cases = [CPU.case(8, width, 1, "uniform") for width in (16, 64, 128)]
    assert {case.numbers for case in cases} == {26 * 200_000 * 128}
    assert [case.batch for case in cases] == [4_096, 2_048, 1_024]
    assert CPU.case(1, 16, 20, "zipf").batch == 512
    assert Sizes("cuda", 26, 1_000_000, 65_536).case(4, 128, 1, "uniform").batch == 65_536


def test_every_combination_is_measured_with_modules_made_once() -> None:
    cases = one_rank(CPU, (1, 2, 4, 8), (16, 64, 128), (1, 20))
    assert len(set(cases)) == 4 * 3 * 2 * 2
    assert [len(group) for group in grouped(cases)] == [4] * 12
    both = two_ranks(CPU, (1, 4), (16, 64), (1, 20))
    assert {(case.kind, case.k, case.width, case.bag, case.ids) for case in both} == {
        (kind, *rest)
        for kind in ("table_wise", "row_wise")
        for rest in [
            (1, 16, 1, "uniform"),
            (4, 16, 1, "uniform"),
            (4, 16, 1, "zipf"),
            (4, 16, 20, "uniform"),
            (4, 64, 1, "uniform"),
        ]
    }


def test_zipf_ids_have_the_popularity_that_they_should() -> None:
    case = replace(SMALL.case(1, 16, 1, "zipf"), rows=1_000, batch=20_000)
    (ids,) = draw(case, 1)
    assert ids.shape == (3, 20_000, 1)
    counts = torch.bincount(ids.flatten(), minlength=1_000).sort(descending=True).values.double()
    expected = torch.arange(1, 1_001, dtype=torch.double).pow(-1.05)
    expected *= 60_000 / expected.sum()
    torch.testing.assert_close(counts[:10], expected[:10], rtol=0.1, atol=0)
    popular = torch.bincount(ids.flatten(), minlength=1_000).topk(2).indices
    assert (popular[0] - popular[1]).abs() > 1, "popular ids are no neighbours"
    assert torch.equal(ids, draw(case, 1)[0]), "every rank draws the same"


def test_distinct_ids_of_other_tables_count_apart() -> None:
    case = replace(SMALL.case(1, 16, 1, "uniform"), tables=2, batch=3)
    steps = [
        torch.tensor([[[1], [1], [2]], [[1], [5], [6]]]),
        torch.zeros(2, 3, 1, dtype=torch.long),
    ]
    assert distinct(case, steps) == (5 + 2) / 2


def test_bytes_that_a_step_has_to_move() -> None:
    case = replace(SMALL.case(2, 16, 1, "uniform"), tables=1, rows=10, batch=3, bag=2)
    # 6 ids of 8 bytes, 6 rows and 3 outputs of 2 x 16 x 4; 4 rows changed: weight and state, both ways
    packed = traffic(case, "packed", 4)
    assert (packed.forward, packed.update) == (48 + 6 * 128 + 3 * 128, 3 * 128 + 4 * 4 * 128)
    assert packed.total == packed.forward + packed.update
    assert traffic(case, "separate", 4).forward == packed.forward + 48
    # written for every id, read to be added up, and the same for the sums
    assert traffic(case, "sparse", 4).update == packed.update + 2 * 6 * 128 + 2 * 4 * 128
    # gradient, weight and state of ten rows, both ways
    assert traffic(case, "dense", 4).update == 3 * 128 + 6 * 10 * 128


def test_tables_share_one_buffer_and_are_never_filled() -> None:
    room = Room(1 << 16, torch.device("cpu"))
    with room:
        first = nn.Embedding(1_024, 16)
        other = torch.zeros(1_024, 16)
        small = torch.zeros(10)
        state = torch.optim.Adagrad(first.parameters(), lr=RATE).state[first.weight]["sum"]
        too_large = torch.zeros(1 << 16)
    start = room.buffer.data_ptr()
    assert first.weight.data_ptr() == start
    assert (other.data_ptr() - start, state.data_ptr() - start) == (65_536, 131_072)
    assert all((each == 1).all() for each in (first.weight, other, state))
    assert (small == 0).all()
    assert (too_large == 0).all()
    with room:
        assert torch.empty(2_000, 16).data_ptr() == start
    assert torch.zeros(2_000, 16).sum() == 0, "outside it nothing is shared"


def _ranks() -> Ranks:
    return Ranks(0, 1, 0, 1, torch.device("cpu"))


def test_the_ways_look_up_the_same_sums_and_take_the_same_step() -> None:
    case = SMALL.case(2, 16, 20, "zipf")
    (ids,) = draw(case, 1)
    with process_group("cpu"):
        makers = [
            lambda: ours(case, _ranks(), "packed"),
            lambda: ours(case, _ranks(), "separate"),
            lambda: raw(case, _ranks(), "packed"),
            lambda: raw(case, _ranks(), "separate"),
            lambda: torchrec_tables(case, _ranks()),
            lambda: embedding_bags(case, _ranks()),
        ]
        for make in makers:
            with Room(1 << 16, torch.device("cpu"), least=256):
                peer = make()
            timed = prepare(peer, [ids], torch.full((3 * 2 * 16,), 1e-3), _ranks())
            for steps_before in range(2):
                for output in peer.forward(timed.batches[0]):
                    # Rows of ones; a step takes no more than the rate off each of the 20.
                    away = (20 - output.detach()).abs()
                    assert (away <= 20 * RATE * steps_before + 1e-5).all(), peer.name
                step(timed, 0)
            assert [g.shape for g in timed.gradients] == [
                o.shape for o in peer.forward(timed.batches[0])
            ]


def test_a_measured_peer_takes_as_many_steps_as_it_says() -> None:
    case = SMALL.case(4, 16, 1, "uniform")
    with process_group("cpu"):
        peers = [make() for make in peers_of(case, _ranks())]
        assert [peer.name for peer in peers] == [
            "ours",
            "ours_separate",
            "ebc",
            "tbe",
            "tbe_separate",
            "embedding_bag",
            "embedding",
        ]
        timed = [
            prepare(peer, draw(case, 2), torch.ones(case.batch * 3 * 64), _ranks())
            for peer in peers
        ]
        measure(timed, Windows(3, 1e-6), _ranks())
    for each in timed:
        assert len(each.total) == len(each.forward) == 3
        assert each.steps == 1
        assert all(
            0 < forward < total for forward, total in zip(each.forward, each.total, strict=True)
        )


def test_memory_at_its_peak_is_a_tenth_more_than_needed_at_most() -> None:
    case = replace(CPU.case(4, 16, 1, "uniform"), rows=30_000, batch=512)
    memory = measure_memory(case, "packed", threads=1)
    numbers = 26 * 30_000 * 64
    assert memory.needed == 2 * 4 * numbers + 26 * 512 * 8 + 2 * 26 * 512 * 64 * 4
    assert 0.9 < memory.ratio <= GOAL, memory


def test_a_failed_memory_run_says_why() -> None:
    with pytest.raises(RuntimeError, match="memory: .*--layout: invalid choice: 'sideways'"):
        measure_memory(SMALL.case(4, 16, 1, "uniform"), "sideways", threads=1)


def test_ratios_are_taken_window_by_window() -> None:
    assert summary([30.0, 20.0, 80.0], [10.0, 10.0, 20.0, 7.0]) == {
        "milliseconds": 30.0,
        "ratio": 3.0,
        "range": [20.0, 80.0],
        "ratio_range": [2.0, 4.0],
    }


def _row(peer: str, milliseconds: float, ratio: float, **case: Any) -> dict[str, Any]:
    whole = {
        "k": 4,
        "width": 16,
        "bag": 1,
        "ids": "uniform",
        "ranks": 1,
        "rows": 50,
        "device": "cpu",
    }
    return {
        "case": whole | case,
        "peer": peer,
        "milliseconds": milliseconds,
        "ratio": ratio,
        "bytes": 2_000_000,
        "kind": "one_rank" if case.get("ranks", 1) == 1 else "row_wise",
        "batch": 8,
        "data_type": "fp32",
        "forward_milliseconds": milliseconds / 2,
        "forward_bytes": 1_000_000,
        "ids_sent": None if case.get("ranks", 1) == 1 else 24,
    }


def _document() -> dict[str, Any]:
    document: dict[str, Any] = {
        "command": "c",
        "machine": FACTS,
        "device": "cpu",
        "tables": 3,
        "windows": 2,
        "seconds": 0.1,
        "threads": 2,
        "copy_gb_per_s": None,
        "rows": [],
        "curve": None,
        "memory": [],
    }
    take(document, {"copy_gb_per_s": 10.0})
    take(document, {"rows": [_row("ours", 10, 1), _row("tbe", 9.4, 0.94), _row("ebc", 17, 1.7)]})
    take(document, {"rows": [_row("ours", 10, 1, ranks=2), _row("ebc", 12, 1.2, ranks=2)]})
    points = [
        {"k": 1, "packed": [4.0, 6.0], "separate": [4.0, 6.0]},
        {"k": 2, "packed": [5.0, 9.0], "separate": [8.0, 12.0]},
    ]
    take(document, {"curve": {**document["rows"][0]["case"], "k": None}, "points": points})
    run = {
        **document["rows"][0]["case"],
        "layout": "packed",
        "needed": 100 << 20,
        "added": 105 << 20,
    }
    document["memory"] = [run | {"ratio": 1.05, "goal": 1.1}]
    return document


def test_the_page_says_what_was_reached() -> None:
    page = markdown(_document())
    case = "K = 4, 16 wide, bags of 1, uniform"
    assert f"| FBGEMM's kernel over ours, packed | 0.95 | 0.94 | 0.94 | 0 of 1 | {case} |" in page
    assert (
        f"| K tables over packed, K = 4, 16 wide, 1 rank | 1.60 | 1.70 | 1.70 | 1 of 1 | {case} |"
        in page
    )
    assert f"2 ranks | 1.25 | 1.20 | 1.20 | 0 of 1 | {case}, row_wise |" in page
    assert "FBGEMM's kernel over ours, separate" not in page, "it was not measured"
    assert "| 16 | 1 | uniform | 4 | 50 | 8 | 10.0 | 9.4 (0.94) | 17.0 (1.70) |" in page
    assert "| 4 | 1 | row_wise | packed | 24 |" in page
    assert "| 2 | 7.0 | +2.0 | 10.0 | +5.0 |" in page
    assert "| packed | 4 | 16 | 1 | 50 | 100 | 105 | 1.050 ok |" in page
    assert "Not measured on a GPU." in page


def test_what_a_set_adds_is_taken_window_by_window() -> None:
    curve = _document()["curve"]
    assert added(curve, "packed") == [2.0]
    assert added(curve, "separate") == [5.0]


def test_goals_on_cuda_are_shares_of_a_copy() -> None:
    document = _document() | {"device": "cuda", "copy_gb_per_s": 4_000.0}
    document["machine"] = FACTS | {"device": "H"}
    wide = _row("ours", 1e-3, 1, width=128) | {"batch": 65_536}
    half = wide | {"data_type": "fp16", "bytes": 1}
    small = wide | {"batch": 4_096, "bytes": 1}
    # 1 MB in half a microsecond and 2 MB in one: 2,000 GB/s, half of a copy
    assert (rate(wide), rate(wide, "forward_")) == (2_000, 2_000)
    document["rows"] = [wide, half, small, _row("ours_separate", 3e-3, 3), _row("tbe", 1e-3, 0.98)]
    lines = [goal.line(document["rows"]) for goal in goals(document)]
    assert [line.split("|")[2:6] for line in lines if line] == [
        [" 0.97 ", " 0.98 ", " 0.98 ", " 1 of 1 "],
        [" 0.75 ", " 0.50 ", " 0.50 ", " 0 of 1 "],
        [" 0.60 ", " 0.50 ", " 0.50 ", " 0 of 1 "],
        [" 2.00 ", " 3.00 ", " 3.00 ", " 1 of 1 "],
    ]
    page = markdown(document)
    assert "Device: H." in page
    assert "Not measured" not in page
    assert (
        "| 128 | 1 | uniform | 4 | 65,536 | fp32 | packed | 0.00 | 2,000 | 50% | 0.00 | 2,000 | 50% |"
        in page
    )


def test_a_goal_that_holds_no_row_has_no_line() -> None:
    assert Goal("t", 1.0, lambda row: False, lambda row: 0.0).line([_row("ours", 1, 1)]) is None


def test_the_chart_is_drawn_to_scale() -> None:
    tree = ElementTree.fromstring(svg(_document()))
    bars = [float(each.get("width", 0)) for each in tree.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars == [round(500 * each / 17, 1) for each in (10, 9.4, 17)]
    lines = [each.get("points", "") for each in tree.iter("{http://www.w3.org/2000/svg}polyline")]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    fall = [first - last for first, last in heights]
    assert fall == pytest.approx([130 * (7 - 5) / 10, 130 * (10 - 5) / 10])
    texts = [each.text or "" for each in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert "a set more, packed: +2.0" in texts


def test_results_are_written_as_they_come(tmp_path: Path) -> None:
    document = _document()
    write(tmp_path / "out", document | {"rows": []})
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]
    write(tmp_path / "out", document)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.json", "out.md", "out.svg"]


def test_what_is_asked_for_becomes_cases() -> None:
    asked = arguments(["--counts", "1", "4", "--widths", "16", "--bags", "1"])
    assert (asked.ranks, asked.rows, asked.batch) == ([1, 2], 200_000, 4_096)
    plan = plan_of(asked, 1)
    assert [[case.k for case in group] for group in plan.groups] == [[1, 1], [4, 4]]
    assert [case.k for case in plan.curve] == [1, 2, 3, 4]
    assert plan.copied
    both = plan_of(asked, 2)
    assert not both.curve
    assert not both.copied
    cuda = arguments(["--device", "cuda"])
    assert (cuda.ranks, cuda.rows, cuda.batch) == ([1], 1_000_000, 65_536)
    assert cuda.widths == [16, 64, 128, 256]
    several = arguments(
        ["--batches", "8", "16", "--types", "fp16", "fp32", "--peers", "ours", "tbe", "--no-curve"]
    )
    plan = plan_of(several, 1)
    assert plan.only == ("ours", "tbe")
    assert {
        (case.batch, case.data_type) for case in plan.cases if case.bag == 1 and case.width == 16
    } == {(batch, data_type) for batch in (8, 16) for data_type in ("fp32", "fp16")}


def test_rows_wider_than_a_shard_are_not_packed() -> None:
    case = SMALL.case(8, 256, 1, "uniform")
    assert (case.k * case.width, case.can_pack) == (2_048, False)
    with process_group("cpu"):
        names = [make().name for make in peers_of(case, _ranks())]
    assert names == ["ours_separate", "ebc", "tbe_separate", "embedding_bag", "embedding"]
    assert SMALL.case(8, 128, 1, "uniform").can_pack


def test_half_precision_tables_look_up_the_same_sums() -> None:
    case = replace(SMALL.case(2, 16, 1, "uniform"), data_type="fp16")
    (ids,) = draw(case, 1)
    with process_group("cpu"):
        makers = peers_of(case, _ranks())
        peers = [make() for make in makers]
        assert [peer.name for peer in peers] == [
            "ours",
            "ours_separate",
            "ebc",
            "tbe",
            "tbe_separate",
        ]
        for peer in peers:
            timed = prepare(peer, [ids], torch.full((case.batch * 3 * 32,), 1e-3), _ranks())
            step(timed, 0)
            outputs = peer.forward(timed.batches[0])
            assert sum(output.numel() for output in outputs) == case.batch * 3 * 32


def test_bytes_of_half_precision_weights() -> None:
    case = replace(SMALL.case(2, 16, 1, "uniform"), tables=1, rows=10, batch=3, bag=2)
    half = traffic(replace(case, data_type="fp16"), "packed", 4)
    # rows of half the size; outputs, gradients and states as they were
    assert half.forward == 48 + 6 * 64 + 3 * 128
    assert half.update == 3 * 128 + 4 * (2 * 64 + 2 * 128)
