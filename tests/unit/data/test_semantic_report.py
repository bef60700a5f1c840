"""Reports on codes, vectors in files, and codebooks that are saved and loaded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from prismrec.config import UserError
from prismrec.data.rows import Floats
from prismrec.data.semantic.codebooks import Codebooks
from prismrec.data.semantic.fit import Fit, code_all, fit_codebooks
from prismrec.data.semantic.report import collisions, prefix_cosines, ranks_of_equal, usage
from prismrec.data.semantic.rq_vae import VaeTraining
from prismrec.data.semantic.vectors import open_vectors

CODES = np.array([[0, 2, 3], [3, 3, 1], [0, 2, 3], [1, 1, 2]], np.int32)
"""The specification's four items, of which the first and the third collide."""


def test_usage_by_hand() -> None:
    """Section 5.5: 256 uniform over 256, 128 if half is used, 1 if collapsed."""
    every = np.arange(1024) % 256
    assert usage(every, 256)["perplexity"] == pytest.approx(256)
    assert usage(every // 2, 256) == {
        "codes": 256,
        "used": 128,
        "dead": 128,
        "coverage": 0.5,
        "perplexity": 128.0,
    }
    assert usage(np.zeros(9, np.int64), 256)["perplexity"] == 1.0
    uneven = usage(np.array([0, 0, 0, 1]), 3)
    assert uneven["perplexity"] == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )


def test_collisions_by_hand() -> None:
    found = collisions(CODES, (4, 4, 4))
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found == {
        "tuples": 3,
        "unique_ratio": 0.75,
        "collided": 0.5,
        "alone": 0.5,
        "items_per_tuple": pytest.approx(4 / 3),
        "largest": 2,
        # Of sizes 1, 1, 2: sum over pairs of |a - b| / (2 n sum) = 4 / (2 * 3 * 4).
        "gini": pytest.approx(1 / 6),
        "entropy_share": pytest.approx(entropy / (3 * math.log(4))),
    }
    assert collisions(CODES[:1].repeat(3, axis=0), (4, 4, 4))["gini"] == 0


def test_ranks_tell_equal_tuples_apart_in_the_order_of_ids() -> None:
    """Section 5.8: items 1 and 3 get 0 and 1."""
    assert ranks_of_equal(np.array([1, 2, 3, 4]), CODES, (4, 4, 4)).tolist() == [0, 0, 1, 0]
    assert ranks_of_equal(np.array([9, 2, 3, 4]), CODES, (4, 4, 4)).tolist() == [1, 0, 0, 0]
    wide = (2**30,) * 3  # too many tuples for a number of 64 bits
    assert ranks_of_equal(np.array([1, 2, 3, 4]), CODES, wide).tolist() == [0, 0, 1, 0]


def test_cosines_within_prefixes_by_hand() -> None:
    vectors = np.array([[2, 0], [0, 3], [1, 1], [0, 0]], np.float32)
    codes = np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.int32)
    half = 0.5**0.5
    found = prefix_cosines(vectors, codes, (2, 2))
    assert found[0] == pytest.approx((0 + half + half) / 3)
    assert found[1] == pytest.approx(half)  # items 0 and 2; the zero vector has no direction
    assert found[2] is None


def clustered(rows: int, width: int = 6, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    middles = random.normal(size=(8, width))
    return (middles[np.arange(rows) % 8] + 0.1 * random.normal(size=(rows, width))).astype(
        np.float32
    )


def write_parquet(path: Path, ids: list[int | None], vectors: Floats) -> None:
    lists = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    pq.write_table(
        pa.table({"id": pa.array(ids, pa.int64()), "vector": lists}), path, row_group_size=7
    )


def test_vectors_are_read_alike_from_every_kind_of_file(tmp_path: Path) -> None:
    vectors = clustered(20)
    np.savez(tmp_path / "v.npz", item_ids=np.arange(20), item_vectors=vectors)
    np.save(tmp_path / "v.npy", vectors)
    write_parquet(tmp_path / "v.parquet", [*range(20), None], np.vstack([vectors, vectors[:1]]))
    (tmp_path / "parts").mkdir()
    write_parquet(tmp_path / "parts/0.parquet", list(range(9)), vectors[:9])
    write_parquet(tmp_path / "parts/1.parquet", list(range(9, 20)), vectors[9:])
    for name in ("v.npz", "v.npy", "v.parquet", "parts"):
        opened = open_vectors(tmp_path / name)
        assert (opened.num_rows, opened.width) == (20, 6)
        ids, found = (np.concatenate(each) for each in zip(*opened.blocks(), strict=True))
        assert ids.tolist() == list(range(20))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, vectors)
        drawn = opened.drawn(5, seed=1)
        assert len(np.unique(drawn, axis=0)) == 5
        assert all((vectors == row).all(axis=1).any() for row in drawn)
        np.testing.assert_array_equal(opened.drawn(5, seed=1), drawn)
        assert (opened.drawn(5, seed=2) != drawn).any()
        np.testing.assert_array_equal(opened.drawn(99, seed=1), vectors)


def objects(path: Path) -> None:
    np.savez(path, ids=np.arange(1), vectors=np.array([{"a": 1}], object))


def with_twice(path: Path) -> None:
    np.savez(path, ids=np.array([4, 5, 4]), vectors=clustered(3))


def with_nan(path: Path) -> None:
    vectors = clustered(3)
    vectors[1, 2] = np.nan
    np.savez(path, ids=np.arange(3), vectors=vectors)


