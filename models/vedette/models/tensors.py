"""Named arrays in one file: a small, safe form for golden samples and profiles.

Layout: 8 bytes little-endian length of the header, the header as JSON (name -> dtype, shape, data_offsets), then the
arrays' bytes, little-endian and row-major. No code, no pickles, no compression, so the size read is the size used.

Strings are object arrays of ``bytes``; in the file the length of each, four bytes, stands before it.

Source: the file format of the safetensors library (huggingface/safetensors), read and written here in part: numeric
dtypes and bool. ``BYTES`` is our own addition.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vedette.models.errors import ModelsError

MAX_TENSOR_FILE_BYTES = 64 * 1024 * 1024
_MAX_HEADER_BYTES = 1024 * 1024
_LENGTH_BYTES = 8
_NAMES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_TEXT = np.dtype(object)
_TEXT_NAME = "BYTES"
_TEXT_LENGTH_BYTES = 4
_DTYPES = {dtype: name for name, dtype in _NAMES.items()}

Arrays = Mapping[str, npt.NDArray[Any]]


class TensorFileError(ModelsError):
    """Bytes are no tensor file, or an array has no form in one."""


def dump_tensors(arrays: Arrays) -> bytes:
    """Return named arrays as one file, arrays in order of their names.

    Raises:
        TensorFileError: A dtype has no form in the file, or the file would be over the limit.
    """
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        dtype, part = _dumped(name, array)
        header[name] = {
            "dtype": dtype,
            "shape": list(arrays[name].shape),
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    made = b"".join([len(head).to_bytes(_LENGTH_BYTES, "little"), head, *parts])
    if len(made) > MAX_TENSOR_FILE_BYTES:
        raise TensorFileError(f"tensor file would be {len(made)} bytes, limit {MAX_TENSOR_FILE_BYTES}")
    return made


def _dumped(name: str, array: npt.NDArray[Any]) -> tuple[str, bytes]:
    kind = array.dtype.newbyteorder("<")
    if kind == _TEXT:
        values = array.ravel().tolist()
        if any(type(value) is not bytes for value in values):
            raise TensorFileError(f"array {name[:80]!r} of objects holds other things than bytes")
        return _TEXT_NAME, b"".join(len(value).to_bytes(_TEXT_LENGTH_BYTES, "little") + value for value in values)
    if kind not in _DTYPES:
        raise TensorFileError(f"array {name[:80]!r} has dtype {array.dtype}, known are {sorted(_NAMES)}")
    return _DTYPES[kind], array.astype(kind, copy=False).tobytes()


def load_tensors(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the named arrays of a file; read-only views of ``data``.

    Raises:
        TensorFileError: The bytes are no tensor file: too large, cut, lying about lengths or shapes.
    """
    if not _LENGTH_BYTES <= len(data) <= MAX_TENSOR_FILE_BYTES:
        raise TensorFileError(f"tensor file is {len(data)} bytes, limits {_LENGTH_BYTES} and {MAX_TENSOR_FILE_BYTES}")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        raise TensorFileError(f"tensor file has a header of {length} bytes in a file of {len(data)}")
    body = memoryview(data)[_LENGTH_BYTES + length :]
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        items = [(str(name), entry) for name, entry in header.items() if name != "__metadata__"]
        _check_apart(items, len(body))
        return {name: _array(name, entry, body) for name, entry in items}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as exc:
        raise TensorFileError(f"tensor file's header is malformed: {type(exc).__name__} {str(exc)[:200]}") from exc


def _check_apart(items: list[tuple[str, Any]], size: int) -> None:
    """Refuse arrays that lie over each other: strings are copied, and ten thousand of a whole file are too many."""
    places = [entry["data_offsets"] for _, entry in items]
    claimed = sum(max(end - begin, 0) for begin, end in places)
    if claimed > size:
        raise TensorFileError(f"tensor file's arrays claim {str(claimed)[:40]} bytes of {size}")


def _array(name: str, entry: Any, body: memoryview) -> npt.NDArray[Any]:
    is_text = entry["dtype"] == _TEXT_NAME
    dtype, shape = _TEXT if is_text else _NAMES[entry["dtype"]], entry["shape"]
    begin, end = entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)) or len(shape) > 8:
        raise TensorFileError(f"array {name[:80]!r} has shape {str(shape)[:80]} at {begin} to {end}")
    count = math.prod(shape)
    if is_text:
        return _strings(name, bytes(body[begin:end]), count).reshape(shape)
    if end > len(body) or end - begin != count * dtype.itemsize:
        raise TensorFileError(
            f"array {name[:80]!r} of {count} x {dtype.itemsize} bytes claims {begin} to {end} of {len(body)}"
        )
    return np.frombuffer(body[begin:end], dtype).reshape(shape)


def _strings(name: str, packed: bytes, count: int) -> npt.NDArray[Any]:
    if count * _TEXT_LENGTH_BYTES > len(packed):
        raise TensorFileError(f"array {name[:80]!r} claims {count} strings in {len(packed)} bytes")
    values, at = [], 0
    for _ in range(count):
        start = at + _TEXT_LENGTH_BYTES
        at = start + int.from_bytes(packed[at:start], "little")
        values.append(packed[start:at])
    if at != len(packed):
        raise TensorFileError(f"array {name[:80]!r} has {count} strings in {at} bytes of {len(packed)}")
    made = np.empty(count, _TEXT)
    made[:] = values
    return made
