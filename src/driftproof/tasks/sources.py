"""Rows from JSON lines, a JSON array, either of them in gzip, Parquet, or a Hugging Face dataset, read strictly.

The content of a file says what it is, not its name; what cannot be read is named for what it is. Every row is an
object, or the error names FILE:LINE and what a row looks like. A dataset is named like a file, `hf:NAME:SPLIT` or
`hf:NAME:CONFIGURATION:SPLIT`, for example `hf:openai/gsm8k:main:test`; the name may be a directory of data files. No
code that a dataset brings with it is ever run.

Guarantees: a line, an array and all that is unpacked have the bounds below, so that no file fills the memory by itself.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from driftproof.errors import TaskError
from driftproof.tasks.rows import Row, shown

MOST_LINE_BYTES = 64 * 2**20
"""Most bytes of one line."""
MOST_ARRAY_BYTES = 2**30
"""Most bytes of a JSON array, which is read as a whole."""
MOST_UNPACKED_BYTES = 16 * 2**30
"""Most bytes that come out of a gzip file."""

_LOCAL = "give the path of a local JSON lines or Parquet file"
_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 512
_PIECE_BYTES = 2**20
_BATCH_ROWS = 256

_KINDS = (
    (b"PAR1", "a Parquet file within gzip; unpack it: gunzip"),
    (b"\x1f\x8b", "a gzip file within gzip; unpack it: gunzip"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; unpack it, or save it as JSON lines"),
    (b"BZh", "a bzip2 file; unpack it: bunzip2"),
    (b"\xfd7zXZ\x00", "an xz file; unpack it: unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file; unpack it: unzstd"),
    (b"ARROW1", "an Arrow file; save it as Parquet, or load its directory as hf:DIRECTORY:SPLIT"),
    (b"\xff\xff\xff\xff", "an Arrow stream; save it as Parquet, or load its directory as hf:DIRECTORY:SPLIT"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file; fetch it: git lfs pull"),
    (b"SQLite format 3\x00", "an SQLite database; save the rows as JSON lines"),
    (b"%PDF", "a PDF file; save the rows as JSON lines"),
    (b"\x93NUMPY", "a NumPy array; save the rows as JSON lines"),
    (b"\x89HDF", "an HDF5 file; save the rows as JSON lines"),
    (b"\x80\x02", "a pickle, which is never read; save the rows as JSON lines"),
    (b"\x80\x03", "a pickle, which is never read; save the rows as JSON lines"),
    (b"\x80\x04", "a pickle, which is never read; save the rows as JSON lines"),
    (b"\x80\x05", "a pickle, which is never read; save the rows as JSON lines"),
    (b"\xff\xfe\x00\x00", "text in UTF-32; save it as UTF-8"),
    (b"\xff\xfe", "text in UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "text in UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"<", "a page of HTML or XML; perhaps a download page in place of the file"),
)
"""Kinds of files by how they begin, each with what to do."""


def read_rows(path: str | Path, example: str) -> Iterator[Row]:
    """The rows of a file or of a dataset `hf:...`; TaskError where it cannot be read, has no rows, or a row is no JSON
    object."""
    if str(path).startswith("hf:"):
        return _tabular(str(path), _load_dataset(str(path)), example)
    path = Path(path)
    head = _head(path, example)
    if head.startswith(b"PAR1"):
        return _tabular(path, _load_parquet(path), example)
    if path.suffix == ".parquet":
        raise TaskError(
            f"{path}: no Parquet file: it begins with {head[:16]!r}; if it holds JSON lines, name it .jsonl"
        )
    return _json_rows(path, example, packed=head.startswith(b"\x1f\x8b"))


def _head(path: Path, example: str) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise TaskError(f"{path}: neither a file nor a directory; it is read more than once, so give a file")
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except IsADirectoryError as error:
        raise TaskError(f"{path}: Is a directory; name a file in it, or load all of it as hf:{path}:train") from error
    except (OSError, ValueError) as error:  # also: a NUL in the path
        said = getattr(error, "strerror", None) or error
        raise TaskError(f"{path}: {said}; give a file of JSON lines like {example}") from error


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
        yield from (row for batch in table.iter_batches(batch_size=_BATCH_ROWS) for row in batch.to_pylist())
    # What is compressed or encoded wrongly shows as one of these when it is read.
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TaskError(f"{path}: no Parquet file that can be read: {error}") from error


def _load_dataset(source: str) -> Iterator[dict[str, Any]]:
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
        yield from datasets.load_dataset(name, *configuration, split=split)
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        # Of a file that cannot be read the cause alone says why; of images it is a package that is missing.
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise TaskError(f"{source}: the dataset cannot be loaded: {said}; correct the name, or {_LOCAL}") from error


def _json_rows(path: Path, example: str, *, packed: bool) -> Iterator[Row]:
    """Rows of JSON lines or of a JSON array."""
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            _check_kind(path, head)
            if head.removeprefix(_BOM).lstrip().startswith(b"["):
                yield from _array(path, file, example)
            else:
                yield from _lines(path, file, example)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: the gzip file is damaged or cut off: {error}; fetch it again") from error
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}; give a file of JSON lines like {example}") from error


def _check_kind(path: Path, head: bytes) -> None:
    for beginning, kind in _KINDS:
        if head.startswith(beginning):
            raise TaskError(f"{path}: this is {kind}; prompts are read from JSON lines, a JSON array or Parquet")
    # JSON text has no NUL; every second byte of English in UTF-16 is one.
    if head.count(0) > len(head) // 4:
        raise TaskError(f"{path}: this is text in UTF-16, or no text at all; save it as UTF-8")
    if head[257:262] == b"ustar":
        raise TaskError(f"{path}: this is a tar archive; unpack it: tar -xf")


def _array(path: Path, file: BufferedIOBase, example: str) -> Iterator[Row]:
    content = bytearray()
    # In pieces: one large read would ask for all of the memory at once.
    while len(content) <= MOST_ARRAY_BYTES and (piece := file.read(_PIECE_BYTES)):
        content += piece
    if len(content) > MOST_ARRAY_BYTES:
        raise TaskError(
            f"{path}: a JSON array of more than {MOST_ARRAY_BYTES // 2**20} MiB; write each row on a line of its own"
        )
    rows = _parse(Row(path=path, line=1, fields={}, example=example), bytes(content.removeprefix(_BOM)))
    if not isinstance(rows, list) or not rows:
        raise TaskError(f"{path}: the JSON array is empty; a row looks like {example}")
    for number, fields in enumerate(rows, start=1):
        yield _checked(Row(path=path, line=number, fields={}, example=example), fields)


def _lines(path: Path, file: BufferedIOBase, example: str) -> Iterator[Row]:
    blank, total, number = 0, 0, 0
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES + 1), b""), start=1):
        row = Row(path=path, line=number, fields={}, example=example)
        total += len(line)
        if len(line) > MOST_LINE_BYTES:
            raise row.error(f"the line has more than {MOST_LINE_BYTES // 2**20} MiB")
        if isinstance(file, gzip.GzipFile) and total > MOST_UNPACKED_BYTES:
            raise row.error(f"more than {MOST_UNPACKED_BYTES // 2**30} GiB come out of the gzip file")
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise Row(path=path, line=blank, fields={}, example=example).error("the line is empty")
        yield _checked(row, _parse(row, line.rstrip(b"\r\n")))
    if not number or blank == 1:
        raise Row(path=path, line=1, fields={}, example=example).error("the file is empty")


def _parse(row: Row, content: bytes) -> Any:
    """The JSON value of a line, or of a whole file where `row` is its first line."""
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        line = row.line + content.count(b"\n", 0, error.start)
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise Row(path=row.path, line=line, fields={}, example=row.example).error(
            f"no UTF-8 (byte {content[error.start]:#x} at column {column}): the file has another encoding, such as "
            "Latin-1 or Windows-1252; save it as UTF-8, as by: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        line = row.line + error.lineno - 1
        raise Row(path=row.path, line=line, fields={}, example=row.example).error(
            f"no JSON: {error.msg} at column {error.colno}{_guess(row, content)}"
        ) from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, nested too deeply
        raise row.error(f"no JSON that can be read: {error}") from error


def _guess(row: Row, content: bytes) -> str:
    """The kind of a file whose first line is not JSON, where it can be told."""
    start = content.strip()
    if row.line != 1:
        return ""
    if start == b"{":
        return "; it looks like JSON over several lines: write each row on a line of its own, or all rows in one array"
    if not start.startswith((b"{", b"[")) and (b"," in start or b"\t" in start):
        return "; it looks like a table of text (CSV): save it as JSON lines or Parquet"
    return ""


def _checked(row: Row, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise row.error(f"no JSON object: {shown(fields)}")
    return Row(path=row.path, line=row.line, fields=fields, example=row.example)
