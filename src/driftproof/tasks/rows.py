"""One row of a file of prompts: what it holds, checked, or an error that names FILE:LINE and what a row looks like."""

import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from driftproof.errors import TaskError

shown = reprlib.repr
"""A value for an error message, cut short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a file; every method raises TaskError, with the line, for a field that is not as it must be."""

    path: Path | str
    line: int
    """1-based; of a JSON array, of Parquet and of datasets the number of the row."""
    fields: dict[str, Any]
    example: str
    """A valid row, shown in errors."""

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}"

    def error(self, problem: str) -> TaskError:
        return TaskError(f"{self.place}: {problem}; a line is a JSON object like {self.example}")

    def given(self, field: str) -> bool:
        """Whether a field is there and not null, as tables have what is not there."""
        return _find(self.fields, field) is not None

    def value(self, field: str) -> Any:
        """The value of a field that must be there; a dot reaches into a field, as in `reward_model.ground_truth`."""
        found = _find(self.fields, field, _MISSING)
        if found is _MISSING:
            raise self.error(f'the field "{field}" is missing (there are: {shown(list(self.fields))})')
        return found

    def text(self, field: str) -> str:
        """The text of a field that must be there and not be blank."""
        return self.filled(field, self.value(field))

    def answer(self, field: str) -> str:
        """The text of a field like `text`; a number as a person would write it; the only one of a list."""
        value = self.value(field)
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            if not isinstance(value, int) and not math.isfinite(value):
                raise self.error(f'the field "{field}" is {value}, which is no number; correct or drop the row')
            return written(value)
        if value is None or isinstance(value, bool):
            raise self.error(f'the field "{field}" must be a text or a number, not {value}')
        return self.filled(field, value)

    def filled(self, field: str, value: Any) -> str:
        """`value` where it is a text that is not blank."""
        text = self.check_text(f'the field "{field}"', value)
        if not text.strip():
            raise self.error(f'the field "{field}" is empty')
        return text

    def optional_text(self, field: str) -> str:
        """The text of a field, "" where it is missing or null, as tables have it."""
        value = self.fields.get(field)
        return "" if value is None else self.check_text(f'the field "{field}"', value)

    def check_text(self, what: str, value: Any) -> str:
        """`value` where it is a text that can be written as UTF-8; half of a surrogate pair cannot."""
        if not isinstance(value, str):
            raise self.error(f"{what} must be a text, not {shown(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(f"{what} is no valid Unicode: {error.reason} at character {error.start}") from error
        return value

    def columns(self, without: Collection[str]) -> dict[str, Any]:
        """The row as JSON values, but for some fields: dates as ISO texts, NaN as null. A field that JSON cannot hold,
        such as an image, is left out."""
        columns = {}
        for name, value in self.fields.items():
            try:
                if name not in without:
                    columns[name] = _json_value(value)
            except _NoJson:
                continue
            except RecursionError as error:
                raise self.error(f'the field "{name}" is nested too deeply') from error
        return columns


def written(number: int | float | Decimal) -> str:
    """A finite number as a person would write it: 132 for 132.0, 0.5, 0.00001; very large and small ones as 1e300."""
    if isinstance(number, int):
        return str(number)
    exact = Decimal(repr(number)) if isinstance(number, float) else number
    if exact and not -20 <= exact.adjusted() <= 20:
        return str(exact).lower().replace("e+", "e")
    digits = f"{exact:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


_MISSING = object()


def _find(fields: Mapping[str, Any], field: str, missing: Any = None) -> Any:
    """A field by its name, or by the names on the way to it."""
    if field in fields:
        return fields[field]
    value: Any = fields
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return missing
        value = value[name]
    return value


class _NoJson(Exception):
    """A value that JSON cannot hold."""


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _json_value(float(value))
    if isinstance(value, date | time):  # also datetime
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): _json_value(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_json_value(inner) for inner in value]
    raise _NoJson
