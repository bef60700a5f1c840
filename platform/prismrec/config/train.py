"""Recipe sections of the run: steps, optimizers, evaluation, checkpoints, tracking, export, workers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prismrec.config.section import Section

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

_USUAL_CHANGE = {"fp32": 0.0, "fp16": 1e-4, "bf16": 1e-4, "int8": 5e-4}
"""What tables of a type may cost where the recipe does not say."""


class DenseOptimizer(Section):
    """The optimizer of everything that is not a table."""

    name: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)


class Schedule(Section):
    """A factor on every learning rate, by step: a linear warm-up, then a decay."""

    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "linear", "cosine", "plateau"] = "none"
    """`plateau`: after each evaluation whose `evaluate.metric` is not the best so far, the factor is
    multiplied by `plateau_factor`."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps from the end of the warm-up to the lowest factor; the rest of the run if not given."""
    min_factor: float = Field(default=0.0, ge=0, le=1)
    plateau_factor: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _heard(self) -> Schedule:
        option = "decay_steps" if self.decay == "plateau" else "plateau_factor"
        if getattr(self, option) != Schedule.model_fields[option].default:
            raise ValueError(f"{option} changes nothing with decay = '{self.decay}'; leave it out")
        return self


class WarmStart(Section):
    """Another run whose weights this one starts with. A run that is resumed does not start again."""

    source: str
    """Directory of a run, whose best checkpoint is taken (the newest if none was evaluated), or of a
    checkpoint."""
    tables: dict[str, str] = Field(default_factory=dict)
    """This run's table = the other's, where their names differ; `""` takes none."""
    sets: dict[str, str] = Field(default_factory=dict)
    """This run's set = the other's, where their names differ; `""` takes none."""
    dense: bool = True
    """Take dense weights of equal name and shape."""
    optimizer_state: bool = False
    """Take the optimizer's state with the weights."""
    strict: bool = False
    """Refuse to start when anything asked for finds no match, or only a part of one."""


