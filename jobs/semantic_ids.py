"""Semantic ids as a job: fit codebooks on vectors of items, code the items, write both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prismrec.config import UserError
from prismrec.data.semantic.codebooks import Codebooks
from prismrec.data.semantic.files import write_codes
from prismrec.data.semantic.fit import Fit, code_all, fit_codebooks
from prismrec.data.semantic.report import ranks_of_equal
from prismrec.data.semantic.vectors import ItemVectors, open_vectors
from prismrec.data.write import Progress


def codebooks_of(out: Path) -> Path:
    """Where the codebooks of a file of codes lie: beside it, with another ending."""
    return out.with_suffix(".safetensors")


def open_for(vectors: Path, out: Path, *, overwrite: bool) -> ItemVectors:
    """The vectors, when their codes may be written to `out`.

    Raises:
        UserError: see `open_vectors`; or `out` has another ending or is taken.
    """
    if out.suffix != ".parquet":
        raise UserError(f"--out: {out} has to end in .parquet; the codebooks get the same name")
    for each in (out, codebooks_of(out)):
        if each.exists() and not overwrite:
            raise UserError(f"{each}: already there; --overwrite replaces it")
    return open_vectors(vectors)


def write_semantic_ids(
    vectors: ItemVectors,
    codebooks: Codebooks,
    out: Path,
    progress: Progress | None = None,
    *,
    disambiguate: bool = False,
) -> dict[str, Any]:
    """Code every item and write the codes, and the codebooks beside them.

    Args:
        vectors: of the items.
        codebooks: fitted on these or on others of the same kind.
        out: Parquet file.
        progress: see `code_all`.
        disambiguate: add a column `rank` that tells items of one tuple apart.

    Returns:
        The report of `code_all`, with `method`, `sizes`, `out`, `codebooks` and `source`.

    Raises:
        UserError: see `code_all`.
    """
    ids, codes, report = code_all(vectors, codebooks, progress)
    facts = {
        "method": codebooks.method,
        "codebooks": codebooks.digest,
        "source": vectors.digest,
        "items": len(ids),
    }
    ranks = ranks_of_equal(ids, codes, codebooks.sizes) if disambiguate else None
    codebooks.save(codebooks_of(out), {"source": vectors.digest})
    write_codes(out, ids, codes, codebooks.sizes, facts, ranks)
    return {
        "method": codebooks.method,
        "sizes": list(codebooks.sizes),
        **report,
        "out": str(out),
        "codebooks": str(codebooks_of(out)),
        "source": vectors.digest,
    }


def make_semantic_ids(
    vectors: Path,
    out: Path,
    how: Fit | Path,
    *,
    disambiguate: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fit codebooks, or read them, and write every item's codes: what `prismrec data semantic-ids` does.

    Args:
        vectors: file or directory, see `open_vectors`.
        out: Parquet file for the codes; the codebooks are written beside it.
        how: how to fit, or the file of codebooks that exist.
        disambiguate: see `write_semantic_ids`.
        overwrite: replace files that are there.

    Returns:
        See `write_semantic_ids`.

    Raises:
        UserError: what is wrong with the vectors, the codebooks or the place to write.
    """
    opened = open_for(vectors, out, overwrite=overwrite)
    codebooks = Codebooks.load(how) if isinstance(how, Path) else fit_codebooks(opened, how)
    return write_semantic_ids(opened, codebooks, out, disambiguate=disambiguate)
