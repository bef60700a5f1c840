"""What one training process does, however it was started."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prismrec.analysis.collapse import CollapseProbe
from prismrec.config import Recipe, UserError
from prismrec.config.external import find_modules_in
from prismrec.config.machine import threads_per_process
from prismrec.data.source import open_recipe_data
from prismrec.jobs.order import Order
from prismrec.train.events import EventLog
from prismrec.train.loop import Session, train
from prismrec.train.online import train_online
from prismrec.train.process_group import Ranks, process_group, resolve_device
from prismrec.train.quiet import library_output
from prismrec.train.run_files import RunFiles
from prismrec.train.signals import signals_ask
from prismrec.train.tracker import Tracker, Trackers

_log = logging.getLogger(__name__)


def work(order: Order) -> None:
    """Train as one rank of the run in `order["directory"]`; rank 0 writes the outcome.

    A mistake of the user is written beside the outcome before it is raised, so that a restarted
    worker group ends at once instead of meeting it again.

    Args:
        order: the run's.
    """
    find_modules_in(order["folder"])
    files = RunFiles(Path(order["directory"]))
    if files.read_error(order["attempt"]):
        return
    recipe = files.read_recipe()
    rank = int(os.environ.get("RANK", 0))
    with (
        library_output(files.log(rank), verbose=order["verbose"]),
        process_group(resolve_device(recipe.train.device)) as ranks,
    ):
        _share_cores(ranks, order["threads"])
        _say_where(ranks)
        tracker = _tracker(order, files, ranks)
        try:
            below = recipe.evaluate.collapse_below
            probe = CollapseProbe(below, device=ranks.device) if below else None
            session = Session(ranks, files, tracker, _attempt(order, ranks), probe)
            with signals_ask(session.stop_files()[1]):
                outcome = _trained(recipe, session, is_online=order.get("online", False))
        except UserError as error:
            files.write_error(order["attempt"], error)
            raise
        finally:
            tracker.close()
        if ranks.is_first:
            files.write_outcome(outcome)


def _trained(recipe: Recipe, session: Session, *, is_online: bool) -> dict[str, Any]:
    """Train on a data set or a stream, and what it came to as JSON values.

    Collective: every rank calls it.
    """
    outcome = (
        train_online(recipe, session)
        if is_online
        else train(recipe, open_recipe_data(recipe), session)
    )
    return asdict(outcome) | {"checkpoint": str(outcome.checkpoint)}


def _tracker(order: Order, files: RunFiles, ranks: Ranks) -> Trackers:
    if not ranks.is_first:
        return Trackers([])
    trackers: list[Tracker] = [EventLog(files.events)]
    if "run" in order:
        from prismrec.tracking.run import MlflowTracker  # a second of imports that one rank needs
        from prismrec.tracking.uri import resolve_uri

        uri = resolve_uri(files.read_recipe().tracking.uri, Path(order["folder"]))
        mlflow = MlflowTracker.attach(uri, order["run"])
        mlflow.kept = files.undelivered
        trackers.append(mlflow)
    return Trackers(trackers)


def _say_where(ranks: Ranks) -> None:
    """Put down in the rank's log which process of which machine it is."""
    _log.info(
        "rank %d of %d, %d of %d on %s, over %s",
        ranks.rank,
        ranks.world_size,
        ranks.local_rank,
        ranks.local_world_size,
        socket.gethostname(),
        os.environ.get("GLOO_SOCKET_IFNAME", "any interface"),
    )


def _attempt(order: Order, ranks: Ranks) -> str:
    """A name of this start that all ranks share and no earlier start had.

    Collective: every rank calls it.
    """
    number = torch.tensor([int.from_bytes(os.urandom(6), "big")], dtype=torch.int64)
    number = ranks.sum(number.to(ranks.device) if ranks.is_first else number.zero_())
    return f"{order['attempt']}-{int(number):x}"


def _share_cores(ranks: Ranks, asked: int | None) -> None:
    """Give each process of this machine its part of the cores, at most what the user asked for."""
    torch.set_num_threads(threads_per_process(max(1, ranks.local_world_size), asked))
