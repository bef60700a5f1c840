"""What a model is given: the shapes when it is built, the tensors when it runs.

Notation: B batch, N sparse fields, N_m those of them that set m covers, D numeric columns, d_m width of
set m, T tasks, S domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.export import register_dataclass

from prismrec.models.numeric import NumericSpec, ValueSpec

SetShape = tuple[int, int]
"""Number N of field vectors of a set, and their width K."""


@dataclass(frozen=True, slots=True)
class SequenceShape:
    """The shapes of one sequence.

    Args:
        widths: by set, width of a behaviour's vectors in it side by side; 0 where the set covers none of
            the sequence's targets.
        attention: width in the set that only weighs behaviours, None where there is no such set.
        positions: positions that are told apart.
        intervals: intervals that are told apart, 0 where no time is known.
    """

    widths: tuple[int, ...]
    attention: int | None
    positions: int
    intervals: int


@dataclass(frozen=True, slots=True)
class Fields:
    """The shapes of a model's inputs and output.

    Args:
        num_sparse: number N of all sparse fields, which first-order weights cover.
        num_dense: number D of numeric columns.
        set_dims: width d_m of each embedding set.
        num_tasks: number T of logits.
        set_fields: number N_m of sparse fields that each set covers, 1 to N.
        set_names: names of the field vectors of each set, in their order; empty where nothing
            asks for a field by its name.
        num_domains: number S of domains that the model tells apart; 0 where it reads none.
        sets: names of the embedding sets; empty where nothing asks for a set by its name.
        tasks: name of the task of each logit; empty where nothing asks for a task by its name.
        numeric: how the last of the numeric columns become fields; those before are their values
            times vectors.
        sequences: the sequences.
    """

    num_sparse: int
    num_dense: int
    set_dims: tuple[int, ...]
    num_tasks: int
    set_fields: tuple[int, ...]
    set_names: tuple[tuple[str, ...], ...] = ()
    num_domains: int = 0
    sets: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    sequences: tuple[SequenceShape, ...] = ()
    numeric: tuple[NumericSpec, ...] = ()

    @property
    def numeric_specs(self) -> tuple[NumericSpec, ...]:
        """How each of the numeric columns becomes a field."""
        return (ValueSpec(),) * (self.num_dense - len(self.numeric)) + self.numeric

    def names_of(self, set_index: int) -> tuple[str, ...]:
        """Names of the field vectors of one set.

        Raises:
            ValueError: no name was given, or not as many as there are vectors.
        """
        names = self.set_names[set_index] if self.set_names else ()
        count, _ = self.set_shapes[set_index]
        if len(names) != count:
            raise ValueError(
                f"set {set_index} has {count} field vectors and {len(names)} names of them"
            )
        return names

    @property
    def set_shapes(self) -> tuple[SetShape, ...]:
        """Field vectors of each set and their width: N_m sparse ones, then one per numeric column."""
        return tuple(
            (count + self.num_dense, dim)
            for count, dim in zip(self.set_fields, self.set_dims, strict=True)
        )


@dataclass(frozen=True, slots=True)
class SequenceInputs:
    """One sequence of a batch as a model sees it; row b has behaviours offsets[b] to offsets[b + 1] - 1.

    Args:
        behaviours: by set, the vectors of the behaviours (T, W_m); W_m is 0 where the set does not cover
            them.
        targets: by set, the vectors of what they are matched with (B, W_m).
        attention: behaviours (T, A) and targets (B, A) in the set that only weighs behaviours; None
            where there is no such set.
        offsets: (B + 1,) int64, where each row's behaviours begin.
        positions: (T,) int64, 1 for a row's newest behaviour, n_b for its oldest.
        intervals: (T,) int64, interval of the time from each behaviour to its row; None where no time is
            known.
    """

    behaviours: list[Tensor]
    targets: list[Tensor]
    attention: list[Tensor] | None
    offsets: Tensor
    positions: Tensor
    intervals: Tensor | None = None

    def detached(self) -> SequenceInputs:
        """The same as constants."""
        return replace(
            self,
            behaviours=[each.detach() for each in self.behaviours],
            targets=[each.detach() for each in self.targets],
            attention=None
            if self.attention is None
            else [each.detach() for each in self.attention],
        )


register_dataclass(SequenceInputs)


@dataclass(frozen=True, slots=True)
class Inputs:
    """One batch as a model sees it.

    Args:
        sets: for each embedding set m the vectors of the sparse fields that it covers,
            (B, N_m, d_m); may be strided views.
        linear: first-order weights of the sparse fields, (B, N, T); None where the model has none.
        dense: numeric columns, (B, D); D may be 0.
        domain: domain (scenario) of each row, (B,) int64, 0 to S - 1; None where the model reads none.
        counted: (B,), 1 for rows that count for some task, 0 for padding and the like; None if all
            count. Only auxiliary losses ask for it.
        sequences: the sequences; empty where the recipe has none.
    """

    sets: list[Tensor]
    linear: Tensor | None
    dense: Tensor
    domain: Tensor | None = None
    counted: Tensor | None = None
    sequences: list[SequenceInputs] = field(default_factory=list)


register_dataclass(Inputs)
