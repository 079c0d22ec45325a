from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vedette.agent.adapters.storage.blobs import Blobs
from vedette.agent.domain.errors import BlobCorrupt, SpawnFailed, StateError
from vedette.models.documents import digest_of
from vedette.models.release import Blob

DATA = bytes(range(256)) * 9000  # more than one chunk
BLOB = Blob(digest_of(DATA), len(DATA))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path / "blobs")
    made.path(BLOB.digest).write_bytes(DATA)
    return made


def test_a_sealed_copy_is_the_checked_bytes_and_can_never_change(blobs: Blobs) -> None:
    descriptor = blobs.sealed(BLOB)
    try:
        assert os.pread(descriptor, len(DATA) + 1, 0) == DATA
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
    assert blobs.read(BLOB) == DATA


@pytest.mark.parametrize("name", ["", "sha256", "partial"])
def test_a_file_in_the_place_of_a_folder_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "blobs" / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(StateError, match=str(tmp_path)):
        Blobs(tmp_path / "blobs")


def shorten(path: Path) -> None:
    path.write_bytes(DATA[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(DATA + b"x")


def flip(path: Path) -> None:
    path.write_bytes(b"\1" + DATA[1:])


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_bytes(DATA)
    path.unlink()
    path.symlink_to(target)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [shorten, lengthen, flip, remove, link, folder])
def test_a_file_that_is_not_its_digest_is_never_given_out(blobs: Blobs, damage: Callable[[Path], None]) -> None:
    damage(blobs.path(BLOB.digest))
    with pytest.raises(BlobCorrupt, match=BLOB.digest.removeprefix("sha256:")):
        blobs.read(BLOB)
    with pytest.raises(BlobCorrupt):
        blobs.sealed(BLOB)


@pytest.mark.parametrize("damage", [shorten, lengthen, flip])
def test_a_damaged_file_is_removed_when_it_is_looked_for(blobs: Blobs, damage: Callable[[Path], None]) -> None:
    assert blobs.is_whole(BLOB)
    damage(blobs.path(BLOB.digest))
    assert not blobs.is_whole(BLOB)
    assert not blobs.path(BLOB.digest).exists()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_host_short_of_descriptors_does_not_make_a_good_file_a_bad_one(blobs: Blobs) -> None:
    with no_descriptor_left():
        with pytest.raises(SpawnFailed, match="Too many open files"):
            blobs.is_whole(BLOB)
        with pytest.raises(SpawnFailed):
            blobs.sealed(BLOB)
    assert blobs.is_whole(BLOB)


def test_progress_counts_whole_files_and_parts(blobs: Blobs) -> None:
    other = Blob(digest_of(b"other"), 5)
    assert (blobs.bytes_done(BLOB), blobs.bytes_done(other)) == (len(DATA), 0)
    blobs.partial_path(other.digest).write_bytes(b"oth")
    assert blobs.bytes_done(other) == 3


def test_collecting_keeps_what_is_named_and_tells_what_it_freed(blobs: Blobs) -> None:
    gone = Blob(digest_of(b"gone"), 4)
    blobs.path(gone.digest).write_bytes(b"gone")
    blobs.partial_path(gone.digest).write_bytes(b"go")
    blobs.partial_path(BLOB.digest).write_bytes(b"part")
    assert blobs.collect({BLOB.digest}) == 6
    assert blobs.path(BLOB.digest).exists()
    assert blobs.partial_path(BLOB.digest).exists()
    assert not blobs.path(gone.digest).exists()
    assert not blobs.partial_path(gone.digest).exists()


def test_what_fits_stays_and_beyond_that_the_longest_unused_go(blobs: Blobs) -> None:
    made = [Blob(digest_of(bytes([n]) * 10), 10) for n in range(4)]
    for age, blob in enumerate(made):
        blobs.path(blob.digest).write_bytes(b"x" * 10)
        os.utime(blobs.path(blob.digest), (100 + age, 100 + age))
    blobs.used(made[0])
    before = len(DATA) + 40
    assert blobs.collect({BLOB.digest, made[1].digest}, before) == 0
    assert blobs.collect({BLOB.digest, made[1].digest}, before - 11) == 20
    assert [blobs.path(blob.digest).exists() for blob in made] == [True, True, False, False]
    assert blobs.collect({BLOB.digest, made[1].digest}, 0) == 10


def test_what_is_to_be_dropped_goes_however_much_fits_unless_it_is_in_use(blobs: Blobs) -> None:
    bad = Blob(digest_of(b"bad"), 3)
    blobs.path(bad.digest).write_bytes(b"bad")
    assert blobs.collect({BLOB.digest, bad.digest}, 1000, drop=[bad.digest]) == 0
    assert blobs.collect({BLOB.digest}, 1000, drop=[bad.digest, BLOB.digest]) == 3


def test_a_place_where_no_folder_can_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="file/blobs"):
        Blobs(tmp_path / "file" / "blobs")
