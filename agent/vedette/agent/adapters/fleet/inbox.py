"""Assignments that came in a file: ``state_dir/import``, where a command leaves them and the running agent finds them.

``ready-<sequence>-<letters>/`` holds ``assignment``, ``release-00`` … and the blobs they need, each named by the
hexadecimal digits of its digest. It gets this name only when all of it is on the disk, in one rename; so a power cut
leaves all or nothing, and an agent that does not run finds it at its next start. Blobs that the store has are hard
links, and so is what the agent takes from here: a model lies on the disk once.

Rules: nothing here is believed. Documents are verified again by who acts on them, blobs are checked by digest as any
download; a damaged folder costs the import, nothing else. One command at a time writes; the agent takes and removes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vedette.agent.adapters.storage.blobs import Blobs, storage_error
from vedette.agent.adapters.storage.files import FileTooLarge, make_folder, read_file, sync_folder
from vedette.agent.domain.advice import EXIT_REFUSED, AdvisedError
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.errors import InstallCode
from vedette.models.assignment import MAX_SLOTS
from vedette.models.release import Blob
from vedette.models.signing import MAX_ENVELOPE_BYTES
from vedette.wire.values import DesiredState, GenerationResult, Outcome

logger = logging.getLogger(__name__)

_READY = "ready-"
_NEW = "new-"
_HEX_DIGITS = 64
_LOOK_S = 1.0

Fetch = Callable[[Blob], Awaitable[Path]]


class ImportRunning(AdvisedError):
    """Another command imports a file at this moment."""

    code = "import-running"
    exit_code = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Waiting:
    """An assignment that waits to be taken. ``place`` is its folder's name, which never comes twice."""

    sequence: int
    place: str
    desired: DesiredState


class Inbox:
    """The folder of one agent.

    Args:
        folder: Made when something is written.
        blobs: The agent's store, on the same file system.
    """

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs

    # The command's side

    @contextmanager
    def begun(self) -> Iterator[Draft]:
        """Hold a new folder that :meth:`Draft.commit` makes ready; without that it is gone when the block ends.

        Raises:
            ImportRunning: Another command holds one.
            DiskFull, StateReadOnly, StateError: It cannot be made.
        """
        with _typed(self._folder), _locked(self._folder):
            for left in self._folder.glob(f"{_NEW}*"):  # of a command that was killed: its lock is gone
                shutil.rmtree(left, ignore_errors=True)
            place = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._folder))
            try:
                yield Draft(place, self._blobs)
            finally:
                shutil.rmtree(place, ignore_errors=True)

    # The agent's side

    def newest(self) -> Waiting | None:
        """Return what waits, of several the highest sequence; None when nothing does, or none can be read."""
        for folder in sorted(self._waiting(), key=_age, reverse=True):
            try:
                return _waiting(folder)
            except (OSError, FileTooLarge) as exc:
                logger.warning("an import in %s cannot be read: %s", folder, exc)
        return None

    def offer(self, blob: Blob) -> None:
        """Give the store a blob that waits here, if it has none, as a finished download that is still to be checked."""
        path, partial = self._blobs.path(blob.digest), self._blobs.partial_path(blob.digest)
        for folder in self._waiting():
            source = folder / path.name
            with suppress(OSError):  # not here; or on a disk that takes no writes, of which the install tells
                if not path.exists() and source.stat().st_size == blob.size != _size(partial):
                    partial.unlink(missing_ok=True)
                    os.link(source, partial)

    def offering(self, fetch: Fetch) -> Fetch:
        """Return a fetch that looks here first."""

        async def offered(blob: Blob) -> Path:
            self.offer(blob)
            return await fetch(blob)

        return offered

    def offer_all(self) -> None:
        """Offer every blob that waits: so that the room for them is not asked for twice."""
        for folder in self._waiting():
            with suppress(OSError):
                self._blobs.make_folders()
                for path in folder.iterdir():
                    if len(path.name) == _HEX_DIGITS and (size := path.stat().st_size):
                        self.offer(Blob(f"sha256:{path.name}", size))

    def settle(self, sequence: int) -> None:
        """Remove what waits up to a sequence: it was applied, refused, or failed for good. What serves is linked."""
        for folder in self._waiting():
            if _sequence_of(folder) <= sequence:
                shutil.rmtree(folder, ignore_errors=True)  # what stays on a failing disk is settled again

    def _waiting(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path.name.startswith(_READY) and _sequence_of(path)]
        except OSError:
            return []


