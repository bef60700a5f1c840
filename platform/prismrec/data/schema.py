"""What the columns of a data set mean: `schema.json` beside the Parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prismrec.config import UserError, nearest

FILE_NAME = "schema.json"

Kind = Literal["id", "ids", "number", "numbers", "label", "time", "other"]


class Column(BaseModel):
    """One column of a data set.

    | kind | Parquet type | meaning |
    | --- | --- | --- |
    | `id` | integer | one id; null is a missing one |
    | `ids` | list of integer | a bag of such ids, possibly empty; null is an empty bag |
    | `number` | integer, float or boolean | a numeric value; null is missing |
    | `numbers` | list of float | weights parallel to an `ids` column |
    | `label` | integer, float or boolean | 0 or 1; null where the row has no label |
    | `time` | integer | when the row happened, in any unit that orders rows |
    | `other` | any | carried along, such as a true probability or a key |

    Ids are 0..num_ids-1 where `num_ids` is given; without it they may have any value, and the recipe
    says how they become rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    num_ids: int | None = Field(default=None, ge=1)
    description: str = ""

    @model_validator(mode="after")
    def _ids_counted(self) -> Column:
        if self.num_ids is not None and self.kind not in ("id", "ids"):
            raise ValueError("num_ids belongs to the kinds 'id' and 'ids'")
        return self


class DataSchema(BaseModel):
    """Name, origin and columns of a data set.

    Args:
        name: short name of the data set.
        columns: meaning of every column, by name, in the order of the files.
        source: where the data come from and under which terms, in one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    columns: dict[str, Column]
    source: str = ""

    def column(self, name: str, kinds: tuple[Kind, ...], used_as: str) -> Column:
        """The column `name`, which the recipe uses as `used_as`.

        Raises:
            UserError: there is no such column, or it is of another kind.
        """
        column = self.columns.get(name)
        if column is None:
            hint = nearest(name, self.columns)
            raise UserError(f"{used_as}: the data set '{self.name}' has no column '{name}'; {hint}")
        if column.kind not in kinds:
            allowed = " or ".join(f"'{kind}'" for kind in kinds)
            raise UserError(
                f"{used_as}: column '{name}' of '{self.name}' is of kind '{column.kind}', "
                f"but {allowed} is needed; correct {FILE_NAME} or the recipe"
            )
        return column

    def write(self, directory: Path) -> None:
        """Write `schema.json` into a local directory."""
        text = json.dumps(self.model_dump(exclude_defaults=True), indent=1)
        (directory / FILE_NAME).write_text(text + "\n")

    @classmethod
    def parse(cls, text: str, where: str) -> DataSchema:
        """The schema in a JSON text read from `where`.

        Raises:
            UserError: the text is not JSON or not such a schema.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{where}: not a data schema: {place}: {first['msg']} "
                f"({error.error_count()} problems); see docs/data.md"
            ) from None

    def check_arrow(self, arrow: pa.Schema, columns: list[str], where: str) -> None:
        """Compare the types in one Parquet file with the kinds of the columns that are read.

        Raises:
            UserError: a column is missing from the file or has a type its kind does not allow.
        """
        for name in columns:
            index = arrow.get_field_index(name)
            if index < 0:
                raise UserError(
                    f"{where}: column '{name}' is missing; {nearest(name, arrow.names)}"
                )
            type_, kind = arrow.field(index).type, self.columns[name].kind
            if not _fits(type_, kind):
                raise UserError(
                    f"{where}: column '{name}' has type {type_}, which is not of kind '{kind}'; "
                    f"write it as {_WANTED[kind]} or correct {FILE_NAME}"
                )


_WANTED = {
    "id": "int64",
    "ids": "list<int64>",
    "number": "float32",
    "numbers": "list<float32>",
    "label": "int8",
    "time": "int64",
    "other": "anything",
}


def _fits(type_: pa.DataType, kind: Kind) -> bool:
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    inner = type_.value_type if is_list else type_
    is_number = (
        pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    )
    if kind == "other":
        return True
    if is_list != (kind in ("ids", "numbers")):
        return False
    return pa.types.is_integer(inner) if kind in ("id", "ids", "time") else is_number
