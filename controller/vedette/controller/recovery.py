"""``vedette-controller backup`` and ``restore``: what people see of them."""

from __future__ import annotations

import filecmp
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from vedette.controller.adapters.backup import MIRROR, Made, back_up, back_up_into
from vedette.controller.adapters.blobs import make_folder
from vedette.controller.adapters.examine import lacking
from vedette.controller.adapters.lock import locked
from vedette.controller.adapters.restore import Staged, commit, finish_restore, staged
from vedette.controller.adapters.service_user import become_owner, become_service_user, service_user
from vedette.controller.domain.backup import SETTINGS
from vedette.controller.domain.disk import typed_os_errors
from vedette.controller.domain.errors import InvalidInput, Refused
from vedette.controller.rooms import MIGRATIONS
from vedette.controller.settings import DEFAULT_CONFIG, DEFAULT_DATA_DIR, ControllerSettings

_SHOWN = 10


class Progress:
    """Tells on standard error how far something is: a line that moves on a terminal, else one at each tenth."""

    def __init__(self) -> None:
        self._last = ("", -1)

    def __call__(self, what: str, fraction: float) -> None:
        """Tell."""
        step = (what, int(100 * fraction if sys.stderr.isatty() else 10 * fraction))
        if step == self._last:
            return
        self._last = step
        text = f"{what}  {100 * fraction:3.0f} %"
        if sys.stderr.isatty():
            print(f"\r{text:<60}", end="\n" if fraction >= 1 else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def run_backup(settings: ControllerSettings, target: Path, *, with_blobs: bool) -> str:
    """Make a backup and return the words to print; into a folder it is one of several that are kept.

    Raises:
        ControllerError: It cannot be made; no file of its name is left.
    """
    now = datetime.now(UTC)
    with typed_os_errors(settings.data_dir):
        if target.is_dir() and target.stat().st_uid == settings.data_dir.stat().st_uid:
            become_owner(target)  # the nightly backup must be able to go on with what root leaves there
    if not target.is_dir():
        made = back_up(settings, MIGRATIONS, target, with_blobs=with_blobs, now=now, told=Progress())
        return _backed_up(made)
    if with_blobs:
        why = f"{target} is a folder; blobs lie beside the backups there, each once"
        raise InvalidInput("backup-options", "--with-blobs is for a backup in one file", why, "name a file")
    made = back_up_into(settings, MIGRATIONS, target, keep=settings.backup_keep, now=now, told=Progress())
    return _backed_up(made) + (
        f"\n{made.mirrored} new blobs are in {target / MIRROR}; {len(made.removed)} older backups were removed"
        f" (backup.keep is {settings.backup_keep})."
    )


def _backed_up(made: Made) -> str:
    manifest = made.manifest
    inside = "inside" if manifest.with_blobs else "named, not inside"
    return (
        f"{made.file}  {_size(made.size)}: controller {manifest.controller_id}, database and keys;"
        f" {len(manifest.blobs)} blobs of {_size(manifest.blob_bytes)} {inside}.\n"
        "It holds private keys: keep it as you keep a password, and on another disk."
    )


def run_restore(file: Path, data_dir: Path | None, blobs_from: Path | None, *, is_sure: bool) -> Iterator[str]:
    """Put a backup back and yield the words to print.

    Raises:
        ControllerError: Nothing was changed.
    """
    target = data_dir or DEFAULT_DATA_DIR
    with _opened(file) as source:  # as who asks: only that one may be allowed to read it
        if data_dir is None and service_user() is not None:
            become_service_user(target, may_return=True)
        else:
            become_owner(target, may_return=True)
        with typed_os_errors(target):
            make_folder(target)
        with locked(target):
            finish_restore(target)
            with staged(target, source, MIGRATIONS, blobs_from, Progress()) as ready:
                yield from _described(file, ready)
                confirm("Put it back?", is_sure=is_sure)
                aside = commit(ready, datetime.now(UTC))
    yield from _restored(ready, aside, file)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    with typed_os_errors(file), file.open("rb") as source:
        yield source


def _described(file: Path, ready: Staged) -> Iterator[str]:
    manifest = ready.manifest
    age_h = (datetime.now(UTC) - manifest.made).total_seconds() / 3600
    versions = ", ".join(f"{model}:{number}" for model, number in ready.holds.versions.items()) or "no versions"
    yield (
        f"{file}: controller {manifest.controller_id}, backed up {_local(manifest.made)} ({age_h:.1f} h ago) by version"
        f" {manifest.version}; {len(ready.holds.agents)} agents, {versions}."
    )
    if ready.lost:
        yield from _lost(ready)
    elif ready.is_occupied:
        yield f"{ready.data_dir} holds another controller, or one that cannot be read: it is replaced."
    if ready.missing:
        yield f"{len(ready.missing)} blobs of {_size(sum(b.size for b in ready.missing))} are not here."


def _lost(ready: Staged) -> Iterator[str]:
    lost, holds = ready.lost, ready.holds
    if lost is None:
        return
    newer = [name for name, agent_id in lost.agents.items() if agent_id not in holds.agents.values()]
    gone = [name for name, agent_id in holds.agents.items() if agent_id not in lost.agents.values()]
    versions = [
        f"{model}:{holds.versions.get(model, 0) + 1}"
        + (f" to {model}:{n}" if n > holds.versions.get(model, 0) + 1 else "")
        for model, n in lost.versions.items()
        if n > holds.versions.get(model, 0)
    ]
    yield f"It replaces {ready.data_dir}: the same controller with {len(lost.agents)} agents, as it is now."
    if newer:
        yield f"Unknown afterwards, to be enrolled again: {_few(newer)}."
    if gone:
        yield f"Removed since, and back afterwards: {_few(gone)}. Remove them again: vedette agent rm NAME"
    if versions:
        yield f"Lost: {_few(versions)}. Agents that run them keep them; their numbers are not given out again."


def confirm(question: str, *, is_sure: bool) -> None:
    """Ask before something that cannot be taken back.

    Raises:
        Refused: The answer was no, or there is nobody to ask and nobody said to go on without.
    """
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise Refused("not-confirmed", f"not done: {question}", "there is no terminal to ask on", "add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("not-confirmed", "nothing was changed", "the answer was no")


def _restored(ready: Staged, aside: Path | None, file: Path) -> Iterator[str]:
    data_dir = ready.data_dir
    yield f"Restored in {data_dir}."
    if aside:
        yield f"What was there lies in {aside}; remove it when nothing of it is needed any more."
    if (data_dir / SETTINGS).exists() and not _same(data_dir / SETTINGS, DEFAULT_CONFIG):
        yield f"The settings file as it was is {data_dir / SETTINGS}; compare it with {DEFAULT_CONFIG}, which counts."
    for name, why in lacking(data_dir).items():
        yield f"{name} lacks {why}."
    if ready.missing:
        yield (
            "Put the blobs back, if a folder or a backup has them:"
            f" vedette-controller restore {file} --blobs-from FOLDER\nand train or register again what has none."
        )
    yield (
        "Every enrolment token made before is revoked. Agents are asked what they run before anything is asked of them."
        f"\n\nNext:\n  {_start(data_dir)}\n  vedette agent ls          held: it runs what this controller does not know"
    )


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _start(data_dir: Path) -> str:
    if data_dir == DEFAULT_DATA_DIR and service_user() is not None:
        return "systemctl start vedette-controller"
    return f"vedette-controller serve --config {data_dir}/controller.toml"


def _few(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _local(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M %Z}"


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
