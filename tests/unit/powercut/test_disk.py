"""What a crash may leave, by model: a table of the cases that programs get wrong, and properties of any history."""

from __future__ import annotations

import random
import stat
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.powercut.crashes import crashes, sampled
from tests.support.powercut.disk import SECTOR, Disk, Node, Tree
from tests.support.powercut.records import Op, Record

FILE, FOLDER = stat.S_IFREG | 0o600, stat.S_IFDIR | 0o700


def create(path: str, inode: int) -> Record:
    return Record(Op.CREATE, path, inode=inode, mode=FILE)


def write(inode: int, data: bytes, offset: int = 0) -> Record:
    return Record(Op.WRITE, inode=inode, data=data, offset=offset)


def fsync(inode: int) -> Record:
    return Record(Op.FSYNC, inode=inode)


def fsync_folder(path: str = "") -> Record:
    return Record(Op.FSYNC_FOLDER, path)


def rename(path: str, other: str) -> Record:
    return Record(Op.RENAME, path, other)


def folder(path: str) -> Record:
    return Record(Op.MKDIR, path, mode=FOLDER)


def after(*records: Record) -> Disk:
    disk = Disk()
    for record in records:
        disk.apply(record)
    return disk


def contents(tree: Tree) -> dict[str, bytes]:
    return {path: node.content for path, node in tree.items() if stat.S_ISREG(node.mode)}


OLD = (create("f", 1), write(1, b"old"), fsync(1), fsync_folder())
FRESH = (create("n", 2), write(2, b"new"))
MOVED = (
    *(folder("d"), folder("e"), folder("d/m"), create("d/m/f", 1), write(1, b"old"), Record(Op.SYNC_ALL)),
    rename("d/m", "e/m"),
)
CASES: dict[str, tuple[Sequence[Record], dict[str, bytes], dict[str, bytes], dict[str, bytes]]] = {
    # case: records, then what strict, ordered and sized leave
    "a file never synced": (FRESH, {}, {"n": b""}, {"n": b"\0\0\0"}),
    "a file synced, its folder not": ((*FRESH, fsync(2)), {}, {"n": b"new"}, {"n": b"new"}),
    "a folder synced, its file not": ((*FRESH, fsync_folder()), {"n": b""}, {"n": b""}, {"n": b"\0\0\0"}),
    "replaced, without a sync of the new bytes": (
        (*OLD, *FRESH, rename("n", "f")), {"f": b"old"}, {"f": b""}, {"f": b"\0\0\0"},
    ),
    "replaced, without a sync of the folder": (
        (*OLD, *FRESH, fsync(2), rename("n", "f")), {"f": b"old"}, {"f": b"new"}, {"f": b"new"},
    ),
    "replaced as it should be": (
        (*OLD, *FRESH, fsync(2), rename("n", "f"), fsync_folder()), {"f": b"new"}, {"f": b"new"}, {"f": b"new"},
    ),
    "written over in place": ((*OLD, write(1, b"NEW!")), {"f": b"old"}, {"f": b"old"}, {"f": b"old\0"}),
    "cut to nothing and written anew": (
        (*OLD, Record(Op.TRUNCATE, inode=1), write(1, b"n")), {"f": b"old"}, {"f": b""}, {"f": b"\0"},
    ),
    "removed": ((*OLD, Record(Op.UNLINK, "f")), {"f": b"old"}, {}, {}),
    "moved across folders, only the new one synced": (
        (*OLD, folder("d"), fsync_folder(), rename("f", "d/f"), fsync_folder("d")),
        {"f": b"old", "d/f": b"old"}, {"d/f": b"old"}, {"d/f": b"old"},
    ),
    "moved across folders, only the old one synced": (
        (*OLD, folder("d"), fsync_folder(), rename("f", "d/f"), fsync_folder()), {}, {"d/f": b"old"}, {"d/f": b"old"},
    ),
    "a folder moved, only the new one above it synced": (
        (*MOVED, fsync_folder("e")), {"e/m/f": b"old"}, {"e/m/f": b"old"}, {"e/m/f": b"old"},
    ),
    "a folder moved, only the old one above it synced": (
        (*MOVED, fsync_folder("d")), {"e/m/f": b"old"}, {"e/m/f": b"old"}, {"e/m/f": b"old"},
    ),
    "a folder moved, neither above it synced": (MOVED, {"d/m/f": b"old"}, {"e/m/f": b"old"}, {"e/m/f": b"old"}),
    "in a folder whose own name was not synced": (
        (folder("d"), create("d/f", 1), write(1, b"x"), fsync(1), fsync_folder("d")), {}, {"d/f": b"x"}, {"d/f": b"x"},
    ),
    "everything synced at once": (
        (*FRESH, folder("d"), create("d/f", 3), Record(Op.SYNC_ALL)), {"n": b"new", "d/f": b""},
        {"n": b"new", "d/f": b""}, {"n": b"new", "d/f": b""},
    ),
    "an inode number used again": (
        (*OLD, Record(Op.UNLINK, "f"), create("g", 1), write(1, b"g")), {"f": b"old"}, {"g": b""}, {"g": b"\0"},
    ),
    "written behind its end": ((create("n", 2), write(2, b"x", 3), Record(Op.SYNC_ALL)), *({"n": b"\0\0\0x"},) * 3),
}  # fmt: skip


