"""``vedette-agent configure``: the packaged unit follows the settings, and gets or loses its optional drop-ins.

Rules: a file is replaced whole or not at all; what is right already is left alone; systemd reads the folder again even
when nothing changed, for an earlier run may have been cut before that. The same command again always ends the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vedette.agent.adapters.host.unit import Units
from vedette.agent.adapters.storage.files import read_file, replace_file, sync_folder
from vedette.agent.domain.advice import EXIT_REFUSED, AdvisedError
from vedette.agent.domain.unit_limits import UnitLimits, Wanted, drop_in, slots_of, unit_limits
from vedette.agent.settings import Settings

FOLDER = Path("/etc/systemd/system/vedette-agent.service.d")
SHIPPED = Path("/usr/lib/vedette-agent/systemd")
OPTIONAL = {"gpu": "60-gpu.conf", "worker-cgroups": "60-worker-cgroups.conf", "nftables": "60-nftables.conf"}
"""Links in the folder, by the name of the shipped drop-in that each stands for."""
_LIMITS = "50-vedette.conf"
_MAX_FILE_BYTES = 64 * 1024


class NotPackaged(AdvisedError):
    """There is no packaged service here that could be configured."""

    code = "not-packaged"
    exit_code = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Change:
    """One file to be made, replaced or removed; ``text`` None removes it, a Path links to it."""

    path: Path
    text: str | Path | None
    before: str | Path | None

    def told(self) -> str:
        """Return it for the operator."""
        if self.text is None:
            return f"remove {self.path}"
        if isinstance(self.text, Path):
            return f"link {self.path} to {self.text}"
        old = self.before.splitlines() if isinstance(self.before, str) else []
        new = self.text.splitlines()
        gone = [f"  - {line}" for line in old if line not in new]
        come = [f"  + {line}" for line in new if line not in old and not line.startswith(("#", "["))]
        return "\n".join([f"write {self.path}", *gone, *come])


def planned(
    settings: Settings, *, config: str, slots: int | None, optional: Mapping[str, bool], folder: Path, shipped: Path
) -> list[Change]:
    """Return what is to be changed.

    Args:
        settings: The packaged service's.
        config: Their file.
        slots: How many models are to serve at once; None is as before.
        optional: Which of OPTIONAL to have or not to have; one that is not named stays as it is.
        folder: Of the unit's drop-ins.
        shipped: Of the optional ones.

    Raises:
        BudgetTooLarge, FolderUnusable: The settings do not fit the host.
        NotPackaged: An optional drop-in is not installed.
    """
    before = _text(folder / _LIMITS)
    count = slots or slots_of(before or "")
    limits = _limits(settings, count)
    changes = [Change(folder / _LIMITS, drop_in(limits, config=config, slots=count), before)]
    for name, is_wanted in optional.items():
        path, target = folder / OPTIONAL[name], shipped / f"{name}.conf"
        if is_wanted and not target.exists():
            raise NotPackaged(f"there is no drop-in {name}", f"{target} is not installed", "install vedette-agent")
        changes.append(Change(path, target if is_wanted else None, _link(path)))
    return [change for change in changes if change.text != change.before]


def wanted_limits(settings: Settings, folder: Path) -> UnitLimits:
    """Return what the unit is to allow by the settings and the number of slots that its drop-in remembers.

    Raises:
        BudgetTooLarge, FolderUnusable: The settings do not fit the host.
    """
    return _limits(settings, slots_of(_text(folder / _LIMITS) or ""))


def _limits(settings: Settings, slots: int) -> UnitLimits:
    return unit_limits(
        _wanted(settings, slots),
        host_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        host_cores=os.cpu_count() or 1,
    )


def _wanted(settings: Settings, slots: int) -> Wanted:
    sink = (settings.sink.path.parent,) if settings.sink.path is not None else ()
    sinks = [each for each in (settings.sink, settings.syslog, settings.webhook, settings.nftables) if each is not None]
    return Wanted(
        memory_bytes=settings.budget.memory_bytes,
        queue_bytes=settings.netflow.queue_bytes + sum(sink.queue_bytes for sink in sinks),
        cpu_percent=settings.budget.cpu_percent,
        slots=slots,
        folders=(settings.state_dir, *sink),
        workers=settings.workers.processes,
    )


def _text(path: Path) -> str | None:
    try:
        return read_file(path, _MAX_FILE_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _link(path: Path) -> Path | None:
    return path.readlink() if path.is_symlink() else None


def apply(changes: list[Change], units: Units | None, say: Callable[[str], None]) -> None:
    """Make the changes and have systemd read them.

    Args:
        changes: As planned.
        units: The service manager; None where none runs.
        say: Takes a line for the operator.

    Raises:
        UnitFailed: systemd would not read them; the files are changed.
        DiskFull, OSError: A file cannot be written; those before it are.
    """
    for change in changes:
        _make(change)
        say(change.told())
    if units is None:
        return
    units.ask("daemon-reload")
    if not changes:
        say("Nothing to change.")
    elif units.state() in ("active", "activating"):
        say("It takes effect with: systemctl restart vedette-agent")
    else:
        say("It takes effect when the service starts.")


def _make(change: Change) -> None:
    folder = change.path.parent
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if isinstance(change.text, str):
        replace_file(change.path, change.text.encode(), 0o644)
        return
    if change.text is None:
        change.path.unlink(missing_ok=True)
    else:
        fresh = change.path.with_name(f".{change.path.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(change.text)
        fresh.replace(change.path)
    sync_folder(folder)