class Desk(Protocol):
    """Who acts on assignments."""

    def imported(self, word: DesiredState) -> None:
        """Take what a file brought; it may have come before."""
        ...


class Watch:
    """Hands what waits to who acts on it, and clears it away when that is over. Used from the event loop's thread.

    Attributes:
        inbox: What is watched.
        outcome: The newest word on an assignment, as plain values; None before the first.
        taken: The place of what was taken last; empty before.
    """

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.outcome: dict[str, Any] | None = None
        self.taken = ""
        self._settled = 0

    def telling(self, report: Callable[[GenerationResult], None]) -> Callable[[GenerationResult], None]:
        """Return a taker of results that listens on the way."""

        def told(result: GenerationResult) -> None:
            self.outcome = asdict(result)
            if _is_over(result):
                self._settled = max(self._settled, result.sequence)
            report(result)

        return told

    async def run(self, desk: Desk, clock: Clock) -> None:
        """Look for ever: once a second for a name in a folder, which costs nothing that can be measured."""
        while True:
            self.look(desk)
            await clock.sleep(_LOOK_S)

    def look(self, desk: Desk) -> None:
        """Hand over what is new, and clear away what is over."""
        waiting = self.inbox.newest()
        if waiting is not None and waiting.place != self.taken:
            self.inbox.offer_all()
            self._hand_over(waiting, desk)
        if waiting is not None:
            self.inbox.settle(self._settled)

    def _hand_over(self, waiting: Waiting, desk: Desk) -> None:
        logger.info("assignment %d came in a file", waiting.sequence)
        self.outcome, self.taken = None, waiting.place
        self._settled = min(self._settled, waiting.sequence - 1)  # it may have failed once, and is tried again
        desk.imported(waiting.desired)
        # A refused document may not have said its sequence.
        if self._is_refused():
            self._settled = max(self._settled, waiting.sequence)

    def _is_refused(self) -> bool:
        return self.outcome is not None and self.outcome["outcome"] is Outcome.REFUSED


def _is_over(result: GenerationResult) -> bool:
    """Return whether nothing more comes of an assignment by itself."""
    if result.outcome is not Outcome.FAILED:
        return True
    return result.code == InstallCode.QUARANTINED or (
        result.code in tuple(InstallCode) and InstallCode(result.code).blames_build
    )


class Draft:
    """A folder that is being filled. Raises DiskFull, StateReadOnly and StateError as the disk does."""

    def __init__(self, place: Path, blobs: Blobs) -> None:
        self._place = place
        self._blobs = blobs

    def put(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self.writing(name) as write:
            write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Callable[[bytes], object]]:
        """Write a file piece by piece; it is on the disk when the block ends."""
        path = self._place / name
        with _typed(path), path.open("wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())

    def link(self, blob: Blob) -> None:
        """Keep a blob of the store from being removed meanwhile."""
        source = self._blobs.path(blob.digest)
        with _typed(source):
            os.link(source, self._place / source.name)

    def commit(self, desired: DesiredState, sequence: int) -> str:
        """Write the documents and make all of it ready, for an agent that runs or one that starts; return its place."""
        self.put("assignment", desired.assignment)
        for number, release in enumerate(desired.releases):
            self.put(f"release-{number:02}", release)
        ready = self._place.with_name(f"{_READY}{sequence:016}-{self._place.name.removeprefix(_NEW)}")
        with _typed(ready):
            sync_folder(self._place)
            self._place.rename(ready)
            sync_folder(ready.parent)
        return ready.name


def _age(folder: Path) -> tuple[int, int]:
    with suppress(OSError):
        return _sequence_of(folder), folder.stat().st_mtime_ns
    return 0, 0


def _waiting(folder: Path) -> Waiting:
    releases = [read_file(path, MAX_ENVELOPE_BYTES) for path in sorted(folder.glob("release-*"))[:MAX_SLOTS]]
    desired = DesiredState(assignment=read_file(folder / "assignment", MAX_ENVELOPE_BYTES), releases=tuple(releases))
    return Waiting(_sequence_of(folder), folder.name, desired)


def _sequence_of(folder: Path) -> int:
    text = folder.name.removeprefix(_READY).partition("-")[0]
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else 0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return -1


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise storage_error(exc, path) from exc


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    make_folder(folder)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise ImportRunning(
            "another command imports a file", f"it holds {folder}/lock", "wait for it, or stop it, then try again"
        ) from exc
    finally:
        os.close(lock)
