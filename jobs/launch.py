"""Starting the training processes: Ray Train, or plain local processes."""

from __future__ import annotations

from typing import Any

from prismrec.cluster.runtime import ray_runtime
from prismrec.config import Recipe, UserError
from prismrec.jobs.worker import work
from prismrec.train.process_group import resolve_device
from prismrec.train.run_files import RunFiles


def run_on_ray(recipe: Recipe, files: RunFiles, order: dict[str, Any]) -> None:
    """Run the workers under Ray Train; a lost worker restarts the group from its last checkpoint.

    Raises:
        UserError: what a worker said was wrong, or that the workers kept failing.
    """
    workers = recipe.workers
    with ray_runtime(workers.address, num_workers=workers.count, verbose=order["verbose"]):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        is_gpu = resolve_device(recipe.train.device) == "cuda"
        trainer = TorchTrainer(
            work,
            train_loop_config=order,
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=is_gpu, resources_per_worker={"CPU": 1}
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(files.directory),
                failure_config=FailureConfig(max_failures=workers.max_failures),
            ),
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if is_gpu else "gloo"),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise _explained(error, files, order) from error
    _raise_user_error(files, order)


def run_locally(recipe: Recipe, files: RunFiles, order: dict[str, Any]) -> None:
    """Run the workers as processes of this machine, without Ray; one worker runs in this process.

    Raises:
        UserError: what a worker said was wrong, or that one died.
    """
    count = recipe.workers.count
    if count == 1:
        work(order)
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
    try:
        elastic_launch(config, work)(order)
    except ChildFailedError as error:
        raise _explained(error, files, order) from error


def _explained(error: Exception, files: RunFiles, order: dict[str, Any]) -> Exception:
    """The user's mistake behind a failure, or a sentence that says where to look."""
    message = files.read_error(order["attempt"])
    if message:
        return UserError(message)
    return UserError(
        f"the workers failed: {_last_line(error)}; what each of them said is in "
        f"{files.log(0).parent}; `--resume` goes on from the last checkpoint"
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _raise_user_error(files: RunFiles, order: dict[str, Any]) -> None:
    message = files.read_error(order["attempt"])
    if message:
        raise UserError(message)
