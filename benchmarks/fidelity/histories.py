"""The temporal interest module, its three ablations, and DIN, on a world whose histories fade.

python -m benchmarks.fidelity.histories
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.fidelity.command import main
from benchmarks.fidelity.study import Column, Panel, Study, Variant

IDS = ("user_id", "item_id", "category", "advertiser", "city", "device", "hour")
SEQUENCE = (
    "{ name = 'history', gaps = 'history_times', behaviours = ["
    "{ column = 'history_items', target = 'item_id' }, "
    "{ column = 'history_categories', target = 'category' }] }"
)
READ = (f"features.sparse={list(IDS)}", f"features.sequences=[{SEQUENCE}]")
MODULES = {
    "TIM": "kind = 'tim'",
    "TIM without time": "kind = 'tim', encoding = 'none'",
    "TIM without attention": "kind = 'tim', attention = false",
    "TIM without representation": "kind = 'tim', representation = false",
    "DIN": "kind = 'din', hidden = [32]",
}


def variants() -> Iterator[Variant]:
    """Histories as bags, then every module."""
    yield Variant("mean of the history")
    for name, options in MODULES.items():
        yield Variant(name, (*READ, f"model.sequence={{ {options} }}"))


STUDY = Study(
    name="histories",
    title="Temporal interest, its parts, and DIN",
    setup=(
        "The synthetic world's histories of up to 50 behaviours speak for `like` by the pair of target's and "
        "behaviour's category, and fade with position (to 1/e in 3 behaviours) and with time (in 10 days). "
        "One DCN-v2 (one set of width 8, two cross layers beside a DNN of 64 and 32) reads them in six ways: "
        "as mean-pooled bags of items and categories with tables of their own; by TIM; by TIM without its "
        "encoding of position and time, without its attention (all behaviours count alike), and without its "
        "target-aware representation; by DIN. The modules look behaviours up in the tables of item and "
        "category. One epoch, same rates and batches for all, chosen for another model; nothing was tuned. "
        "`best` is the AUC of the world's true probabilities."
    ),
    claim=(
        "*Temporal Interest Network for User Response Prediction* (WWW 2024): behaviours and target are "
        "correlated semantically and in time, which takes all three parts, the temporal encoding, "
        "target-aware attention and target-aware representation; each ablation loses, and DIN, which "
        "lacks encoding and representation, is below TIM."
    ),
    variants=tuple(variants()),
    columns=(
        Column("test/like/auc", "like AUC"),
        Column("test/finish/auc", "finish AUC"),
        Column("test/like/logloss", "like LogLoss"),
        Column("best/like/auc", "best like"),
        Column("best/finish/auc", "best finish"),
        Column("parameters/tables", "numbers in tables", 0),
        Column("parameters/dense", "dense", 0),
    ),
    panels=(Panel("like AUC"), Panel("finish AUC")),
)

if __name__ == "__main__":
    main(STUDY)
