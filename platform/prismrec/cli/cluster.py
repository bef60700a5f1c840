"""`prismrec cluster`: the machines that train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from prismrec.cli import output
from prismrec.cli.options import AsJson, is_verbose

app = typer.Typer(
    help="Start a cluster on this machine, join one from others, look at it, and end it.",
    epilog="Example: prismrec cluster up --workers 2",
    no_args_is_help=True,
)

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Training processes this machine has room for; its cores."
    ),
]
Host = Annotated[
    str | None,
    typer.Option("--host", help="IP address of this machine by which the others reach it."),
]
Interface = Annotated[
    str | None,
    typer.Option("--interface", help="What gloo and NCCL talk over, if not what carries --host."),
]


@app.command("up", epilog="Example: prismrec cluster up --host 10.0.0.1 --workers 8")
def up(  # noqa: PLR0913 - the options of a command are its arguments
    workers: Workers = None,
    host: Host = None,
    interface: Interface = None,
    port: Annotated[int, typer.Option("--port", help="Of the cluster.")] = 6379,
    dashboard_host: Annotated[
        str, typer.Option("--dashboard-host", help="Where dashboard and jobs listen.")
    ] = "127.0.0.1",
    dashboard_port: Annotated[int, typer.Option("--dashboard-port", help="Their port.")] = 8265,
    as_json: AsJson = False,
) -> None:
    """Start the first node of a cluster here; on loopback only, unless --host says otherwise."""
    from prismrec.cluster import nodes, state

    options = nodes.Options(host, workers, interface, port, dashboard_host, dashboard_port)
    with output.waiting("starting Ray"):
        node = nodes.up(options)
    if as_json:
        output.print_json(_document(node))
        return
    _show(node)
    output.note(f"jobs       prismrec submit RECIPE --address {node.dashboard} --dir DIRECTORY")
    output.note(f"training   prismrec train RECIPE --address {node.address}")
    if host is None:
        output.note("others     none can join: it listens on this machine only (see --host)")
    else:
        output.note(
            f"others     prismrec cluster join {node.address}, with a copy of the token file"
        )
        output.note(f"token file {_token_file() or f'none; the token is that of {state.TOKEN}'}")


@app.command("join", epilog="Example: prismrec cluster join 10.0.0.1:6379")
def join(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="Host and port that `cluster up` printed.")
    ],
    workers: Workers = None,
    host: Host = None,
    interface: Interface = None,
    as_json: AsJson = False,
) -> None:
    """Make this machine a node of a cluster; it needs a copy of the cluster's token file."""
    from prismrec.cluster import nodes

    with output.waiting("starting Ray"):
        node = nodes.join(address, nodes.Options(host, workers, interface))
    if as_json:
        output.print_json(_document(node))
    else:
        _show(node)


@app.command("status", epilog="Example: prismrec cluster status --json")
def status(
    context: typer.Context,
    address: Annotated[
        str, typer.Option("--address", help="The cluster; that of this machine's node.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """The nodes: addresses, interfaces, what is in use, versions."""
    from prismrec.cluster.members import members
    from prismrec.cluster.runtime import known_address, ray_runtime
    from prismrec.train.quiet import library_output

    verbose = is_verbose(context)
    with (
        library_output(Path(os.devnull), verbose=verbose),
        ray_runtime(address, num_workers=0, verbose=verbose),
    ):
        found = [each.to_json() for each in members()]
    if as_json:
        output.print_json({"address": known_address(address), "nodes": found})
        return
    output.print_table(
        ["node", "name", "interface", "cores used", "GPUs used", "memory used, GiB"],
        [[_role(n), n["hostname"], n["interface"], _of(n, "cores"), _of(n, "gpus"), _gib(n)]
         for n in found],
    )  # fmt: skip
    names = list(found[0]["versions"])
    rows = [[n["address"], *(n["versions"][name] for name in names)] for n in found]
    output.print_table(["versions", *names], rows)


@app.command("down", epilog="Example: prismrec cluster down")
def down() -> None:
    """End the node that `up` or `join` started on this machine, and the work on it."""
    from prismrec.cluster import nodes

    with output.waiting("ending Ray"):
        node = nodes.down()
    if node is None:
        output.note("there is no node of this machine to end")
    else:
        output.note(f"ended the {node.role} node {node.node_address} of {node.address}")


def _document(node: Any) -> dict[str, Any]:
    keys = ("role", "address", "node_address", "dashboard", "interface", "pid")
    return {**{key: getattr(node, key) for key in keys}, "token_file": _token_file()}


def _token_file() -> str | None:
    """The token's file; None where the environment names the token itself."""
    from prismrec.cluster import state

    return None if os.environ.get(state.TOKEN) else str(state.token_file())


def _show(node: Any) -> None:
    output.note(
        f"node       {node.node_address} over {node.interface}, {node.role} of {node.address}"
    )
    if node.dashboard:
        output.note(f"dashboard  {node.dashboard}")


def _role(node: dict[str, Any]) -> str:
    return node["address"] + (" (head)" if node["is_head"] else "")


def _of(node: dict[str, Any], what: str) -> str:
    return f"{node[what + '_used']:g} of {node[what]:g}"


def _gib(node: dict[str, Any]) -> str:
    return f"{node['memory_used'] / 2**30:.1f} of {node['memory'] / 2**30:.1f}"
