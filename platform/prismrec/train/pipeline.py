"""TorchRec's sparse pipeline: while one step computes, the next one's ids are on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule

from prismrec.config import UserError
from prismrec.data.batch import Batch
from prismrec.train.model import Output
from prismrec.train.sentinel import Sentinel
from prismrec.train.sharding import ShardedModel


class Pipeline:
    """Steps of a sharded model.

    Args:
        sharded: model and optimizers.
        sentinel: decides before every backward pass whether there is one; None lets all of them run.
    """

    def __init__(self, sharded: ShardedModel, sentinel: Sentinel | None = None) -> None:
        self._sharded = sharded
        self._modules = list(_sharded_modules(sharded.dmp))
        self._pipeline = _Guarded(sharded, sentinel)
        self._is_checked = False

    def step(self, batches: Iterator[Batch]) -> Output:
        """One step: forward, backward with the tables' updates, optimizer.

        Collective: every rank calls it.

        Raises:
            UserError: a lookup could not be taken out of the model's forward pass, or the sentinel
                ends the run.
            RolledBack: the sentinel sends it back.
        """
        with self._tracked():
            output = self._pipeline.progress(batches)
        if not self._is_checked:
            self._check()
        return output

    @contextmanager
    def detached(self) -> Iterator[None]:
        """The model can be called as it is; batches under way are kept.

        Collective: every rank enters.
        """
        self._pipeline.detach()
        self._sharded.average_copies()
        try:
            yield
        finally:
            steps = self._sharded.optimizers.steps_done
            self._sharded.set_steps_done(steps)  # the kernels count every lookup
            self._pipeline.attach()

    def close(self) -> None:
        """Leave the model as it was."""
        self._pipeline.detach()

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """The rows that are looked up meanwhile count as touched by the step about to run."""
        touched = self._sharded.touched
        if touched is None:
            yield
            return
        touched.begin(self._sharded.optimizers.steps_done + 1)
        try:
            yield
        finally:
            touched.end()

    def _check(self) -> None:
        pipelined, known = len(self._pipeline._pipelined_modules), len(self._modules)
        if pipelined < known:
            raise UserError(
                f"{pipelined} of {known} sharded modules pipelined: a model's forward must look up "
                "first and then call one module; move everything else into that module"
            )
        self._is_checked = True


class _Guarded(TrainPipelineSparseDist[Batch, Output]):
    """The pipeline with a look at the loss before backward, and at dense gradients after it."""

    def __init__(self, sharded: ShardedModel, sentinel: Sentinel | None) -> None:
        super().__init__(sharded.dmp, sharded.optimizers, sharded.ranks.device)
        self._optimizers, self._sentinel = sharded.optimizers, sentinel
        self._has_gone_back = True

    def _backward(self, losses: Tensor) -> None:
        self._has_gone_back = self._sentinel is None or self._sentinel.may_go_back(losses)
        if self._has_gone_back:
            super()._backward(losses)

    def _optimizer_step(self) -> None:
        if not self._has_gone_back:
            self._optimizers.pass_over()
            return
        if self._sentinel is not None:
            self._sentinel.check_gradients()
        super()._optimizer_step()


def _sharded_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The sharded modules that are not part of another one."""
    if isinstance(module, ShardedModule):
        yield module
        return
    for child in module.children():
        yield from _sharded_modules(child)