def of_other_length(path: Path) -> None:
    np.savez(path, ids=np.arange(4), vectors=clustered(3))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (objects, r"v.npz: cannot be read as arrays of numbers \(.*allow_pickle=False\)"),
        (with_twice, r"v.npz: id 4 is there twice; keep one of its vectors"),
        (with_nan, r"v.npz: row 1 holds a number that is not finite; leave it out"),
        (of_other_length, r"v.npz: one array of integers .* but it holds ids int64\(4,\), vectors"),
        (lambda path: path.write_bytes(b"no archive"), r"v.npz: cannot be read as NumPy arrays"),
        (lambda path: np.savez(path, a=np.zeros(0, int), b=np.zeros((0, 3))), "is no vector in it"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "v.npz")
    with pytest.raises(UserError, match=message):
        list(open_vectors(tmp_path / "v.npz").blocks())


def test_other_files_that_hold_no_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(5))
    with pytest.raises(UserError, match=r"v.npy: an array \(n, width\) .* got int64\(5,\)"):
        open_vectors(tmp_path / "v.npy")
    with pytest.raises(UserError, match="none.npz: no such file of vectors"):
        open_vectors(tmp_path / "none.npz")
    pq.write_table(pa.table({"id": [1], "numbers": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="v.parquet: there is no column 'vector'"):
        open_vectors(tmp_path / "v.parquet")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    np.savez(tmp_path / "v.npz", ids=np.arange(100, 300), vectors=clustered(200))
    return tmp_path / "v.npz"


FITS = {
    "rq_kmeans": Fit(sizes=(8, 4)),
    "rq_vae": Fit("rq_vae", (8, 4), hidden=(16,), latent=4, training=VaeTraining(60, 64)),
}


@pytest.mark.parametrize("method", FITS)
def test_codebooks_say_the_same_after_they_were_saved(
    tmp_path: Path, vectors: Path, method: str
) -> None:
    opened, seen = open_vectors(vectors), []
    fitted = fit_codebooks(opened, FITS[method], lambda *each: seen.append(each))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    fitted.save(tmp_path / "books.safetensors", {"source": opened.digest})
    loaded = Codebooks.load(tmp_path / "books.safetensors")
    assert (loaded.method, loaded.sizes, loaded.width) == (method, (8, 4), 6)
    assert loaded.digest == fitted.digest
    ids, codes, report = code_all(opened, fitted)
    again = code_all(opened, loaded)
    assert ids.tolist() == list(range(100, 300))
    np.testing.assert_array_equal(again[1], codes)
    assert again[2] == report
    if method == "rq_kmeans":  # eight clusters, a code for each: what is left is their spread
        assert report["levels"][0]["perplexity"] == pytest.approx(8)
        assert report["error"] < 0.02
    cosines = [report["cosine"], *(each["cosine"] for each in report["levels"])]
    assert cosines == sorted(cosines)
    residuals = [1.0, *(each["residual"] for each in report["levels"])]
    assert residuals == sorted(residuals, reverse=True)


@pytest.mark.parametrize("method", FITS)
def test_codes_depend_neither_on_order_nor_on_batches(vectors: Path, method: str) -> None:
    opened = open_vectors(vectors)
    fitted = fit_codebooks(opened, FITS[method])
    given = opened.drawn(200, 0)
    codes = fitted.code(given).codes
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(fitted.code(given[order]).codes, codes[order])
    one_by_one = [fitted.code(given[[row]]).codes for row in range(20)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), codes[:20])


def test_a_fit_follows_its_seed_and_its_sample(vectors: Path) -> None:
    opened = open_vectors(vectors)
    digests = [fit_codebooks(opened, fit).digest for fit in (FITS["rq_kmeans"], Fit(sizes=(8, 4)))]
    assert digests[0] == digests[1]
    for other in (Fit(sizes=(8, 4), seed=2), Fit(sizes=(8, 4), sample=50)):
        assert fit_codebooks(opened, other).digest != digests[0]


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (Fit(sizes=(256,)), r"200 vectors cannot be parted into 256 codes; use at most 200 codes"),
        (Fit(sizes=(64,), sample=50), r"50 vectors cannot be parted into 64 codes"),
        (Fit(sizes=(8, 1)), r"codes: every level needs at least 2, got \[8, 1\]"),
    ],
)
def test_fits_that_cannot_be(vectors: Path, fit: Fit, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_codebooks(open_vectors(vectors), fit)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(vectors: Path) -> None:
    with pytest.raises(UserError, match="device: there is no CUDA device here; use 'cpu'"):
        fit_codebooks(open_vectors(vectors), Fit(sizes=(8,), device="cuda"))


def test_codebooks_of_other_vectors_or_damaged(tmp_path: Path, vectors: Path) -> None:
    fitted = fit_codebooks(open_vectors(vectors), FITS["rq_kmeans"])
    np.save(tmp_path / "w.npy", clustered(9, width=5))
    with pytest.raises(
        UserError, match=r"w.npy: vectors of 5 numbers, but the codebooks code .* 6"
    ):
        code_all(open_vectors(tmp_path / "w.npy"), fitted)
    path = tmp_path / "books.safetensors"
    with pytest.raises(UserError, match=r"books.safetensors: cannot be read as codebooks"):
        Codebooks.load(path)
    fitted.save(path, {})
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"books.safetensors: cannot be read as codebooks"):
        Codebooks.load(path)
    fitted.save(path, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"books.safetensors: its SHA-256 is not the one it says"):
        Codebooks.load(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", FITS)
def test_a_fit_on_cuda_is_as_good(vectors: Path, method: str) -> None:
    opened, errors = open_vectors(vectors), []
    for device in ("cpu", "cuda"):
        fitted = fit_codebooks(opened, replace(FITS[method], device=device))
        errors.append(code_all(opened, fitted)[2]["error"])
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
