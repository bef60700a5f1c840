"""Functions outside the package that a recipe or a command names as `package.module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from prismrec.config.errors import UserError, nearest

PATTERN = r"^[\w.]+:\w+$"


def find_modules_in(directory: str) -> None:
    """Let this process import a user's own modules from a folder; installed ones come first."""
    if directory not in sys.path:
        sys.path.append(directory)


def import_function(key: str, name: str) -> Callable[..., Any]:
    """The function that `name` stands for.

    Args:
        key: what the name is called in errors, such as `model.name`.
        name: `package.module:function`.

    Raises:
        UserError: the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{key}: '{module_name}' cannot be imported ({error}); "
            "install it, or put its folder on PYTHONPATH, wherever a worker runs"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(
            f"{key}: '{module_name}' has no function '{function_name}'; "
            f"{nearest(function_name, known)}"
        )
    return function  # type: ignore[no-any-return]
