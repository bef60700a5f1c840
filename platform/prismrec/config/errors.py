"""The two kinds of error a user meets, and the words they are told in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: one sentence with what, where and what to do.

    Every command prints the sentence without a traceback and leaves with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return type(self), (self.message,)


class ConfigError(UserError):
    """Every problem of one recipe at once.

    Args:
        source: the recipe file, or a word for where the recipe came from.
        problems: one line each, `section.key: what is wrong`.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join([f"{source}:", *(f"  - {line}" for line in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[str, ...]]]:  # type: ignore[override]
        return type(self), (self.source, self.problems)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word nearest to `word`, or all of them when none is near.

    >>> nearest("batchsize", ["batch_size", "lanes"])
    "did you mean 'batch_size'?"
    >>> nearest("zebra", ["sum", "mean"])
    "known: 'mean', 'sum'"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(f"'{name}'" for name in names)
