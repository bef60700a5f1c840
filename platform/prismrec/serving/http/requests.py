"""The body of a request, checked and turned into the columns of a model.

The forms are those of `mlflow models serve`, so that a client can move over: `dataframe_split`,
`dataframe_records`, `inputs` and `instances`. Beside one of them, `shared` may hold columns with one value
for all rows. Notation: B rows of a request.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismrec.config import UserError, nearest
from prismrec.data.schema import Kind
from prismrec.serving import columns as raw
from prismrec.serving.sides import Sides

_SINGLE = ("id", "number", "time")
_SHOWN = 5
"""Names that a refusal lists or compares at most."""


class RequestError(UserError):
    """A request that is answered with an error of the client's.

    Args:
        status: the HTTP status, 400 to 499.
        message: one sentence for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[RequestError], tuple[int, str]]:  # type: ignore[override]
        return type(self), (self.status, self.message)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be.

    Args:
        body_bytes: largest body.
        rows: most rows.
        extra_columns: whether columns that the model does not read are ignored; otherwise they
            are refused by name.
    """

    body_bytes: int = 8 * 2**20
    rows: int = 16_384
    extra_columns: bool = False


def read_columns(body: bytes, kinds: Mapping[str, Kind], limits: Limits) -> Sides:
    """The columns of a JSON body.

    Args:
        body: what the client sent.
        kinds: the columns that the model needs, with their kinds.
        limits: what a request may be.

    Returns:
        The needed columns as `prismrec.serving.columns.to_arrow` gives them; they alone say what B
        is, which may be 0, and is 1 where all of them are shared.

    Raises:
        RequestError: 413 where body or rows are over the limit, otherwise 400 with what is wrong.
    """
    if len(body) > limits.body_bytes:
        raise too_large(limits)
    document = _document(body)
    shared = _shared(document)
    each_kinds = {name: kind for name, kind in kinds.items() if name not in shared}
    given = _form(document, each_kinds)
    twice = next((name for name in given if name in shared), None)
    if twice is not None:
        raise RequestError(
            400, f"column '{twice[:80]}' is in 'shared' and in the rows; give it in one of them"
        )
    _check_names({**given, **shared}, kinds, limits)
    rows = max((len(given[name]) for name in each_kinds), default=0)
    if rows > limits.rows:
        raise RequestError(413, f"the request has {rows:,} rows; at most {limits.rows:,} are taken")
    try:
        each = raw.to_arrow(given, each_kinds)
        of_all = {name: kind for name, kind in kinds.items() if name in shared}
        return Sides.checked(each, raw.to_arrow(shared, of_all))
    except UserError as error:
        raise RequestError(400, error.message) from None


def too_large(limits: Limits) -> RequestError:
    """The refusal of a body over the limit."""
    return RequestError(
        413, f"the body is over {limits.body_bytes:,} bytes; send fewer rows in each request"
    )


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8; send JSON in UTF-8") from None
    except RecursionError:
        raise RequestError(
            400, "the body is nested too deeply; send rows and columns only"
        ) from None
    except ValueError as error:  # JSONDecodeError, and numbers of thousands of digits
        raise RequestError(400, f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(document, dict):
        raise RequestError(400, f"the body is a JSON {_type(document)}; {_expected()}")
    return document


def _shared(document: dict[str, Any]) -> dict[str, list[Any]]:
    """The columns that hold for all rows, as lists of their one value."""
    shared = document.get("shared")
    if shared is None:
        return {}
    if not isinstance(shared, dict):
        raise RequestError(
            400, f"'shared' is a JSON {_type(shared)}; give one value for each of its columns"
        )
    return {name: [value] for name, value in shared.items()}


def _no_constant(word: str) -> None:
    raise RequestError(
        400, f"the body holds {word}, which is not JSON; send null for a missing number"
    )


def _form(document: dict[str, Any], kinds: Mapping[str, Kind]) -> dict[str, list[Any]]:
    """The columns as lists, whichever form they came in."""
    if document.get("params"):
        raise RequestError(400, "'params' is not empty, but the model takes none; leave it out")
    forms = [name for name in document if name not in ("params", "shared")]
    if len(forms) != 1 or forms[0] not in _FORMS:
        named = ", ".join(f"'{name[:40]}'" for name in forms[:_SHOWN]) or "nothing"
        raise RequestError(400, f"the body holds {named}; {_expected()}")
    return _FORMS[forms[0]](document[forms[0]], forms[0], kinds)


def _split(value: Any, form: str, _: Mapping[str, Kind]) -> dict[str, list[Any]]:
    if not isinstance(value, dict) or not {"columns", "data"} <= value.keys():
        raise RequestError(
            400, f"'{form}' needs 'columns', a list of names, and 'data', a list of rows"
        )
    names, data = value["columns"], value["data"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(400, f"'columns' of '{form}' is no list of names")
    if len({*names}) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise RequestError(400, f"'columns' of '{form}' names '{twice[:80]}' more than once")
    if not isinstance(data, list):
        raise RequestError(400, f"'data' of '{form}' is no list of rows")
    for index, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            got = f"{len(row)} values" if isinstance(row, list) else f"a JSON {_type(row)}"
            raise RequestError(
                400, f"row {index} of '{form}' is {got}, but there are {len(names)} columns"
            )
    columns = zip(*data, strict=True) if data else ([] for _ in names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def _records(value: Any, form: str, kinds: Mapping[str, Kind]) -> dict[str, list[Any]]:
    if not isinstance(value, list):
        raise RequestError(400, f"'{form}' is no list of records, one for each row")
    if not value:
        return {name: [] for name in kinds}
    names = value[0].keys() if isinstance(value[0], dict) else ()
    for index, row in enumerate(value):
        if not isinstance(row, dict):
            raise RequestError(400, f"row {index} of '{form}' is a JSON {_type(row)}, not a record")
        if row.keys() != names:
            odd = sorted(row.keys() ^ names)[0]
            raise RequestError(
                400, f"row {index} of '{form}' and row 0 differ: only one has column '{odd[:80]}'"
            )
    return {name: [row[name] for row in value] for name in names}


def _inputs(value: Any, form: str, kinds: Mapping[str, Kind]) -> dict[str, list[Any]]:
    """Records, or columns by name; a record alone where no single value is a list."""
    if isinstance(value, list):
        return _records(value, form, kinds)
    if not isinstance(value, dict):
        raise RequestError(400, f"'{form}' is a JSON {_type(value)}, neither columns nor records")
    single = [value[name] for name, kind in kinds.items() if kind in _SINGLE and name in value]
    if single and not any(isinstance(each, list) for each in single):
        return {name: [each] for name, each in value.items()}
    for name, each in value.items():
        if not isinstance(each, list):
            raise RequestError(400, f"column '{name[:80]}' of '{form}' is no list of values")
    return value


_FORMS: dict[str, Callable[[Any, str, Mapping[str, Kind]], dict[str, list[Any]]]] = {
    "dataframe_split": _split,
    "dataframe_records": _records,
    "inputs": _inputs,
    "instances": _inputs,
}


def _check_names(given: Mapping[str, Any], kinds: Mapping[str, Kind], limits: Limits) -> None:
    missing = [name for name in kinds if name not in given]
    extra = [name for name in given if name not in kinds]
    if missing:
        known = [name[:80] for name in extra[:_SHOWN]]
        hint = f"; {nearest(missing[0], known)}" if extra else ""
        raise RequestError(400, f"the request lacks {_named(missing)}{hint}")
    if extra and not limits.extra_columns:
        raise RequestError(
            400,
            f"the model does not read {_named(extra)}; "
            f"leave it out ({nearest(extra[0][:80], kinds)})",
        )


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"column{'s' if len(names) > 1 else ''} {shown}{more}"


def _expected() -> str:
    return "send an object with one of " + ", ".join(f"'{form}'" for form in _FORMS)


def _type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
