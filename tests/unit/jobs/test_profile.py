from __future__ import annotations

import pytest

from prismrec.jobs.profile import PARTS, REST, Span, own_time, part_of, summary


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("## next_batch ##", "data wait"),
        ("## copy_batch_to_gpu 3 ##", "copy"),
        ("## start_sparse_data_dist 4 ##", "input exchange"),
        ("## all2all_data:kjt lengths ##", "input exchange"),
        ("fbgemm::split_embedding_codegen_lookup_adagrad_function_pt2", "lookup"),
        ("## forward 12 ##", "dense forward"),
        ("## backward 12 ##", "backward"),
        ("torch::autograd::CppNode<SplitLookupFunction_adagrad_Op>", "table update"),
        ("## All2All_Pooled_bwd ##", "output exchange"),
        ("## zero_grad ##", "optimizer"),
        ("aten::addmm", None),
    ],
)
def test_intervals_count_for_their_part(name: str, part: str | None) -> None:
    assert part_of(name) == part


def test_time_inside_another_interval_counts_once() -> None:
    step = [
        Span(0, 100, REST),
        Span(0, 10, "data wait"),
        Span(10, 40, "dense forward"),
        Span(12, 20, "lookup"),
        Span(20, 25, "output exchange"),
        Span(45, 90, "backward"),
        Span(50, 80, "table update"),
        Span(60, 70, "output exchange"),
    ]
    expected = {
        REST: 15.0,
        "data wait": 10.0,
        "dense forward": 17.0,
        "lookup": 8.0,
        "output exchange": 15.0,
        "backward": 15.0,
        "table update": 20.0,
    }
    assert own_time(reversed(step)) == expected
    assert sum(expected.values()) == 100


def test_an_interval_of_the_same_name_inside_itself_counts_once() -> None:
    assert own_time([Span(0, 8, "lookup"), Span(1, 3, "lookup")]) == {"lookup": 8.0}


def test_the_summary_names_the_slowest_rank_and_counts_its_step() -> None:
    ranks = [
        {"steps": 4, "precision": "bf16", "parts": {"lookup": 2.0, REST: 8.0}},
        {"steps": 4, "precision": "bf16", "parts": {"lookup": 12.0, REST: 8.0}},
    ]
    document = summary(ranks, batch_rows=1000)
    assert document["step"] == [10.0, 20.0]
    assert document["examples_per_second"] == 50_000
    assert document["slowest"]["lookup"] == 1
    assert list(document["parts"]) == [*PARTS, REST]
    assert document["parts"]["optimizer"] == [0.0, 0.0]
