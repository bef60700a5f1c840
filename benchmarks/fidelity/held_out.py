"""Data sets some of whose items are held out of training, with semantic ids of all items beside them.

The data set of before with a column `held_out`, 1 on rows of a seeded fifth of the items, and
`_codes/NAME.parquet` for each source of vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.fidelity.study import Prepared, World
from prismrec.data.encode.ids import sample_rows
from prismrec.data.schema import FILE_NAME, Column, DataSchema
from prismrec.data.semantic.files import write_codes
from prismrec.data.semantic.fit import Fit
from prismrec.data.vectors import VectorWriter
from prismrec.data.write import staged, write_parts
from prismrec.jobs.semantic_ids import make_semantic_ids

SHARE = 0.2
"""Of the items, held out of training."""
SEED = 20220504
WIDTH = 64
"""Of the vectors made from histories."""
FIT = Fit(sizes=(64, 64, 64))
"""How codes are fitted."""


@dataclass(frozen=True)
class HeldOutVideos(Prepared):
    """KuaiRand, with vectors of videos from what users watched before the log and those of its source."""

    def path(self, folder: Path) -> Path:
        """Its directory below `folder`, written if it is not there."""
        base, out = super().path(folder), folder / f"{self.name}-held-out"
        if not out.exists():
            columns = ["user_id", "date", "watch_seq"]
            rows = _rows(base, columns)
            rows = rows.filter(pa.compute.less_equal(rows["date"], 20220503))
            with staged(out) as directory:
                _add_column(base, directory, "video_id")
                history = directory / "_vectors" / "history"
                _write_vectors(history, *history_vectors(rows["user_id"], rows["watch_seq"]))
                published = base / "_vectors" / "twotower"
                _write_codes(directory, {"history": history, "twotower": published})
        return out


@dataclass(frozen=True)
class HeldOutWorld(World):
    """A synthetic world, with the true vectors of its items."""

    def quick(self) -> HeldOutWorld:
        """A tiny world of the same laws."""
        return HeldOutWorld(super().quick().rows, self.seed, self.options)

    def path(self, folder: Path) -> Path:
        """Its directory below `folder`, written if it is not there."""
        base = super().path(folder)
        out = base.with_name(f"{base.name}-held-out")
        if not out.exists():
            items = pq.read_table(base / "_truth" / "items.parquet")
            vectors = np.stack(items["vector"].to_numpy()).astype(np.float32)
            with staged(out) as directory:
                _add_column(base, directory, "item_id")
                truth = directory / "_vectors" / "truth"
                _write_vectors(truth, items["item_id"].to_numpy(), vectors)
                _write_codes(directory, {"truth": truth})
                (directory / "_truth").symlink_to((base / "_truth").resolve())
        return out


def history_vectors(
    users: pa.ChunkedArray, histories: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Vectors of items from which items the same users watched.

    Positive pointwise mutual information of two items in one user's history, and of its matrix
    the largest singular directions, each by the root of its singular value.

    Args:
        users: (rows,) users.
        histories: (rows,) ids they watched before; the first that is not empty counts.

    Returns:
        (n,) ids of the items that are in some history, and (n, WIDTH) vectors of length 1.
    """
    lengths = pa.compute.fill_null(pa.compute.list_value_length(histories), 0).to_numpy()
    rows = np.flatnonzero(lengths)
    rows = rows[np.unique(users.to_numpy()[rows], return_index=True)[1]]
    bags = histories.take(pa.array(rows)).combine_chunks()
    owners = np.repeat(np.arange(len(rows)), lengths[rows])
    ids, items = np.unique(bags.flatten().to_numpy(), return_inverse=True)
    pairs = np.unique(np.stack([owners, items]), axis=1)
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # "sparse is in beta"
        watched = torch.sparse_coo_tensor(
            torch.from_numpy(pairs), torch.ones(pairs.shape[1]), (len(rows), len(ids))
        )
        together = torch.sparse.mm(watched.t(), watched).to_dense()
    together.fill_diagonal_(0)
    alone = together.sum(dim=1)
    expected = alone[:, None] * alone[None] / alone.sum()
    information = (together / expected.clamp(min=1e-12)).clamp(min=1).log()
    torch.manual_seed(SEED)
    left, values, _ = torch.svd_lowrank(information, q=WIDTH + 16, niter=4)
    vectors = left[:, :WIDTH] * values[:WIDTH].sqrt()
    known = vectors.norm(dim=1) > 0
    vectors = torch.nn.functional.normalize(vectors[known], dim=1)
    return ids[known.numpy()], vectors.numpy()


def _rows(base: Path, columns: list[str] | None = None) -> pa.Table:
    files = sorted(path for path in base.glob("*.parquet") if not path.name.startswith("_"))
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in files])


def _add_column(base: Path, directory: Path, item: str) -> None:
    rows, schema = _rows(base), DataSchema.model_validate_json((base / FILE_NAME).read_text())
    held_out = sample_rows(rows[item].to_numpy().astype(np.int64), SHARE, SEED)
    rows = rows.append_column("held_out", pa.array(held_out.astype(np.int8)))
    columns = {**schema.columns, "held_out": Column(kind="other")}
    write_parts(directory, rows, schema.model_copy(update={"columns": columns}))


def _write_vectors(directory: Path, ids: np.ndarray, vectors: np.ndarray) -> None:  # type: ignore[type-arg]
    directory.mkdir(parents=True)
    writer = VectorWriter(directory, vectors.shape[1], ("id",), {})
    writer.write({"id": ids.astype(np.int64)}, vectors)
    writer.close()


def _write_codes(directory: Path, sources: Mapping[str, Path]) -> None:
    """Codes of each source, and those of the first dealt out to its items at random."""
    for name, vectors in sources.items():
        make_semantic_ids(vectors, directory / "_codes" / f"{name}.parquet", FIT)
    table = pq.read_table(directory / "_codes" / f"{next(iter(sources))}.parquet")
    codes = np.stack([table[f"code_{level}"].to_numpy() for level in range(3)], axis=1)
    codes = codes[np.random.default_rng(SEED).permutation(len(codes))]
    dealt = directory / "_codes" / "dealt.parquet"
    write_codes(dealt, table["id"].to_numpy(), codes, FIT.sizes, {"codebooks": "dealt"})
