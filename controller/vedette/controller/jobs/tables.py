"""Read CSV and Parquet as batches of typed columns, hostile files included.

A table's types are few: int64, double, bool, string, timestamp[ms, UTC]. CSV is read as text first and typed by rules,
so that one bad cell rejects its row, by reason, and not the file; the types are those the dataset already has, or else
what the first rows say (times in a CSV stay text). Everything is done per column, never per row.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from vedette.controller.domain.datasets import Columns
from vedette.controller.domain.errors import InvalidInput, TooLarge

MAX_COLUMNS = 4_096
MAX_COLUMN_NAME = 256
_GUESS_ROWS = 10_000
_BLOCK_BYTES = 4 << 20
_BATCH_ROWS = 65_536

TIME = pa.timestamp("ms", tz="UTC")
TYPES = {"int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "string": pa.string(), str(TIME): TIME}

_PATTERNS = {  # RE2, anchored; a value that matches is one the cast takes
    "int64": r"^[+-]?[0-9]{1,18}$",
    "double": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$|^[+-]?(inf|nan|Inf|NaN)$",
    "bool": r"^(true|false|True|False)$",
}
_WORDS = {"int64": "a whole number", "double": "a number", "bool": "true or false"}
_NULLS = ["", "NA", "null", "NULL"]


@dataclass(slots=True)
class Rejects:
    """Rows that were left out, by reason."""

    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, rows: int) -> None:
        """Count rows; more than 64 different reasons are told as one."""
        if rows:
            known = reason in self.reasons or len(self.reasons) < 64
            self.reasons[reason if known else "other reasons"] += rows


def unreadable(why: str) -> InvalidInput:
    """Return the error of a file that is not what its format says."""
    return InvalidInput(
        "bad-data", "the data file cannot be read", why[:500], "--format flows|csv|parquet says what it is"
    )


def check_columns(names: Sequence[str]) -> None:
    """Refuse columns no table may have.

    Raises:
        InvalidInput: None, too many, one twice, or a name that is empty or too long.
    """
    if not 1 <= len(names) <= MAX_COLUMNS:
        raise unreadable(f"it has {len(names)} columns, allowed 1 to {MAX_COLUMNS}")
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not 1 <= len(name) <= MAX_COLUMN_NAME:
            raise unreadable(
                f"the name of column {place + 1} has {len(name)} characters, allowed 1 to {MAX_COLUMN_NAME}"
            )
        if name in seen:
            raise unreadable(f"column {name!r} is there twice")
        seen.add(name)


def csv_batches(path: Path, known: Columns | None, rejects: Rejects, *, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV file (gzip'd or not) with a header line, as typed columns.

    Args:
        path: Of the file.
        known: Columns of the dataset; None to tell them from the first rows.
        rejects: Counts rows left out.
        max_bytes: Decompressed bytes that are read at most.

    Raises:
        InvalidInput: It is no CSV, or its columns are refused.
        TooLarge: It has more than ``max_bytes`` decompressed.
    """

    def on_bad_row(row: pa_csv.InvalidRow) -> str:
        rejects.add(f"{row.actual_columns} values instead of {row.expected_columns}", 1)
        return "skip"

    try:
        names = _csv_header(path)
        reader = pa_csv.open_csv(
            _opened(path),
            pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=names, skip_rows=1),
            pa_csv.ParseOptions(invalid_row_handler=on_bad_row, newlines_in_values=True),
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=_NULLS, strings_can_be_null=True
            ),
        )
        read = 0
        for batch in reader:
            read = _count(read, batch, max_bytes)
            if known is None:
                known = _guess(batch.slice(0, _GUESS_ROWS))
            yield _typed(batch, known, rejects)
    except (pa.ArrowInvalid, pa.ArrowCapacityError, OSError, UnicodeDecodeError, csv.Error) as exc:
        raise unreadable(f"it is no CSV: {exc}") from exc


def _count(read: int, batch: pa.RecordBatch, max_bytes: int) -> int:
    """Return the bytes read so far: a small file can hold very many rows."""
    read += batch.nbytes
    if read > max_bytes:
        raise TooLarge("data-too-large", "the data file is too large", f"over {max_bytes} bytes decompressed")
    return read


def _opened(path: Path) -> pa.NativeFile:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return pa.input_stream(str(path), compression="gzip" if compressed else None)


def _csv_header(path: Path) -> list[str]:
    """Return the column names; read apart, because Arrow would rename or join what is there twice."""
    with _opened(path) as stream:
        head = stream.read(1 << 20)
    line, newline, _ = head.partition(b"\n")
    if not newline and len(head) == 1 << 20:
        raise unreadable(f"its first line is longer than {1 << 20} bytes")
    names = [name.strip() for name in next(csv.reader([line.decode("utf-8-sig").rstrip("\r")]), [])]
    check_columns(names)
    return names


def _guess(batch: pa.RecordBatch) -> Columns:
    """Return a type for each column that all its first values have; string when there is none."""
    guessed = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.drop_null()
        kinds = [kind for kind, pattern in _PATTERNS.items() if len(values) and _all_match(values, pattern)]
        guessed.append((name, kinds[0] if kinds else "string"))
    return tuple(guessed)


def _all_match(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _typed(batch: pa.RecordBatch, columns: Columns, rejects: Rejects) -> pa.RecordBatch:
    """Return the rows whose every value has its column's type."""
    types = dict(columns)
    good = pa.array([True] * batch.num_rows)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = types.get(name, "string")
        if kind in _PATTERNS:
            fits = pc.fill_null(pc.match_substring_regex(column, _PATTERNS[kind]), fill_value=True)
            bad = pc.and_(good, pc.invert(fits))
            rejects.add(f"{name} is not {_WORDS[kind]}", pc.sum(bad).as_py() or 0)
            good = pc.and_(good, fits)
    kept = batch.filter(good)
    arrays = [
        _cast(column, types.get(name, "string")) for name, column in zip(kept.schema.names, kept.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=kept.schema.names)


def _cast(column: pa.Array, kind: str) -> pa.Array:
    if kind == "int64":
        return pc.cast(pc.replace_substring_regex(column, r"^\+", ""), pa.int64())
    return pc.cast(column, TYPES[kind])


def parquet_batches(path: Path, *, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file with its columns brought to a table's types.

    Args:
        path: Of the file.
        max_bytes: Bytes of rows that are read at most.

    Raises:
        InvalidInput: It is no Parquet file, is cut, or a column has a type no table has.
        TooLarge: Its rows take more than ``max_bytes``.
    """
    read = 0
    try:
        with pq.ParquetFile(path) as file:
            check_columns(file.schema_arrow.names)
            kinds = [_table_type(f.name, f.type) for f in file.schema_arrow]
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                read = _count(read, batch, max_bytes)
                arrays = [pc.cast(column, kind) for column, kind in zip(batch.columns, kinds, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
    except (pa.ArrowException, OSError) as exc:
        raise unreadable(f"it is no Parquet file, or cut: {exc}") from exc


def _table_type(name: str, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if kind == pa.uint64() or pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return TIME
    raise unreadable(f"column {name!r} is of type {kind}; known are integers, floats, bool, string and timestamp")


def columns_of(schema: pa.Schema) -> Columns:
    """Return names and types as a manifest holds them."""
    return tuple((item.name, str(item.type)) for item in schema)
