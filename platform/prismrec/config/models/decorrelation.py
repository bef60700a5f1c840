"""Recipe sections of the losses that keep experts apart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prismrec.config.section import Section


class Apart(Section):
    """What both losses have."""

    weight: float = Field(gt=0)
    """Weight of the loss in the total. It belongs to a number of rows: fewer rows make the loss larger."""
    normalize: Literal["mean", "sum"] = "mean"
    """Whether products of columns are divided by the rows; under `sum` a weight of w / rows does what w
    does under `mean`."""
    rows: Annotated[int, Field(ge=2)] | Literal["all"] = 512
    """Rows of a worker's batch that are looked at, evenly spaced."""
    scope: Literal["local", "global"] = "local"
    """Each worker's rows by themselves, or exactly the rows of all workers together."""


class Covariance(Apart):
    """Sum of the absolute covariances between columns of different experts, over their number."""

    kind: Literal["covariance"] = "covariance"
    weight: float = Field(default=0.1, gt=0)
    """Weight of the loss in the total. It belongs to a number of rows: fewer rows make the loss larger."""
    pairs: Literal["p>q", "p>=q"] = "p>q"
    """Columns of different experts, or also different columns of one expert."""
    include_variance: bool = False
    """With `p>=q`, whether a column counts with itself, which pulls experts towards constants."""


class Correlation(Apart):
    """A norm of the correlations between columns of different experts, over their number."""

    kind: Literal["correlation"] = "correlation"
    weight: float = Field(default=0.01, gt=0)
    """Weight of the loss in the total. It belongs to a number of rows: fewer rows make the loss larger."""
    norm: Literal["fro_sq", "fro", "spectral", "l1"] = "fro_sq"
    """Squares, Frobenius norm, largest singular value or absolute values of each pair of experts."""
    per_pair: bool = False
    """Whether the loss is divided by the number of pairs of experts."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the variances."""


DecorrelationKind = (
    Annotated[Covariance | Correlation, Field(discriminator="kind")] | Literal["none"]
)
"""`{kind = "covariance", weight = 0.1}`, `{kind = "correlation", weight = 0.01}` or `"none"`."""
