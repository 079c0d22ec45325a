import contextlib
import hashlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vedette.controller.adapters.blobs import BlobStore
from vedette.controller.domain.errors import DiskFull, NotFound, StoreFailed, TooLarge

DATA = b"model bytes" * 1000
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let this process write files of at most 8 KiB, as a full disk would.

    No fixture: the limit is the whole process's, and a test report that goes to a file would break on it.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def leftovers(blobs: BlobStore, tmp_path: Path) -> list[Path]:
    return list((tmp_path / "blobs" / "incoming").iterdir())


def test_what_was_put_is_read_back_under_its_digest(blobs: BlobStore, tmp_path: Path):
    blob = blobs.put(DATA[i : i + 1000] for i in range(0, len(DATA), 1000))
    assert (blob.digest, blob.size) == (DIGEST, len(DATA))
    assert blobs.read(DIGEST, limit=len(DATA)) == DATA
    assert blobs.size(DIGEST) == len(DATA)
    assert list(blobs.digests()) == [DIGEST]
    assert leftovers(blobs, tmp_path) == []
    assert blobs.path(DIGEST).stat().st_mode & 0o777 == 0o400


def test_putting_the_same_bytes_again_changes_nothing(blobs: BlobStore, tmp_path: Path):
    (tmp_path / "file").write_bytes(DATA)
    assert blobs.put(DATA) == blobs.put_file(tmp_path / "file")
    assert list(blobs.digests()) == [DIGEST]


def test_an_oversized_upload_is_refused_and_leaves_nothing(blobs: BlobStore, tmp_path: Path):
    with pytest.raises(TooLarge) as caught:
        blobs.put(DATA, limit=len(DATA) - 1)
    assert str(len(DATA) - 1) in caught.value.why
    assert leftovers(blobs, tmp_path) == []
    assert not blobs.has(DIGEST)


def test_a_full_disk_is_typed_and_leaves_nothing(blobs: BlobStore, tmp_path: Path):
    for chunk_bytes in (1000, len(DATA)):
        with small_files(), pytest.raises(DiskFull, match="no room"):
            blobs.put(DATA[i : i + chunk_bytes] for i in range(0, len(DATA), chunk_bytes))
        assert leftovers(blobs, tmp_path) == []
    with small_files():
        assert blobs.put(b"small").size == 5


def test_writes_that_never_ended_are_swept_at_the_next_start(blobs: BlobStore, tmp_path: Path):
    (tmp_path / "blobs" / "incoming" / "cut").write_bytes(b"cut")
    BlobStore(tmp_path / "blobs")
    assert leftovers(blobs, tmp_path) == []


def test_damaged_bytes_are_never_returned(blobs: BlobStore):
    blobs.put(DATA)
    path = blobs.path(DIGEST)
    path.chmod(0o600)
    path.write_bytes(b"M" + DATA[1:])
    with pytest.raises(StoreFailed, match="damaged"):
        blobs.read(DIGEST, limit=len(DATA))
    with pytest.raises(StoreFailed, match="damaged"):
        blobs.verify(DIGEST)


@pytest.mark.parametrize("name", ["", "sha256:", DIGEST, "../../etc/passwd", "sha256:../" + "a" * 61, DIGEST.upper()])
def test_names_of_no_blob_are_not_found(blobs: BlobStore, name: str):
    for act in (blobs.open, blobs.size, blobs.verify):
        with pytest.raises(NotFound):
            act(name)