class Phases(Section):
    """D-Train: one head on all domains, then a head for each domain, then the heads alone."""

    shares: tuple[float, float, float] = (0.6, 0.3, 0.1)
    """Shares of the run's steps that the phases take; they add up to 1."""
    steps: tuple[int, int] | None = None
    """Steps of the first two phases, in the place of shares; the third one is the rest of the run."""

    @field_validator("shares", "steps", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("shares")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError(f"three shares from 0 to 1 that add up to 1 are needed, got {value}")
        return value

    @field_validator("steps")
    @classmethod
    def _counted(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 0:
            raise ValueError(f"numbers of steps are 0 or more, got {value}")
        return value

    def starts(self, total_steps: int) -> tuple[int, int]:
        """The steps before which heads are split and the backbone is frozen.

        >>> Phases().starts(20), Phases(steps=(5, 2)).starts(20)
        ((12, 18), (5, 7))
        """
        if self.steps is not None:
            return self.steps[0], sum(self.steps)
        first, second, _ = self.shares
        return round(total_steps * first), round(total_steps * (first + second))


class TrainSection(Section):
    """How long, how precisely and with which dense optimizer."""

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    """Stop after this many steps, whatever `epochs` says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Dense arithmetic. `auto`: bf16 on CUDA; on CPU only where a short probe finds it faster."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the dense gradient; tables are updated in backward and never clipped by it."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a moving average of the dense weights, which evaluation and export use."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients make one step; only 1 works, because the tables are updated in every
    backward pass."""
    hang_timeout_s: float = Field(default=600.0, ge=0)
    """Seconds without a finished step or evaluated batch after which the workers count as hung: their
    stacks are written and they end. 0 waits for ever."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What a loss that is not finite does: `stop` ends the run, `skip` leaves the step's rows out of the
    weights, `rollback` does that from the last checkpoint on. Under the last two an infinite number in
    the data reads as missing."""
    nonfinite_limit: int = Field(default=10, ge=1)
    """Steps that may be skipped or rolled back over before the run ends after all."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two records of the training loss."""
    log_negative_gradients: bool = False
    """Record with the loss how hard it pushes the logits of negatives and of positives, by predicted
    probability; also `gradients.csv` and a plot."""
    optimizer: DenseOptimizer = DenseOptimizer()
    schedule: Schedule = Schedule()

    @field_validator("accumulation_steps")
    @classmethod
    def _one(cls, value: int) -> int:
        if value > 1:
            raise ValueError(
                f"gradients of {value} batches cannot be added up: backward updates the tables at "
                "once, so each batch would see rows that the one before it has moved; raise "
                "data.global_batch_size instead, over more workers if memory is short"
            )
        return value

    domain_reduction: Literal["global_mean", "per_domain_mean", "tempered"] = "global_mean"
    """How the losses of rows add up: their mean; the sum of each domain's own mean, in which a small
    domain's rows count for more; or between the two, by `domain_temperature`."""
    domain_temperature: float | None = Field(default=None, ge=0, le=1)
    """`tempered`: a domain counts N^t for its N rows in a step; 1 is the mean over all rows, 0 lets
    all domains count alike."""
    phases: Phases | None = None
    """`[train.phases]`: train domains in three phases; a model with `domain_towers` is needed."""
    warm_start: WarmStart | None = None
    """`[train.warm_start]`: weights of another run to start with; they are drawn if not given."""


class EvaluateSection(Section):
    """Evaluation during training."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between evaluations, and one after the last step; once per epoch if not given."""
    metric: str | None = None
    """`task/auc`-style name that picks the best checkpoint; the first task's AUC if not given."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better metric."""
    frequency_of: str | None = None
    """Id column whose training frequency cuts the rows into slices of rare to frequent ids."""
    bootstrap: int = Field(default=200, ge=0)
    """Resamples behind the interval of the AUC at the end; 0 gives none."""
    collapse_below: float = Field(default=0.2, ge=0, le=1)
    """Each evaluation measures how many of its possible dimensions every set of every table uses, and
    warns of those below this share; 0 measures nothing."""


class CheckpointSection(Section):
    """When the run is saved and how many saves are kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; only at the end if not given."""
    keep_last: int = Field(default=2, ge=1)
    keep_best: bool = True
    """Also keep the checkpoint with the best `evaluate.metric`, and register that one."""


class TrackingSection(Section):
    """Where the run is recorded and under which name its model is registered."""

    uri: str = DEFAULT_TRACKING_URI
    """MLflow tracking server; a relative SQLite path is taken from the working directory."""
    experiment: str = "prismrec"
    registry_name: str | None = None
    """Name in the model registry; the recipe's name if not given, `""` registers nothing."""


class ExportSection(Section):
    """The inference copy that is registered."""

    table_type: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "fp32"
    """Type of the tables in the inference copy."""
    max_auc_change: float | None = Field(default=None, ge=0)
    """Largest loss of AUC against the fp32 copy; 1e-4 for fp16 and bf16, 5e-4 for int8 if not
    given, and int4 needs it."""
    max_logloss_change: float | None = Field(default=None, ge=0)
    """Largest change of LogLoss against the fp32 copy; as `max_auc_change`."""

    @model_validator(mode="after")
    def _bounded(self) -> ExportSection:
        if self.table_type not in _USUAL_CHANGE and None in self._chosen:
            raise ValueError(
                f"{self.table_type} tables cost accuracy that only you can judge; "
                "set export.max_auc_change and export.max_logloss_change"
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Largest loss of AUC and largest change of LogLoss: those set, or the usual ones."""
        auc, logloss = self._chosen
        return (
            _USUAL_CHANGE[self.table_type] if auc is None else auc,
            _USUAL_CHANGE[self.table_type] if logloss is None else logloss,
        )

    @property
    def _chosen(self) -> tuple[float | None, float | None]:
        return self.max_auc_change, self.max_logloss_change


class WorkersSection(Section):
    """The processes that train."""

    count: int = Field(default=1, ge=1)
    min_count: int | None = Field(default=None, ge=1)
    """Fewest workers that the run goes on with where a cluster has room for no more; it takes up to
    `count` of them as room comes and goes. `count` and no other number if not given."""
    resize_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks at whether a cluster has room for more workers, with `min_count`."""
    address: str | None = None
    """A running Ray cluster; an embedded Ray on this machine if not given."""
    max_failures: int = Field(default=3, ge=0)
    """Worker failures after which the run gives up; each one resumes from the last checkpoint."""

    @model_validator(mode="after")
    def _ordered(self) -> WorkersSection:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(
                f"min_count: at most count = {self.count} can be asked for, got {self.min_count}"
            )
        return self

    @property
    def counts(self) -> range:
        """Every number of workers that the run may have."""
        return range(self.min_count or self.count, self.count + 1)
