"""What the packaged unit must allow an agent of given settings, and the drop-in that says so to systemd.

The main process is allowed ``MAIN_BYTES`` and its two queues; each slot's worker ``budget.memory``, and one more worker
the same, because a new build is tested beside the one that serves. Processor time is ``budget.cpu_percent`` for all of
it together. Folders outside the unit's own are opened for writing; everything else of the unit stays as it is shipped.

Source: systemd.resource-control(5), systemd.exec(5), systemd.unit(5), systemd.syntax(7).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from vedette.agent.domain.advice import EXIT_REFUSED, AdvisedError

MIB = 2**20
MAIN_BYTES = (
    192 * MIB
)  # resident 80 MiB idle (measured on Debian 12 with one model); the rest is for flow state and bursts
_OWN_FOLDERS = ("/var/lib/vedette-agent", "/var/log/vedette", "/run/vedette-agent")
_HIDDEN_FOLDERS = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
_SLOTS = re.compile(r"^# slots: (\d{1,3})$", re.MULTILINE)
_HEAD = """\
# Made by `vedette-agent configure` from {config}; it is made anew each time. Your own overrides go elsewhere:
# systemctl edit vedette-agent
# slots: {slots}
[Service]
"""


class BudgetTooLarge(AdvisedError):
    """The settings ask for more than the host has: a limit there would limit nothing."""

    code = "budget-too-large"
    exit_code = EXIT_REFUSED


class FolderUnusable(AdvisedError):
    """The unit cannot let the agent write where the settings say."""

    code = "folder-unusable"
    exit_code = EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings ask for.

    Attributes:
        memory_bytes: Of each worker.
        queue_bytes: Of all queues of the main process.
        cpu_percent: Of the whole agent, 100 is one core.
        slots: How many models are to serve at once.
        folders: Where the agent writes.
        workers: Of each model.
    """

    memory_bytes: int
    queue_bytes: int
    cpu_percent: int
    slots: int
    folders: tuple[PurePath, ...]
    workers: int = 1


@dataclass(frozen=True, slots=True)
class UnitLimits:
    """What the unit is to say."""

    memory_max: int
    cpu_percent: int
    folders: tuple[PurePath, ...]

    @property
    def memory_high(self) -> int:
        """Where the kernel begins to slow the agent down and takes back what it can: an eighth before the end."""
        return self.memory_max // 8 * 7

    def lines(self) -> tuple[str, ...]:
        """Return the assignments of the drop-in."""
        return (
            f"MemoryHigh={self.memory_high // MIB}M",
            f"MemoryMax={self.memory_max // MIB}M",
            f"CPUQuota={self.cpu_percent}%",
            *(f"ReadWritePaths={_quoted(folder)}" for folder in self.folders),
        )


def unit_limits(wanted: Wanted, *, host_memory_bytes: int, host_cores: int) -> UnitLimits:
    """Return what the unit is to say.

    Raises:
        BudgetTooLarge: The host has less than that.
        FolderUnusable: A folder cannot be opened for the unit.
    """
    workers = (wanted.slots + 1) * wanted.workers
    memory_max = MAIN_BYTES + wanted.queue_bytes + workers * wanted.memory_bytes
    if memory_max > host_memory_bytes:
        most = (host_memory_bytes - MAIN_BYTES - wanted.queue_bytes) // workers // MIB
        raise BudgetTooLarge(
            f"budget.memory of {wanted.memory_bytes // MIB} MiB does not fit this host",
            f"{wanted.slots} models, one in test and the main process may take {memory_max // MIB} MiB, "
            f"the host has {host_memory_bytes // MIB} MiB",
            f'set budget.memory = "{most}MiB" or less'
            if most > 0
            else "set source.netflow.queue and sink.json.queue lower",
        )
    if wanted.cpu_percent > 100 * host_cores:
        raise BudgetTooLarge(
            f"budget.cpu_percent is {wanted.cpu_percent}",
            f"the host has {host_cores} cores, that is {100 * host_cores}",
            f"set budget.cpu_percent = {100 * host_cores} or less",
        )
    return UnitLimits(memory_max, wanted.cpu_percent, tuple(_foreign(wanted.folders)))


def _foreign(folders: Sequence[PurePath]) -> list[PurePath]:
    """Return, once each, the folders that the unit does not open by itself."""
    foreign = dict.fromkeys(f for f in folders if not any(f.is_relative_to(own) for own in _OWN_FOLDERS))
    for folder in foreign:
        hidden = next((each for each in _HIDDEN_FOLDERS if folder.is_relative_to(each)), None)
        if hidden is not None:
            raise FolderUnusable(
                f"the service cannot write {folder}", f"its unit hides {hidden}", "choose another folder"
            )
        if not folder.is_absolute() or not str(folder).isprintable():
            raise FolderUnusable(
                f"the service cannot write {folder!r}", "it is no plain absolute path", "choose another"
            )
    return list(foreign)


def drop_in(limits: UnitLimits, *, config: str, slots: int) -> str:
    """Return the drop-in's text."""
    return _HEAD.format(config=config, slots=slots) + "".join(f"{line}\n" for line in limits.lines())


def slots_of(text: str) -> int:
    """Return the number of slots that an earlier drop-in was made for; 1 when it does not say."""
    found = _SLOTS.search(text)
    return max(1, int(found[1])) if found else 1


def _quoted(folder: PurePath) -> str:
    """Return a path as systemd.syntax(7) quotes it; a leading "-" lets the unit start without the folder."""
    escaped = str(folder).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"-{escaped}"'
