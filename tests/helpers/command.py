"""The command `prismrec`, in the process of the test."""

from __future__ import annotations

import pytest

from prismrec.cli.main import main


def run(*arguments: object) -> int:
    """Exit code of `prismrec` with some arguments."""
    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    code = left.value.code
    return code if isinstance(code, int) else 0
