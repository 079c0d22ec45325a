"""What a disk may hold after a power cut, given what was asked of it until then.

A :class:`Disk` takes records one by one. At any point it can say what a crash there leaves, by five models. None of
them breaks a promise of POSIX ``fsync``; between such promises they differ in what the disk was quick or slow to do:

- ``strict``: nothing but what an ``fsync`` covers. A file has the bytes of its last fsync, a folder the entries of its
  own last fsync; a file's rename across folders is two entries, each as durable as its folder. A folder has one name on
  every file system: it moves when either of the two is synced.
- ``ordered``: ext4's default (``data=ordered`` with delayed allocation): every name and every size that was cut or
  allocated is there, bytes only as synced. A file that was never synced is there and empty.
- ``sized``: the same, but sizes came before bytes: what was not synced reads as zeros (XFS, ext4 ``data=writeback``).
- ``reordered``: names stop anywhere after the last sync of anything; of the bytes written since a file's own last sync
  each sector came or did not, by lot.
- ``torn``: everything came, but of the last write only the first 1 to 4095 bytes.

Sources: POSIX.1-2017 ``fsync``; Pillai et al., All File Systems Are Not Created Equal: On the Complexity of Crafting
Crash-Consistent Applications, OSDI 2014 (ALICE), tables 1 and 2; the kernel's Documentation/filesystems/ext4.

A sector is written whole or not, and writing one leaves its neighbours alone, as SQLite also takes for granted
(https://sqlite.org/psow.html). Left out: disks that lie about a flush, and times of files.
"""

from __future__ import annotations

import functools
import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.powercut.records import LogBroken, Op, Record

SECTOR = 512
_NOISE = b"\xa5"
_FOLDER_MODE = stat.S_IFDIR | 0o700


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a crashed folder: type and permissions, and a file's bytes."""

    mode: int
    content: bytes = b""


Tree = dict[str, Node]
"""A crashed folder: nodes by path, a folder before what is in it. Equal contents share their bytes."""


@dataclass(slots=True, eq=False)
class _Inode:
    mode: int
    live: bytearray = field(default_factory=bytearray)
    ordered: bytearray = field(default_factory=bytearray)  # as last synced, cut and extended as since
    durable: bytes = b""  # as last synced
    durable_mode: int = 0
    unsynced: list[Record] = field(default_factory=list)
    is_volatile: bool = False
    entries: dict[str, _Inode] = field(default_factory=dict)
    durable_entries: dict[str, _Inode] = field(default_factory=dict)
    frozen: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.durable_mode = self.mode

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def change(self, record: Record) -> None:
        """Take a change of bytes."""
        self.frozen.clear()
        self.unsynced.append(record)
        _change(self.live, record)
        if record.op is not Op.WRITE:
            _change(self.ordered, record)

    def sync(self) -> None:
        """Take an fsync of the file."""
        self.durable_mode = self.mode
        if self.unsynced:
            self.durable = bytes(self.live)
            self.ordered = bytearray(self.live)
            self.unsynced.clear()
            self.frozen.clear()

    def bytes_of(self, model: str) -> bytes:
        """Return live, ordered or sized content; the same object until it changes."""
        if model not in self.frozen:
            made = bytes(self.live if model == "live" else self.ordered)
            self.frozen[model] = made.ljust(len(self.live), b"\0") if model == "sized" else made
        return self.frozen[model]

    def left(self, content: bytes) -> Node:
        """Return what a crash leaves of the file; of a mapping without a promise that is any bytes."""
        return Node(self.mode, _NOISE * len(self.live) if self.is_volatile else content)

    def drawn(self, lot: random.Random) -> bytes:
        """Return the synced bytes with what came of the writes since."""
        made = bytearray(self.durable)
        for record in self.unsynced:
            if record.op is not Op.WRITE:
                _change(made, record)
                continue
            for piece in _sectors(record):
                if lot.random() < 0.5:
                    _change(made, piece)
        return bytes(made)


def _change(content: bytearray, record: Record) -> None:
    match record.op:
        case Op.WRITE:
            end = record.offset + len(record.data)
            _extend(content, record.offset)
            content[record.offset : end] = record.data
        case Op.TRUNCATE:
            del content[record.length :]
            _extend(content, record.length)
        case Op.ALLOCATE:
            _extend(content, record.offset + record.length)


