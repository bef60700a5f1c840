"""`prismrec plan`: where the tables would go on machines that need not exist yet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, Overrides, RecipePath
from prismrec.config.errors import UserError

if TYPE_CHECKING:
    from prismrec.jobs.plan import Machines

EXAMPLE = (
    "Example: prismrec plan jobs/recipes/demo.toml --world-size 128 --local-size 8 --device cuda "
    "--hbm 80GiB"
)

_SHOWN = 16
"""Groups of like ranks that are all listed; of more only the worst and one in the middle are."""
_WORST = 4


def plan(  # noqa: PLR0913 - the options of a command are its arguments
    recipe: RecipePath,
    overrides: Overrides = None,
    world_size: Annotated[
        int | None,
        typer.Option(
            "--world-size",
            min=1,
            help="Ranks; workers.count if not given (embedding.ranks_per_copy needs both).",
        ),
    ] = None,
    local_size: Annotated[
        int | None,
        typer.Option("--local-size", min=1, help="Ranks of one machine; all if not given."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda; the recipe's if not given.")
    ] = None,
    hbm: Annotated[
        str | None, typer.Option("--hbm", metavar="SIZE", help="Memory of one device, as 80GiB.")
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option("--host-memory", metavar="SIZE", help="Memory of one machine, as 1TiB."),
    ] = None,
    intra: Annotated[
        float | None,
        typer.Option("--intra", min=0.001, help="GB/s between two ranks of a machine."),
    ] = None,
    inter: Annotated[
        float | None,
        typer.Option("--inter", min=0.001, help="GB/s between two ranks of different machines."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows of a rank; its share if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where every table would go, what each rank would spend on it, and whether it fits.

    Reads the recipe and the data set's schema, no rows, and needs no GPU. Exits with code 2 where
    the tables do not fit, saying what to change first.
    """
    from prismrec.config import load
    from prismrec.jobs.plan import plan_recipe

    resolved = load(recipe, [*(overrides or ()), *([f"train.device={device}"] if device else [])])
    count = world_size or resolved.workers.count
    machines = _machines(
        resolved.train.device, (count, local_size or count), (hbm, host_memory), (intra, inter)
    )
    with output.progress("Planning", "") as advance:
        document = plan_recipe(resolved, machines, batch_size, advance)
    if as_json:
        output.print_json(document)
    else:
        _print(document)
    if not document["fits"]:
        raise UserError(document["error"])


def _machines(
    device: str,
    ranks: tuple[int, int],
    memory: tuple[str | None, str | None],
    bandwidths: tuple[float | None, float | None],
) -> Machines:
    """The machines that the options tell of; `auto` plans for CUDA, which a laptop need not have."""
    from prismrec.embeddings.plan import host_memory_per_rank
    from prismrec.embeddings.plan.sizes import parse_size
    from prismrec.jobs.plan import Machines

    (world, local), (hbm, host) = ranks, memory
    device = "cuda" if device == "auto" else device
    if device == "cpu" and hbm is not None:
        raise UserError("--hbm: CPU ranks have no device memory; give --host-memory")
    if local > world:
        raise UserError(f"--local-size: {local} ranks of a machine are more than all {world}")
    of_host = parse_size(host, "--host-memory") // local if host else None
    if device == "cuda":
        of_device = parse_size(hbm or "80GiB", "--hbm")
        of_host = of_device if of_host is None else of_host
    else:
        of_device = of_host = host_memory_per_rank(local) if of_host is None else of_host
    return Machines(world, local, device, of_device, of_host, *bandwidths)


def _print(document: dict[str, Any]) -> None:
    world_size = document["machines"]["world_size"]
    columns = ("table", "kind", "ranks", "weights", "state", "buffers", "ms")
    output.print_table(columns, [_table_row(line, world_size) for line in document["tables"]])
    output.print_table(
        ("table", "layout", "kernel", "why"),
        [
            (line["table"], line["layout"], line["kernel"], _why(line, document["layouts"]))
            for line in document["tables"]
        ],
    )
    _print_ranks(document)
    _print_step(document)
    if not document["fits"]:
        _print_remedies(document["remedies"])


def _table_row(line: dict[str, Any], world_size: int) -> tuple[object, ...]:
    from prismrec.embeddings.plan.sizes import size

    return (
        line["table"],
        _kind(line),
        _ranks(line["strips"], world_size),
        size(line["weight_bytes"]),
        size(line["state_bytes"]),
        size(line["buffer_bytes"]),
        line["milliseconds"],
    )


