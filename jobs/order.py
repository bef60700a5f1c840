"""What the workers of a run are told."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Order(TypedDict):
    """What every worker of a run is told, however it is started.

    Ray shows it to whoever sees the cluster, so that no URI is in it: a worker reads those in the
    recipe that lies in the run's directory.
    """

    directory: str
    """The run's."""
    attempt: str
    """A name that this start shares with no other."""
    verbose: bool
    """Whether what libraries say is shown."""
    folder: str
    """Where the command was given: the user's own models are found there, and relative files start there."""
    threads: int | None
    """Most threads of a worker, if the user has set that."""
    run: NotRequired[str]
    """The run in MLflow; none is recorded without it."""
    online: NotRequired[bool]
    """Whether the data are a stream."""
    steps: NotRequired[int]
    """How many are profiled."""
