"""Rows of JSON lines, Parquet, or a Hugging Face dataset, read strictly.

Every row is an object, or the error names FILE:LINE and what a row looks like. A dataset is named like a file,
`hf:NAME:SPLIT` or `hf:NAME:CONFIGURATION:SPLIT`, for example `hf:openai/gsm8k:main:test`; the name may be a directory
of data files. No code that a dataset brings with it is ever run.
"""

import json
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftproof.errors import TaskError

_LOCAL = "give the path of a local JSON lines or Parquet file"

shown = reprlib.repr
"""A value for an error message, cut short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a file; every method raises TaskError, with the line, for a field that is not as it must be."""

    path: Path | str
    line: int
    """1-based; of Parquet and of datasets the number of the row."""
    fields: dict[str, Any]
    example: str
    """A valid row, shown in errors."""

    def error(self, problem: str) -> TaskError:
        return TaskError(f"{self.path}:{self.line}: {problem}; a line is a JSON object like {self.example}")

    def value(self, field: str) -> Any:
        """The value of a field that must be there."""
        if field not in self.fields:
            raise self.error(f'the field "{field}" is missing (there are: {shown(list(self.fields))})')
        return self.fields[field]

    def text(self, field: str) -> str:
        """The text of a field that must be there and not be blank."""
        return self.filled(field, self.value(field))

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


def read_rows(path: str | Path, example: str) -> Iterator[Row]:
    """The rows of a JSON lines file in UTF-8 (blank lines at its end only), a `.parquet` file or a dataset `hf:...`;
    TaskError where it cannot be read, has no rows, or a line is not a JSON object."""
    if str(path).startswith("hf:"):
        return _tabular(str(path), _load_dataset(str(path)), example)
    if Path(path).suffix == ".parquet":
        return _tabular(path, _load_parquet(Path(path)), example)
    return _json_lines(Path(path), example)


def _tabular(path: str | Path, table: Iterable[dict[str, Any]], example: str) -> Iterator[Row]:
    number = 0
    for number, fields in enumerate(table, start=1):
        yield Row(path=path, line=number, fields=fields, example=example)
    if not number:
        raise TaskError(f"{path}: there are no rows; a row looks like {example}")


def _load_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TaskError(
            f"{path}: reading Parquet needs pyarrow ({error}): pip install 'driftproof[datasets]'"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(path)
        yield from (row for batch in table.iter_batches() for row in batch.to_pylist())
    # What is compressed or encoded wrongly shows as one of these when it is read.
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TaskError(f"{path}: no Parquet file that can be read: {error}") from error


def _load_dataset(source: str) -> Iterable[dict[str, Any]]:
    name, *configuration, split = source.split(":")[1:] if source.count(":") in (2, 3) else ("", "")
    if not (name and split):
        raise TaskError(f"{source}: a dataset is named hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise TaskError(
            f"{source}: Hugging Face datasets is missing ({error}): pip install 'driftproof[datasets]', or {_LOCAL}"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise TaskError(
            f"{source}: datasets {datasets.__version__} may run code that a dataset brings with it; version 4 and "
            f"newer never do: pip install -U 'driftproof[datasets]', or {_LOCAL}"
        )
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(name, *configuration, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # Of a file that cannot be read the cause alone says why.
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise TaskError(f"{source}: the dataset cannot be loaded: {said}; correct the name, or {_LOCAL}") from error
    return rows


def _json_lines(path: Path, example: str) -> Iterator[Row]:
    try:
        lines = path.read_bytes().rstrip().split(b"\n")
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}; give a file of JSON lines like {example}") from error
    for number, line in enumerate(lines, start=1):
        row = Row(path=path, line=number, fields={}, example=example)
        if not line.strip():
            raise row.error("the file is empty" if len(lines) == 1 else "the line is empty")
        try:
            fields = json.loads(line.decode())
        except json.JSONDecodeError as error:
            raise row.error(f"no JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, an integer of thousands of digits, nested too deeply
            raise row.error(f"no JSON that can be read: {error}") from error
        if not isinstance(fields, dict):
            raise row.error(f"no JSON object: {shown(fields)}")
        yield Row(path=path, line=number, fields=fields, example=example)
