"""`prismrec doctor`: is this machine fit to train."""

from __future__ import annotations

import dataclasses

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson

EXAMPLE = "Example: prismrec doctor --json"


def doctor(as_json: AsJson = False) -> None:
    """Check versions, device, memory, network and a 2-rank exchange; say how to fix what is wrong.

    Exits with code 1 where a check fails.
    """
    from prismrec.cluster.doctor import run_checks

    with output.waiting("Checking this machine"):
        checks = run_checks()
    if as_json:
        output.print_json([dataclasses.asdict(check) for check in checks])
    else:
        output.print_table(
            ("check", "status", "found"),
            [(check.name, check.status, check.found) for check in checks],
        )
        fixes = [f"{check.name}: {check.fix}\n" for check in checks if check.fix]
        output.print_text("".join(["\nWhat to do\n", *fixes] if fixes else []))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
