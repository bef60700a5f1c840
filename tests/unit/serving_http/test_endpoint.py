"""The endpoints over real HTTP, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from prismrec.serving.http.requests import Limits
from prismrec.serving.inference import InferenceModel
from prismrec.serving.scorer import Scorer, ServedModel
from tests.unit.serving.world import RAW, make_world, random_raw
from tests.unit.serving_http.server import TOKEN, Client, served

LIMITS = Limits(body_bytes=100_000, rows=2_000)


@pytest.fixture(scope="module")
def inference(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    return make_world().model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(inference: InferenceModel) -> Iterator[Client]:
    with served(Scorer(ServedModel(inference, "ctr", 3), LIMITS)) as made:
        yield made


def metric(client: Client, series: str, **labels: str) -> float:
    """The value of one series, 0 where there is none."""
    text = client.ask("/metrics").body.decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return sum(s.value for s in samples if s.name == series and s.labels == labels)


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "inputs"])
def test_predictions(client: Client, path: str, form: str) -> None:
    for raw in (RAW, random_raw(7)):
        rows = [list(row) for row in zip(*raw.values(), strict=True)]
        document: dict[str, Any] = {
            "dataframe_split": {"columns": list(raw), "data": rows},
            "dataframe_records": [dict(zip(raw, row, strict=True)) for row in rows],
            "inputs": raw,
        }
        answer = client.predict({form: document[form]}, path)
        assert answer.status == 200, answer.body
        got = [[row["click"], row["buy"]] for row in answer.json["predictions"]]
        expected = torch.sigmoid(make_world().expected_logits(raw)).numpy()
        assert np.allclose(got, expected, atol=1e-6)
        assert answer.json["model"] == {"name": "ctr", "version": 3}
        assert answer.headers["x-prismrec-model"] == "ctr/3"


def test_no_rows_have_no_predictions(client: Client) -> None:
    answer = client.predict({"dataframe_records": []})
    assert (answer.status, answer.json["predictions"]) == (200, [])


def test_a_large_body_is_read_too(client: Client) -> None:
    raw = random_raw(900)
    answer = client.predict({"inputs": raw})
    assert answer.status == 200, answer.body[:200]
    expected = torch.sigmoid(make_world().expected_logits(raw)).numpy()
    assert np.allclose(
        [row["buy"] for row in answer.json["predictions"]], expected[:, 1], atol=1e-6
    )


def test_the_token_is_asked_for(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for token in (None, "wrong", TOKEN[:-1], TOKEN + "x"):
            other = Client(client.port, token)
            for path in ("/schema", "/metrics", "/nothing"):
                answer = other.ask(path)
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json["error_code"] == "UNAUTHENTICATED"
            assert other.predict({"inputs": RAW}).status == 401
            assert other.ask("/health").json == {"status": "ok"}
        assert client.ask("/schema", headers={"authorization": f"Basic {TOKEN}"}).status == 401
        assert client.ask("/schema", headers={"authorization": f"bearer {TOKEN}"}).status == 200
        assert client.ask(f"/schema?token={TOKEN}").status == 200
        assert Client(client.port, None).ask(f"/schema?token={TOKEN}").status == 401
    assert TOKEN not in caplog.text


def test_what_is_refused(client: Client) -> None:
    assert client.ask("/nothing").status == 404
    assert "there are /predict, /invocations, /schema" in client.ask("/nothing").json["message"]
    assert client.ask("/predict").status == 405
    assert client.ask("/schema", b"{}").status == 405
    for headers in ({"content-type": "text/csv"}, {"content-encoding": "gzip"}):
        answer = client.ask("/predict", b"{}", headers)
        assert (answer.status, answer.json["error_code"]) == (415, "BAD_REQUEST")
    answer = client.ask("/predict", b"{}", {"content-type": "application/json; charset=utf-8"})
    assert (answer.status, "send an object with one of" in answer.json["message"]) == (400, True)
    short = {**RAW, "hist_w": [[1.0]] * 5}
    answer = client.predict({"inputs": short})
    assert (answer.status, answer.json["message"]) == (
        400,
        "column 'hist_w': row 0 has 1 weights for 2 ids; give one weight for each id",
    )


def test_too_much_is_refused_before_it_is_read(client: Client) -> None:
    body = b" " * (LIMITS.body_bytes + 1)
    answer = client.ask("/predict", body)
    assert (answer.status, answer.json["error_code"]) == (413, "TOO_LARGE")
    assert "over 100,000 bytes; send fewer rows" in answer.json["message"]
    chunks = iter([b" " * 60_000] * 2)  # without a length in the head
    assert client.ask("/predict", chunks).status == 413
    narrow = {"dataframe_records": [{"x": 1}] * (LIMITS.rows + 1)}
    assert client.predict(narrow).status == 400  # its columns are wrong first
    many = {name: [values[1]] * (LIMITS.rows + 1) for name, values in RAW.items()}
    answer = client.predict({"inputs": many})
    assert answer.status == 413
    assert client.predict({"inputs": RAW}).status == 200


def test_the_schema_holds_a_request_that_works(client: Client) -> None:
    schema = client.ask("/schema").json
    assert schema["model"] == {"name": "ctr", "version": 3}
    assert schema["tasks"] == ["click", "buy"]
    assert schema["columns"][0] == {"name": "user_id", "kind": "id", "num_ids": 5}
    assert [each["name"] for each in schema["columns"]] == [
        "user_id", "item", "hist", "tags", "hist_w", "age", "is_new",
    ]  # fmt: skip
    assert schema["limits"] == {"body_bytes": 100_000, "rows": 2_000}
    answer = client.predict(schema["example"])
    assert (answer.status, len(answer.json["predictions"])) == (200, 2)


def test_metrics_count_what_was_answered(client: Client) -> None:
    ok = {"path": "/predict", "status": "200"}
    before = metric(client, "prismrec_requests_total", **ok)
    rows = metric(client, "prismrec_rows_total")
    unknown = metric(client, "prismrec_unknown_ids_total", feature="user_id", version="3")
    client.predict({"inputs": RAW})
    Client(client.port, None).ask("/made/up/by/a/client")
    assert metric(client, "prismrec_requests_total", **ok) == before + 1
    assert metric(client, "prismrec_rows_total") == rows + 5
    now = metric(client, "prismrec_unknown_ids_total", feature="user_id", version="3")
    assert now == unknown + 3  # 99, -7 and null
    assert metric(client, "prismrec_model_info", name="ctr", version="3") == 1
    assert metric(client, "prismrec_table_bytes") > 0
    assert metric(client, "prismrec_requests_total", path="other", status="401") >= 1
    assert b"made/up" not in client.ask("/metrics").body
    assert metric(client, "prismrec_request_seconds_count", path="/predict") >= before + 1


def test_a_failure_of_ours_is_told_without_its_text(
    inference: InferenceModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = make_world().model(tmp_path)
    monkeypatch.setattr(broken, "_lookup", None)
    with served(Scorer(ServedModel(broken, "ctr", 1), LIMITS)) as client:
        answer = client.predict({"inputs": RAW})
        assert (answer.status, answer.json["error_code"]) == (500, "INTERNAL_ERROR")
        assert "NoneType" not in answer.json["message"]