def _why(line: dict[str, Any], layouts: dict[str, Any]) -> str:
    """Why the table is placed so, and why it has its layout where the planner chose that too."""
    name = line["table"].partition("__")[0]
    if name not in layouts:
        return str(line["why"])
    return f"{line['why']}; {line['layout']}: {layouts[name]['why']}"


def _kind(line: dict[str, Any]) -> str:
    """The kind, with the widths of its pieces where columns are cut."""
    widths = [cols for _, cols, _, _ in line["strips"]]
    if len(widths) == 1:
        return str(line["kind"])
    if len(set(widths)) == 1:
        return f"{line['kind']} {len(widths)} x {widths[0]}"
    return f"{line['kind']} {' + '.join(map(str, widths))}"


def _ranks(strips: Sequence[Sequence[int]], world_size: int) -> str:
    texts = [_span(first, first + count - 1) for _, _, first, count in strips]
    if texts == [_span(0, world_size - 1)] and world_size > 1:
        return "all"
    few = texts if len(texts) <= 8 else [*texts[:6], "...", texts[-1]]
    return ", ".join(few)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _print_ranks(document: dict[str, Any]) -> None:
    from prismrec.embeddings.plan.sizes import size

    machines, worst, ranks = document["machines"], document["worst"], document["ranks"]
    on_device = machines["device"] == "cuda"
    groups = _alike(ranks)
    marks = {
        group[0]["rank"]: [
            mark for mark, rank in worst.items() if group[0]["rank"] <= rank <= group[-1]["rank"]
        ]
        for group in groups
    }
    if len(groups) > _SHOWN:
        by_ms = sorted(groups, key=lambda group: -group[0]["milliseconds"])
        middle = by_ms[len(groups) // 2]
        marks[middle[0]["rank"]].append("in the middle by time")
        groups = [group for group in groups if group in by_ms[:_WORST] or marks[group[0]["rank"]]]
    rows = [
        (
            _span(group[0]["rank"], group[-1]["rank"]),
            *([size(group[0]["device_bytes"])] if on_device else []),
            size(group[0]["host_bytes"]),
            group[0]["milliseconds"],
            ", ".join(marks[group[0]["rank"]]),
        )
        for group in groups
    ]
    columns = ("ranks", *(["device"] if on_device else []), "host and copy", "ms", "")
    room = f"{size(machines['host_room'])} of host memory"
    if on_device:
        room = f"{size(machines['device_room'])} of device memory and {room}"
    output.print_text(f"{len(ranks)} ranks, each with {room} for tables\n")
    output.print_table(columns, rows)


def _alike(ranks: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Runs of ranks that show the same numbers."""
    from prismrec.embeddings.plan.sizes import size

    def shown(each: dict[str, Any]) -> tuple[str, str, str]:
        time = f"{each['milliseconds']:.4f}"
        return size(each["device_bytes"]), size(each["host_bytes"]), time

    return [list(group) for _, group in groupby(ranks, key=shown)]


def _print_step(document: dict[str, Any]) -> None:
    machines = document["machines"]
    mean = sum(each["milliseconds"] for each in document["ranks"]) / len(document["ranks"])
    if document["copies"] > 1:
        output.print_text(
            f"\n{document['copies']} copies of the tables on {len(document['ranks'])} ranks each, all "
            "planned alike; averaging them is not in the time\n"
        )
    output.print_text(
        f"\nA step of {machines['batch_size']:,} rows a rank: {document['milliseconds']:.3g} ms for the "
        f"tables on the busiest rank, {mean:.3g} ms on average; at {machines['intra_gb_per_s']:.3g} GB/s "
        f"within and {machines['inter_gb_per_s']:.3g} GB/s between machines. An estimate: see "
        "docs/planner.md for what it leaves out.\n"
    )


def _print_remedies(remedies: Sequence[dict[str, Any]]) -> None:
    from prismrec.embeddings.plan.sizes import size

    output.print_text("\nThe tables do not fit. What was tried, in this order:\n")
    for each in remedies:
        if each["fits"]:
            verdict = f"fits, {each['milliseconds']:.3g} ms, with {each['setting']}"
        elif each["over_bytes"] is not None:
            verdict = f"still lacks {size(each['over_bytes'])} with {each['setting']}"
        else:
            verdict = "no"
        output.print_text(
            "  " + "; ".join(filter(None, (f"{each['change']}: {verdict}", each["note"]))) + "\n"
        )
