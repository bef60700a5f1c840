"""Semantic ids as a job and as a command, up to the rows that a recipe's table looks up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import prismrec
from prismrec.cli.main import main
from prismrec.config import UserError
from prismrec.config.ids import SemanticIds
from prismrec.data.encode.encoders import TableRows
from prismrec.data.encode.semantic import semantic_encoder, semantic_segments
from prismrec.data.semantic.codebooks import Codebooks
from prismrec.data.semantic.fit import Fit
from prismrec.data.semantic.vectors import open_vectors
from prismrec.jobs.semantic_ids import make_semantic_ids

KUAIRAND = Path(__file__).parents[3] / "../shared/data/kuairand"
WIDTH = 5


def write_vectors(path: Path, ids: list[int], seed: int = 0) -> Path:
    """Eight groups of like items: those of equal id modulo 8."""
    middles = np.random.default_rng(0).normal(size=(8, WIDTH))
    noise = np.random.default_rng(seed).normal(size=(len(ids), WIDTH))
    vectors = middles[np.array(ids) % 8] + 0.05 * noise
    np.savez(path, ids=np.array(ids), vectors=vectors.astype(np.float32))
    return path


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return write_vectors(tmp_path / "v.npz", list(range(0, 400, 3)))


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", "semantic-ids", *(str(each) for each in arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_from_vectors_to_rows_of_a_table(tmp_path: Path, vectors: Path) -> None:
    """Like items share their first row, in training and when they come later."""
    out = tmp_path / "lists/sid.parquet"
    report = make_semantic_ids(vectors, out, Fit(sizes=(8, 4)), disambiguate=True)
    assert report["items"] == 134
    assert report["codebooks"] == str(tmp_path / "lists/sid.safetensors")
    table = pq.read_table(out)
    assert table.column_names == ["id", "code_0", "code_1", "rank"]
    facts = json.loads(table.schema.metadata[b"prismrec"])
    assert facts == {
        "method": "rq_kmeans",
        "codebooks": Codebooks.load(tmp_path / "lists/sid.safetensors").digest,
        "source": open_vectors(vectors).digest,
        "items": 134,
        "sizes": [8, 4],
    }
    tuples = list(zip(*(table.column(i).to_pylist() for i in (1, 2, 3)), strict=True))
    assert len(set(tuples)) == 134 > len({each[:2] for each in tuples})
    ids = SemanticIds(kind="semantic", path=str(out), numbering="all")
    rows = TableRows(sum(each.rows for each in semantic_segments(ids, "sid")))
    first = semantic_encoder(ids, rows, "sid")(table.column("id").to_numpy())[0][::2]
    groups = table.column("id").to_numpy() % 8
    assert ((first[:, None] == first[None]) == (groups[:, None] == groups[None])).all()
    later = write_vectors(tmp_path / "new.npz", list(range(1000, 1016)), seed=1)
    make_semantic_ids(later, tmp_path / "new.parquet", tmp_path / "lists/sid.safetensors")
    ids = ids.model_copy(update={"path": str(tmp_path / "new.parquet")})
    new = semantic_encoder(ids, rows, "sid")(np.arange(1000, 1016))[0][::2]
    of_group = dict(zip(groups.tolist(), first.tolist(), strict=True))
    assert new.tolist() == [of_group[item % 8] for item in range(1000, 1016)]


def test_the_command_writes_what_the_job_does(
    tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sid.parquet"
    report = make_semantic_ids(vectors, tmp_path / "job.parquet", Fit(sizes=(8, 4)))
    code, printed, _ = command(capsys, vectors, "--out", out, "--codes", "8,4", "--json")
    assert code == 0
    told = json.loads(printed)
    assert told.pop("out") == str(out)
    assert told.pop("codebooks") == str(tmp_path / "sid.safetensors")
    assert told == {key: report[key] for key in told}
    assert out.read_bytes() == (tmp_path / "job.parquet").read_bytes()
    code, printed, noted = command(
        capsys,
        vectors,
        "--out",
        tmp_path / "again.parquet",
        "--codebooks",
        tmp_path / "sid.safetensors",
    )
    assert code == 0
    assert "rq_kmeans of 134 items" in printed
    assert "different tuples of codes" in noted
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(out))


def test_an_rq_vae_by_command(
    tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sid.parquet"
    options = ("--method", "rq_vae", "--levels", "2", "--codes", "4", "--steps", "3", "--json")
    code, printed, _ = command(capsys, vectors, "--out", out, *options)
    assert code == 0
    assert (json.loads(printed)["method"], json.loads(printed)["sizes"]) == ("rq_vae", [4, 4])
    codebooks = Codebooks.load(tmp_path / "sid.safetensors")
    given = open_vectors(vectors).drawn(999, 0)
    columns = pq.read_table(out).select(["code_0", "code_1"]).columns
    assert codebooks.code(given).codes.T.tolist() == [each.to_pylist() for each in columns]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--codes", "many"), "--codes: one number, or one for each level, got 'many'"),
        (("--codes", "4,8", "--levels", "3"), "--codes: 2 numbers for 3 levels"),
        (("--steps", "5"), "--steps: is for --method rq_vae"),
        (("--codebooks", "x", "--levels", "2"), "--codebooks says how to code; leave out"),
        (("--codes", "999"), "134 vectors cannot be parted into 999 codes"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path,
    vectors: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    code, _, noted = command(capsys, vectors, "--out", tmp_path / "sid.parquet", *options)
    assert code == 2
    assert message in noted
    assert not (tmp_path / "sid.parquet").exists()


def test_what_lies_there_stays(tmp_path: Path, vectors: Path) -> None:
    with pytest.raises(UserError, match=r"--out: .*sid.bin has to end in .parquet"):
        make_semantic_ids(vectors, tmp_path / "sid.bin", Fit(sizes=(4,)))
    (tmp_path / "sid.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"sid.safetensors: already there; --overwrite replaces it"):
        make_semantic_ids(vectors, tmp_path / "sid.parquet", Fit(sizes=(4,)))
    assert (tmp_path / "sid.safetensors").read_text() == "mine"
    make_semantic_ids(vectors, tmp_path / "sid.parquet", Fit(sizes=(4,)), overwrite=True)
    assert Codebooks.load(tmp_path / "sid.safetensors").sizes == (4,)


def test_it_is_a_function_of_the_package() -> None:
    assert prismrec.semantic_ids is not None


@pytest.mark.skipif(not KUAIRAND.is_dir(), reason=f"the real vectors in {KUAIRAND} are not here")
@pytest.mark.parametrize("name", ["graph", "twotower"])
def test_real_item_vectors(tmp_path: Path, name: str) -> None:
    """64 codes a level: all in use, most tuples of one item, and closer items the longer the prefix."""
    report = make_semantic_ids(
        KUAIRAND / f"item_vectors_{name}.npz",
        tmp_path / "sid.parquet",
        Fit(sizes=(64, 64, 64), iterations=10),
    )
    assert all(each["dead"] == 0 and each["perplexity"] > 32 for each in report["levels"])
    assert report["collisions"]["unique_ratio"] > 0.7
    assert report["error"] < 0.04
    cosines = [report["cosine"], *(each["cosine"] for each in report["levels"])]
    assert cosines == sorted(cosines)
    assert cosines[1] - cosines[0] > 0.1
