"""TorchRec's sparse pipeline: while one step computes, the next one's ids are on their way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule

from prismrec.config import UserError
from prismrec.data.batch import Batch
from prismrec.train.model import Output
from prismrec.train.sharding import ShardedModel


class Pipeline:
    """Steps of a sharded model.

    Args:
        sharded: model and optimizers.
    """

    def __init__(self, sharded: ShardedModel) -> None:
        self._modules = [m for m in sharded.dmp.modules() if isinstance(m, ShardedModule)]
        self._pipeline: TrainPipelineSparseDist[Batch, Output] = TrainPipelineSparseDist(
            sharded.dmp, sharded.optimizers, sharded.ranks.device
        )
        self._is_checked = False

    def step(self, batches: Iterator[Batch]) -> Output:
        """One step: forward, backward with the tables' updates, optimizer.

        Collective: every rank calls it.

        Raises:
            UserError: a lookup could not be taken out of the model's forward pass.
        """
        output = self._pipeline.progress(batches)
        if not self._is_checked:
            self._check()
        return output

    @contextmanager
    def detached(self) -> Iterator[None]:
        """The model can be called as it is; batches under way are kept."""
        self._pipeline.detach()
        try:
            yield
        finally:
            self._pipeline.attach()

    def close(self) -> None:
        """Leave the model as it was."""
        self._pipeline.detach()

    def _check(self) -> None:
        pipelined, known = len(self._pipeline._pipelined_modules), len(self._modules)
        if pipelined < known:
            raise UserError(
                f"{pipelined} of {known} sharded modules pipelined: a model's forward must look up "
                "first and then call one module; move everything else into that module"
            )
        self._is_checked = True
