"""Writes what waits for the controller into a file, signed with the key that the controller knows.

Rules: nothing is deleted, for a file may never arrive: what is in it is sent over the next link once more, and the
controller counts it once. The file has its name only when all of it is on its disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from vedette.agent.adapters.fleet.identity import IdentityStore
from vedette.agent.adapters.storage.blobs import storage_error
from vedette.agent.adapters.storage.files import sync_folder
from vedette.agent.adapters.storage.spool import handed_out
from vedette.agent.domain.advice import EXIT_REFUSED, AdvisedError
from vedette.agent.settings import Settings
from vedette.models.telemetry_file import Head, framed, measured, start_of


class NotEnrolled(AdvisedError):
    """This appliance has no identity to sign with."""

    code = "not-enrolled"
    exit_code = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Exported:
    """What a file holds."""

    batches: int
    size: int  # bytes of the whole file


def export_telemetry(
    target: BinaryIO, settings: Settings, now: datetime, progress: Callable[[int, int], object]
) -> Exported:
    """Write all that waits on the disk.

    Args:
        target: The file, or a pipe.
        settings: Of the agent.
        now: Goes into the file, for people.
        progress: Told how many bytes of how many are written.

    Raises:
        NotEnrolled: There is no identity.
        IdentityDamaged: The enrolment cannot be used.
        DiskFull, StateReadOnly, StateError: The spool cannot be read and marked.
        OSError: The target fails.
    """
    identity = IdentityStore(settings.enrolment_dir).load()
    if identity is None:
        remedy = "enrol it first: vedette-agent enroll --token TOKEN"
        raise NotEnrolled("this appliance belongs to no controller", "nobody could take its telemetry", remedy)
    with _waiting(settings.state_dir / "spool.db") as bodies:
        count, size, digest = measured(bodies())
        head = Head(identity.agent_id, identity.name, now, identity.certificate, count, size, digest)
        start = start_of(head, identity.key)
        done = target.write(start)
        for body in bodies():
            done += target.write(framed(body))
            progress(done, len(start) + size)
    target.flush()
    return Exported(count, done)


@contextmanager
def _waiting(spool: Path) -> Iterator[Callable[[], Iterator[bytes]]]:
    if not spool.exists():  # it never ran
        yield lambda: iter(())
        return
    with handed_out(spool) as bodies:
        yield bodies


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Hold a new file that takes a name when the block ends well; else what was there stays.

    Raises:
        DiskFull: There is no room.
        StateReadOnly, StateError: It cannot be written.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
        with suppress(OSError):  # a stick's file system may have no such thing
            sync_folder(target.absolute().parent)
    except OSError as exc:
        raise storage_error(exc, target) from exc
    finally:
        fresh.unlink(missing_ok=True)
