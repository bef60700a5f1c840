"""Ways to turn a number into vectors, on a world whose numbers act without being monotone.

python -m benchmarks.fidelity.numbers
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.fidelity.command import main
from benchmarks.fidelity.study import Column, Panel, Study, Variant

NUMBERS = ("x1", "x2", "x3", "x4")
KINDS = {
    "value": ("value", ""),
    "log buckets": ("log_bucket", ""),
    "quantile buckets": ("quantile_bucket", ""),
    "AutoDis": ("autodis", ""),
    "piecewise linear": ("piecewise_linear", ""),
    "MNSE, bases 2, 3, 10": ("mnse", ""),
    "MNSE, base 2": ("mnse", ", bases = [2]"),
    "MNSE, 64 levels": ("mnse", ", levels = 64"),
}


def variants() -> Iterator[Variant]:
    """Every encoding of the four numbers, everything else equal."""
    for name, (kind, options) in KINDS.items():
        encoding = f"encoding = {{ kind = '{kind}'{options} }}"
        listed = ", ".join(f"{{ name = '{number}', {encoding} }}" for number in NUMBERS)
        file = name.replace(" ", "-").replace(",", "")
        changes = [f"features.numbers=[{listed}]", "features.dense=['exposures']"]
        if kind != "log_bucket":
            changes.append(f"features.statistics='{{data}}/_statistics/{file}.json'")
        yield Variant(name, tuple(changes))


STUDY = Study(
    name="numbers",
    title="Encodings of numbers that are not monotone",
    setup=(
        "The synthetic world's `x1` to `x4` (a sine, a bump, a parabola of the logarithm, a distance from "
        "0; one has a heavy tail, one is missing in a tenth of the rows) each act on both tasks "
        "without being monotone. They are encoded in eight ways under one DCN-v2 (width 8, two cross "
        "layers beside a DNN of 64 and 32); everything else is equal. Ranges and quantiles are those of "
        "the training rows. Every encoding has the defaults of its section: 512 log buckets, 64 "
        "quantile buckets, 16 meta-embeddings of AutoDis, 48 pieces, 1,024 levels of MNSE; the last row "
        "was added after the others were seen, to tell levels from digits. One epoch; nothing else "
        "was tuned. `best` is the AUC of the world's true probabilities."
    ),
    claim=(
        "*Ads Recommendation in a Collapsed and Entangled World* (KDD 2024): multiple numeral systems "
        "encoding keeps both the order of numbers and the freedom of single ids, and gains over the "
        "value, buckets and AutoDis in the production model. The paper gives no numbers on public data."
    ),
    variants=tuple(variants()),
    columns=(
        Column("test/like/auc", "like AUC"),
        Column("test/finish/auc", "finish AUC"),
        Column("test/like/logloss", "like LogLoss"),
        Column("test/finish/logloss", "finish LogLoss"),
        Column("best/like/auc", "best like"),
        Column("best/finish/auc", "best finish"),
        Column("parameters/tables", "numbers in tables", 0),
        Column("parameters/dense", "dense", 0),
    ),
    panels=(Panel("like AUC"), Panel("finish AUC")),
)

if __name__ == "__main__":
    main(STUDY)
