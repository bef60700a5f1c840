"""Starting the training processes: Ray Train, or plain local processes.

The workers are attended from a thread of their own, so that the main thread takes the signals.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, cast

from prismrec.cluster.members import check_members
from prismrec.cluster.runtime import ray_runtime, talk_over_node_address
from prismrec.config import Recipe, UserError
from prismrec.jobs.order import Order
from prismrec.jobs.worker import work
from prismrec.train.run_files import RunFiles
from prismrec.train.signals import take_signals

_END_S, _EMBEDDED_END_S = 60.0, 10.0
"""Seconds in which Ray Train may take down its workers, on a cluster that stays and on an embedded one:
a client that leaves while another of its threads waits for an answer crashes now and then."""


def run_on_ray(recipe: Recipe, files: RunFiles, order: Order) -> None:
    """Run the workers under Ray Train; a lost worker restarts the group from its last checkpoint.

    Raises:
        UserError: what a worker said was wrong, or that the workers kept failing.
    """
    workers = recipe.workers
    with ray_runtime(workers.address, num_workers=workers.count, verbose=order["verbose"]):
        if files.stop().exists():
            return
        if workers.address is not None:
            check_members()
        train_on_ray(recipe, files, order, stays=workers.address is not None)


def train_on_ray(recipe: Recipe, files: RunFiles, order: Order, *, stays: bool) -> None:
    """Run the workers under the Ray that this process is connected to.

    Args:
        recipe: for the number of workers.
        files: the run's directory.
        order: what every worker is told.
        stays: whether Ray goes on after the run.

    Raises:
        UserError: what a worker said was wrong, or that the workers kept failing.
    """
    workers = recipe.workers
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import ScalingConfig  # what ray.train has, with its types

    counts = workers.counts
    is_gpu = _on_gpus(recipe.train.device)
    trainer = TorchTrainer(
        _work,
        train_loop_config=dict(order),
        scaling_config=ScalingConfig(
            num_workers=workers.count if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=is_gpu,
            resources_per_worker={"CPU": 1},
            elastic_resize_monitor_interval_s=workers.resize_every_s,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(files.directory),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
        torch_config=_torch_config("cpu:gloo,cuda:nccl" if is_gpu else "gloo"),
    )

    def is_over() -> bool:
        # Ray would take seconds to see the end, and restart the workers after a mistake of the
        # user's, only for them to meet it again.
        return files.outcome.exists() or bool(files.read_error(order["attempt"]))

    try:
        _attend(trainer.fit, is_over, _END_S if stays else _EMBEDDED_END_S)
    except Exception as error:
        raise _explained(error, files, order) from error
    _raise_user_error(files, order)


def _work(told: dict[str, Any]) -> None:
    """What Ray calls in each worker, with the order as it types one."""
    work(cast("Order", told))


def _on_gpus(wanted: str) -> bool:
    """Whether the workers get a GPU each. `auto` looks at the cluster: the driver's machine may have none."""
    if wanted != "auto":
        return wanted == "cuda"
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))


def run_locally(
    recipe: Recipe,
    files: RunFiles,
    order: Order,
    task: Callable[[Order], None] = work,
) -> None:
    """Run the workers as processes of this machine, without Ray; one worker runs in this process.

    Args:
        recipe: for the number of workers.
        files: the run's directory.
        order: what every worker is told.
        task: what a worker does with it; a function that can be imported.

    Raises:
        UserError: what a worker said was wrong, or that one died.
    """
    count = recipe.workers.count
    if count == 1:
        task(order)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    others = set(multiprocessing.active_children())
    try:
        _attend(lambda: elastic_launch(config, task)(order), lambda: False)
    except ChildFailedError as error:
        raise _explained(error, files, order) from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise


def _attend(run: Callable[[], object], is_over: Callable[[], bool], patience_s: float = 0) -> None:
    """Call on another thread and return when it is done, or earlier once `is_over` says so.

    Args:
        run: what to call.
        is_over: whether nothing that `run` will still do matters.
        patience_s: seconds that it has for that all the same.
    """
    done: Future[None] = Future()

    def call() -> None:
        try:
            run()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised where the call is attended
            done.set_exception(error)

    threading.Thread(target=call, name="prismrec-workers", daemon=True).start()
    while not wait([done], timeout=0.2).done:
        if is_over():
            wait([done], timeout=patience_s)
            return
    done.result()


def _torch_config(backend: str) -> Any:
    """Ray's set-up of the process group, with workers that take signals and choose their network.

    Training runs on a thread of a worker, and only the main thread, which carries out what the
    set-up wants done, may say how signals are handled. The classes are made here because Ray sends
    such by value: its controller starts seconds earlier without what this module imports.
    """
    from ray.train.torch import TorchConfig

    class SignalConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            class SignalBackend(super().backend_cls):  # type: ignore[misc]
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    worker_group.execute(talk_over_node_address)
                    super().on_start(worker_group, backend_config)
                    worker_group.execute(take_signals)

            return SignalBackend

    return SignalConfig(backend=backend)


def _explained(error: Exception, files: RunFiles, order: Order) -> Exception:
    """The user's mistake behind a failure, or a sentence that says where to look."""
    message = files.read_error(order["attempt"]) or files.read_hang()
    if message:
        return UserError(message)
    return UserError(
        f"the workers failed: {_last_line(error)}; what each of them said is in "
        f"{files.log(0).parent}; `--resume` goes on from the last checkpoint"
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _raise_user_error(files: RunFiles, order: Order) -> None:
    message = files.read_error(order["attempt"])
    if message:
        raise UserError(message)
