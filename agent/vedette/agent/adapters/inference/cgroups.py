"""Each worker in a control group of its own below the unit's, where systemd delegated it (the drop-in worker-cgroups).

Then one model's memory is limited for all it holds, not only for its address space, and the kernel that must kill
looks within that worker alone. Rules: only cgroup v2; a group holds processes or groups, never both, so the main
process moves to a group ``main`` first; a worker that cannot be placed serves all the same, and that is said.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("No Internal Process Constraint", "Delegation"); systemd,
docs/CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vedette.agent.adapters.storage.files import FileTooLarge, read_file
from vedette.agent.domain.errors import AgentError
from vedette.wire.systemd import fields

logger = logging.getLogger(__name__)

WANTED = "VEDETTE_WORKER_CGROUPS"
"""Set by the drop-in; nothing is tried without it."""
_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_MAX_FILE_BYTES = 64 * 1024


class GroupsUnavailable(AgentError):
    """This host, or its service manager, gives the agent no groups of its own; the text says why."""


def admission(memory_bytes: int) -> Callable[[int], None]:
    """Return what puts a new worker in its place: in a group of its own where the unit asks for that, else nowhere."""
    if not os.environ.get(WANTED):
        return _stay
    try:
        return WorkerGroups(_MOUNT, _OWN, memory_bytes).admit
    except GroupsUnavailable as exc:
        logger.warning(
            "workers get no control groups of their own: %s; vedette-agent configure --no-worker-cgroups asks for none",
            exc,
            extra=fields(code="worker-cgroups-unavailable"),
        )
        return _stay


def _stay(pid: int) -> None:
    """Leave a worker where the main process is."""


class WorkerGroups:
    """The groups below the unit's own; made once, before the first worker starts.

    Args:
        mount: Where cgroup v2 is mounted.
        own: This process's file of groups, proc_pid_cgroup(5).
        memory_bytes: Hard limit of each worker.

    Raises:
        GroupsUnavailable: There is no cgroup v2, or nothing of it was delegated.
    """

    def __init__(self, mount: Path, own: Path, memory_bytes: int) -> None:
        self._base = mount / _group(own)
        self._memory_bytes = memory_bytes
        if not (mount / "cgroup.controllers").exists():
            raise GroupsUnavailable(f"cgroup v2 is not mounted at {mount}: this host has v1")
        try:
            controllers = read_file(self._base / "cgroup.controllers", _MAX_FILE_BYTES).split()
            if b"memory" not in controllers:
                raise GroupsUnavailable(
                    f"{self._base} has no memory controller: Delegate= lacks it, or cgroup v1 holds it"
                )
            main = self._base / "main"
            main.mkdir(exist_ok=True)
            (main / "cgroup.procs").write_text(str(os.getpid()))
            (self._base / "cgroup.subtree_control").write_text("+memory")
        except (OSError, FileTooLarge) as exc:
            raise GroupsUnavailable(f"{self._base} cannot be used: {exc}") from exc

    def admit(self, pid: int) -> None:
        """Put a new worker into a group of its own; groups whose worker ended are removed on the way."""
        self._sweep()
        group = self._base / f"worker-{pid}"
        try:
            group.mkdir()
            (group / "memory.max").write_text(str(self._memory_bytes))
            (group / "memory.oom.group").write_text("1")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as exc:
            logger.warning("worker %d got no control group of its own: %s", pid, exc)

    def _sweep(self) -> None:
        for group in self._base.glob("worker-*"):
            with suppress(OSError):  # a group with a process in it stays
                group.rmdir()


def _group(own: Path) -> str:
    """Return the path of this process's group in cgroup v2, without its leading slash."""
    try:
        lines = read_file(own, _MAX_FILE_BYTES).decode().splitlines()
    except (OSError, FileTooLarge, UnicodeDecodeError) as exc:
        raise GroupsUnavailable(f"{own} cannot be read: {exc}") from exc
    found = next((line for line in lines if line.startswith("0::/")), None)
    if found is None:
        raise GroupsUnavailable("this host has cgroup v1 alone")
    return found.removeprefix("0::/")
