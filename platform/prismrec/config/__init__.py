"""The recipe: typed schema, TOML loader, overrides, one error that lists every problem."""

from prismrec.config.errors import ConfigError, UserError, nearest
from prismrec.config.load import dump, flatten, from_dict, load
from prismrec.config.recipe import Recipe

__all__ = ["ConfigError", "Recipe", "UserError", "dump", "flatten", "from_dict", "load", "nearest"]
