"""What the shim wrote down: its log as values, and marks that a test adds to it.

The log is a sequence of records in the order in which the changes happened. A mark is a record of the test's own, put
behind everything that had happened when it was made: "this was answered to the caller".
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

_HEAD = struct.Struct("=IHHHHIQQQQ")  # struct head of shim.c
_MAGIC = 0x31435750


class Op(IntEnum):
    """What happened; the numbers are those of shim.c."""

    CREATE = 1
    TRUNCATE = 2
    WRITE = 3
    ALLOCATE = 4
    FSYNC = 5
    FSYNC_FOLDER = 6
    RENAME = 7
    LINK = 8
    UNLINK = 9
    MKDIR = 10
    RMDIR = 11
    CHMOD = 12
    SYNC_ALL = 13
    UNMODELLED = 14
    VOLATILE = 15
    MARK = 16


@dataclass(frozen=True, slots=True)
class Record:
    """One change.

    Attributes:
        op: What.
        path: Of the entry below the root, or of the file when it was changed.
        other: The new name of a rename or link; the function of an unmodelled call.
        inode: Of the file.
        offset: Of a write.
        length: Of a truncation or allocation.
        mode: Type and permissions of what was made or changed.
        data: What was written; a mark's JSON.
    """

    op: Op
    path: str = ""
    other: str = ""
    inode: int = 0
    offset: int = 0
    length: int = 0
    mode: int = 0
    data: bytes = b""

    @property
    def fact(self) -> Any:
        """What a mark says."""
        return json.loads(self.data)

    def to_bytes(self) -> bytes:
        """Return the record as the shim writes it."""
        path, other = os.fsencode(self.path), os.fsencode(self.other)
        head = (len(path), len(other), 0, self.mode, self.inode, self.offset, self.length, len(self.data))
        return _HEAD.pack(_MAGIC, self.op, *head) + path + other + self.data


class LogBroken(Exception):
    """The log does not say all that happened: no state built from it would prove anything."""


def read_log(path: Path) -> Iterator[Record]:
    """Yield the records of a log.

    Raises:
        LogBroken: It is cut, or holds a change that the shim cannot describe.
    """
    with path.open("rb") as log:
        while head := log.read(_HEAD.size):
            if len(head) < _HEAD.size or not head.startswith(_MAGIC.to_bytes(4, "little")):
                raise LogBroken(f"{path} is no log at byte {log.tell() - len(head)}")
            _, op, path_size, other_size, _, mode, inode, offset, length, data_size = _HEAD.unpack(head)
            name, other, data = log.read(path_size), log.read(other_size), log.read(data_size)
            if len(data) < data_size:
                raise LogBroken(f"{path} ends inside a record")
            record = Record(Op(op), os.fsdecode(name), os.fsdecode(other), inode, offset, length, mode, data)
            if record.op is Op.UNMODELLED:
                raise LogBroken(f"{record.path} was changed by {record.other}, which the log cannot describe")
            yield record


def mark(path: Path, fact: Any) -> None:
    """Add a mark behind everything that happened until now."""
    data = Record(Op.MARK, data=json.dumps(fact).encode()).to_bytes()
    with path.open("ab", buffering=0) as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(data)