def _extend(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))


def _sectors(record: Record) -> Iterator[Record]:
    at, end = record.offset, record.offset + len(record.data)
    while at < end:
        until = min((at // SECTOR + 1) * SECTOR, end)
        yield Record(Op.WRITE, offset=at, data=record.data[at - record.offset : until - record.offset])
        at = until


class Disk:
    """The folder that a log is about, empty at first and durable itself.

    Args:
        unrecorded: Paths below it under which processes without the shim write too; what the log cannot know of
            is passed over there, and nowhere else.
    """

    def __init__(self, unrecorded: Sequence[str] = ()) -> None:
        self._root = _Inode(_FOLDER_MODE)
        self._files: dict[int, _Inode] = {}
        self._unrecorded = tuple(f"{path}/" for path in unrecorded)
        self._names = [_flat(self._root, _live_entries)]  # after each change of a name since the last sync of anything

    def apply(self, record: Record) -> None:
        """Take a record.

        Raises:
            LogBroken: It is about a file or name that no record made.
        """
        try:
            _APPLY[record.op](self, record)
        except KeyError as exc:
            if not record.path.startswith(self._unrecorded):
                raise LogBroken(f"{record.op.name} of {record.path}: nothing made {exc}") from exc

    # What happened

    def _create(self, record: Record) -> None:
        self._files[record.inode] = self._put(record.path, _Inode(record.mode))

    def _make_folder(self, record: Record) -> None:
        self._put(record.path, _Inode(record.mode))

    def _change_bytes(self, record: Record) -> None:
        self._files[record.inode].change(record)

    def _set_volatile(self, record: Record) -> None:
        self._files[record.inode].is_volatile = True

    def _change_mode(self, record: Record) -> None:
        found = self._find(record.path) if stat.S_ISDIR(record.mode) else self._files[record.inode]
        found.mode = record.mode

    def _sync(self, record: Record) -> None:
        self._files[record.inode].sync()
        self._names_are_durable()

    def _sync_folder(self, record: Record) -> None:
        self._sync_entries(self._find(record.path))
        self._names_are_durable()

    def _sync_entries(self, folder: _Inode) -> None:
        before = folder.durable_entries
        folder.durable_mode = folder.mode
        folder.durable_entries = dict(folder.entries)
        for moved in _folders(folder.entries.values()) - _folders(before.values()):
            self._forget_elsewhere(moved, folder)
        for moved in _folders(before.values()) - _folders(folder.entries.values()):
            self._keep_elsewhere(moved)

    def _forget_elsewhere(self, moved: _Inode, here: _Inode) -> None:
        for other in _all(self._root, _durable_entries):
            if other is not here:
                other.durable_entries = {n: inode for n, inode in other.durable_entries.items() if inode is not moved}

    def _keep_elsewhere(self, moved: _Inode) -> None:
        for other in _all(self._root, _live_entries):
            other.durable_entries |= {name: inode for name, inode in other.entries.items() if inode is moved}

    def _names_are_durable(self) -> None:
        """Journals commit in order: a sync of anything takes every name changed before it along, but for ``strict``."""
        del self._names[:-1]

    def _sync_all(self, record: Record) -> None:
        for inode in self._files.values():
            inode.sync()
        for inode in (self._root, *_flat(self._root, _live_entries).values()):
            self._sync_entries(inode)
        self._names_are_durable()

    def _rename(self, record: Record) -> None:
        self._put(record.other, self._take(record.path))

    def _link(self, record: Record) -> None:
        self._put(record.other, self._find(record.path))

    def _unlink(self, record: Record) -> None:
        self._take(record.path)
        self._note_names()

    def _find(self, path: str) -> _Inode:
        found = self._root
        for name in path.split("/") if path else ():
            found = found.entries[name]
        return found

    def _put(self, path: str, inode: _Inode) -> _Inode:
        folder, _, name = path.rpartition("/")
        self._find(folder).entries[name] = inode
        self._note_names()
        return inode

    def _take(self, path: str) -> _Inode:
        folder, _, name = path.rpartition("/")
        return self._find(folder).entries.pop(name)

    def _note_names(self) -> None:
        self._names.append(_flat(self._root, _live_entries))

    # What a crash leaves

    def live(self) -> Tree:
        """Return the folder as processes see it; a host kill leaves this."""
        return _tree(self._names[-1], lambda inode: inode.bytes_of("live"))

    def strict(self) -> Tree:
        """Return what fsync covers and nothing else."""
        names = _flat(self._root, _durable_entries)
        return {path: replace(inode.left(inode.durable), mode=inode.durable_mode) for path, inode in names.items()}

    def ordered(self) -> Tree:
        """Return all names, and bytes as synced."""
        return _tree(self._names[-1], lambda inode: inode.bytes_of("ordered"))

    def sized(self) -> Tree:
        """Return all names and sizes; bytes that were not synced are zeros."""
        return _tree(self._names[-1], lambda inode: inode.bytes_of("sized"))

    def reordered(self, lot: random.Random) -> Tree:
        """Return names up to some point since the last sync, and by lot what was written since."""
        return _tree(lot.choice(self._names), lambda inode: inode.drawn(lot))

    def torn(self, record: Record, size: int) -> Tree:
        """Return everything, with the first bytes of a write that is not applied yet."""
        inode = self._files.get(record.inode)
        if inode is None:  # of a process without the shim
            return self.live()
        begun = bytearray(inode.live)
        _change(begun, Record(Op.WRITE, offset=record.offset, data=record.data[:size]))
        torn = bytes(begun)
        return _tree(self._names[-1], lambda each: torn if each is inode else each.bytes_of("live"))


_APPLY: dict[Op, Callable[[Disk, Record], None]] = {
    Op.CREATE: Disk._create,
    Op.TRUNCATE: Disk._change_bytes,
    Op.WRITE: Disk._change_bytes,
    Op.ALLOCATE: Disk._change_bytes,
    Op.FSYNC: Disk._sync,
    Op.FSYNC_FOLDER: Disk._sync_folder,
    Op.RENAME: Disk._rename,
    Op.LINK: Disk._link,
    Op.UNLINK: Disk._unlink,
    Op.MKDIR: Disk._make_folder,
    Op.RMDIR: Disk._unlink,
    Op.CHMOD: Disk._change_mode,
    Op.SYNC_ALL: Disk._sync_all,
    Op.VOLATILE: Disk._set_volatile,
    Op.MARK: lambda disk, record: None,
}

_Entries = Callable[[_Inode], dict[str, _Inode]]


def _live_entries(folder: _Inode) -> dict[str, _Inode]:
    return folder.entries


def _durable_entries(folder: _Inode) -> dict[str, _Inode]:
    return folder.durable_entries


def _folders(inodes: Iterable[_Inode]) -> set[_Inode]:
    return {inode for inode in inodes if inode.is_folder}


def _all(root: _Inode, entries: _Entries) -> list[_Inode]:
    return [root, *(inode for inode in _flat(root, entries).values() if inode.is_folder)]


def _flat(folder: _Inode, entries: _Entries, above: str = "") -> dict[str, _Inode]:
    found: dict[str, _Inode] = {}
    for name, inode in entries(folder).items():
        found[above + name] = inode
        if inode.is_folder:
            found |= _flat(inode, entries, f"{above}{name}/")
    return found


def _tree(names: dict[str, _Inode], content: Callable[[_Inode], bytes]) -> Tree:
    return {path: inode.left(content(inode)) for path, inode in names.items()}


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a crashed folder real below an existing one; a socket there is one that nobody serves."""
    for path, node in tree.items():
        target = folder / path
        if stat.S_ISDIR(node.mode):
            target.mkdir(mode=0o700)
        elif stat.S_ISSOCK(node.mode):
            os.mknod(target, node.mode)
        else:
            _write(target, node)
    for path, node in reversed(tree.items()):
        (folder / path).chmod(stat.S_IMODE(node.mode))


@functools.lru_cache(maxsize=256)
def _is_empty(content: bytes) -> bool:
    return content.count(0) == len(content)


def _write(target: Path, node: Node) -> None:
    with target.open("wb", buffering=0) as file:
        if _is_empty(node.content):
            file.truncate(len(node.content))
        else:
            file.write(node.content)