@pytest.mark.parametrize(("records", "strict", "ordered", "sized"), CASES.values(), ids=CASES)
def test_what_each_model_leaves(
    records: Sequence[Record], strict: dict[str, bytes], ordered: dict[str, bytes], sized: dict[str, bytes]
) -> None:
    disk = after(*records)
    assert [contents(tree) for tree in (disk.strict(), disk.ordered(), disk.sized())] == [strict, ordered, sized]


def test_permissions_are_durable_with_the_file() -> None:
    disk = after(*OLD, Record(Op.CHMOD, "f", inode=1, mode=stat.S_IFREG | 0o400))
    assert (disk.strict()["f"].mode, disk.ordered()["f"].mode) == (FILE, stat.S_IFREG | 0o400)


def test_a_mapping_without_a_promise_holds_noise() -> None:
    disk = after(create("x-shm", 1), write(1, b"index"), Record(Op.VOLATILE, inode=1), Record(Op.SYNC_ALL))
    assert {tree["x-shm"] for tree in (disk.strict(), disk.ordered(), disk.live())} == {Node(FILE, b"\xa5" * 5)}


def test_a_torn_write_is_a_prefix_on_top_of_everything_before() -> None:
    disk = after(*OLD, write(1, b"---"))
    assert contents(disk.torn(write(1, b"wxyz", 2), 3)) == {"f": b"--wxy"}


def test_reordered_sectors_come_each_or_not_and_names_only_as_far_as_the_journal() -> None:
    pages = b"a" * SECTOR + b"b" * SECTOR
    disk = after(*OLD, write(1, pages), rename("f", "g"), rename("g", "h"))
    found = [contents(disk.reordered(random.Random(seed))) for seed in range(200)]
    assert {name for tree in found for name in tree} == {"f", "g", "h"}
    old = b"old".ljust(SECTOR, b"\0")
    expected = {b"old", pages[:SECTOR], old + pages[SECTOR:], pages}
    assert {content for tree in found for content in tree.values()} == expected


# Histories: any mix of changes to three files in two folders.

INODES = st.sampled_from([1, 2, 3])
STARTS = (folder("d"), create("a", 1), create("b", 2), create("d/c", 3))
CHANGES = st.one_of(
    st.builds(write, INODES, st.binary(min_size=1, max_size=1500), st.integers(0, 3000)),
    st.builds(lambda inode, size: Record(Op.TRUNCATE, inode=inode, length=size), INODES, st.integers(0, 4000)),
    st.builds(lambda inode, size: Record(Op.ALLOCATE, inode=inode, length=size), INODES, st.integers(1, 4000)),
    st.builds(fsync, INODES),
    st.builds(fsync_folder, st.sampled_from(["", "d"])),
)
HISTORIES = st.lists(CHANGES, max_size=30)


@given(HISTORIES, st.integers())
def test_what_was_synced_is_left_by_every_model(history: list[Record], seed: int) -> None:
    disk = after(*STARTS, *history, Record(Op.SYNC_ALL))
    whole = disk.live()
    assert disk.strict() == disk.ordered() == disk.sized() == disk.reordered(random.Random(seed)) == whole


@given(HISTORIES)
def test_a_file_synced_last_has_its_bytes_in_every_model(history: list[Record]) -> None:
    disk = after(*STARTS, Record(Op.SYNC_ALL), *history, fsync(2))
    wanted = disk.live()["b"]
    assert {tree["b"] for tree in (disk.strict(), disk.ordered(), disk.sized())} == {wanted}


@given(HISTORIES)
def test_without_a_sync_strict_never_changes(history: list[Record]) -> None:
    synced = (Op.FSYNC, Op.FSYNC_FOLDER)
    disk = after(*STARTS, Record(Op.SYNC_ALL))
    before = disk.strict()
    for record in history:
        if record.op not in synced:
            disk.apply(record)
    assert disk.strict() == before


@given(HISTORIES)
def test_sizes_are_right_and_every_byte_is_the_written_one_or_zero(history: list[Record]) -> None:
    disk = after(*STARTS, *history)
    live, sized = disk.live(), disk.sized()
    for path, node in sized.items():
        assert len(node.content) == len(live[path].content)
    assert disk.strict().keys() <= live.keys()


@given(HISTORIES, st.integers(0, 30))
def test_crashes_are_those_of_each_prefix_and_none_is_told_twice(history: list[Record], cut: int) -> None:
    records = [*STARTS, *history]
    found = list(crashes(records))
    assert {crash.at for crash in found} <= set(range(1, len(records) + 1))
    disk = after(*records[:cut])
    if cut:
        trees = [crash.tree for crash in found if crash.at <= cut]
        assert disk.strict() in trees
        assert disk.ordered() in trees
    keys = [(len(crash.facts), frozenset(crash.tree.items())) for crash in found]
    assert len(keys) == len(set(keys))


def test_a_sample_keeps_the_first_crash_of_each_model_behind_each_mark() -> None:
    told = Record(Op.MARK, data=b'"told"')
    records = [*OLD, told, *(write(1, bytes([65 + n]) * 9, 9 * n) for n in range(50)), fsync(1)]
    found = list(crashes(records))
    kept = list(sampled(found, 0.0))
    assert {(c.model.partition(" ")[0], len(c.facts)) for c in kept} == {
        (c.model.partition(" ")[0], len(c.facts)) for c in found
    }
    assert len(kept) < len(found) / 5
    assert list(sampled(found, 1.0)) == found
