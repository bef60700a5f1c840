"""Quality on Frappe beside FuxiCTR: seven models, the same rows and budget, both searched on valid.

    prismrec data prepare frappe --source frappe --out out/frappe
    python -m benchmarks.frappe --out benchmarks/results/frappe

What is done lies in `out/bench/frappe/runs.json`: an interrupted study goes on from there, and
`--seconds 240` does a part of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.channel import ROOT
from benchmarks.frappe.page import page
from benchmarks.frappe.study import complete, go_on, next_job
from benchmarks.machine import machine
from benchmarks.result import write


def main() -> None:
    """Do what is left; then write `OUT.json` and `OUT.md` of the models that are complete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("out/frappe"))
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after these")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    runs = go_on(
        asked.data.resolve(), ROOT / "out" / "bench" / "frappe" / "runs.json", asked.seconds
    )
    for program, done in runs.items():
        print(f"{program}: {len(done)} runs done, next {next_job(runs, program)}")
    if not complete(runs):
        return
    command = f"python -m benchmarks.frappe --out {asked.out}"
    document = {"command": command, "machine": machine(), "runs": runs}
    write(asked.out, document, page(document))
    print(page(document))


if __name__ == "__main__":
    main()
