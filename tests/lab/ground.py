"""Where labs live on this machine, who owns them, and how everything of one is removed.

All that a lab makes carries its identity: network namespaces ``ID-…``, processes in them, ``systemd-nspawn`` machines
``ID-…``, control groups ``ID-…``, mounts below its folder. So removing one needs no memory of what was made, and it is
the same function after a good end, after Ctrl-C, and after somebody killed the tests: :func:`sweep_abandoned` runs at
each start and removes labs whose owner is gone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.commands import LabError, execute, wait_until

ROOT = Path(__file__).parents[2]
LAB_FOLDER = Path(os.environ.get("VEDETTE_LAB_DIR", ROOT / "build/lab"))
"""Images, running labs and what failed ones left; several checkouts may share one."""

_REGISTRY = Path("/run/vedette-lab")
_CGROUPS = Path("/sys/fs/cgroup")
KEPT = "kept"
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_INSTANCES = 1024
_TOOLS = ("mmdebstrap", "systemd-nspawn", "nsenter", "ip", "tc", "nft", "mkfs.ext4", "losetup")


@dataclass(frozen=True, slots=True)
class Ground:
    """One lab's identity and folder."""

    identity: str
    folder: Path

    def name(self, part: str) -> str:
        """Return the name on this machine of a part of this lab."""
        return f"{self.identity}-{part}"

    def keep(self) -> None:
        """Let it live on after this process; only :func:`sweep_kept` ends it."""
        _register(self, KEPT)

    def release(self) -> None:
        """End all of its processes and mounts; its files stay."""
        _kill_processes(self)
        for mount in reversed(mounts_in(self.folder)):
            unmount(mount)

    def sweep(self) -> None:
        """Remove the lab with all its processes; may be called again."""
        _sweep(self)


def missing() -> str:
    """Return why no lab can run here, or nothing."""
    if os.geteuid() != 0:
        return "the lab boots hosts, so it needs root: sudo make lab"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"the lab needs {', '.join(absent)}: make needs" if absent else ""


def break_ground() -> Ground:
    """Begin a lab that belongs to this process.

    Raises:
        LabError: This machine cannot run one.
    """
    if why := missing():
        raise LabError(why)
    _allow_many_hosts()
    identity = f"vlab{secrets.token_hex(3)}"
    ground = Ground(identity, LAB_FOLDER / "run" / identity)
    _register(ground, f"{os.getpid()} {_birth(os.getpid())}")
    ground.folder.mkdir(parents=True)
    # Each host's supervisor has a copy of this machine's mounts. Only of shared ones it hears that they are gone; else
    # a disk would stay in use until the last host of any other lab has ended.
    execute(["mount", "--bind", str(ground.folder), str(ground.folder)])
    execute(["mount", "--make-shared", str(ground.folder)])
    return ground


def _allow_many_hosts() -> None:
    """Raise the kernel's limit of inotify instances if it is low; the next boot of this machine forgets it.

    Each host's systemd and our daemons' loops take about ten of root's 128, so three labs of four hosts run out of them
    and units fail with "Failed to create inotify object: Too many open files".
    """
    with suppress(OSError):  # a container that may not: fewer labs at once fit
        if int(_INOTIFY.read_text()) < _INOTIFY_INSTANCES:
            _INOTIFY.write_text(str(_INOTIFY_INSTANCES))


def sweep_abandoned() -> None:
    """Remove labs whose process has ended, those that were kept on purpose excepted."""
    for ground, owner in _registered():
        if owner != KEPT and not _lives(owner):
            ground.sweep()


def sweep_kept() -> int:
    """Remove the labs that were kept; return how many there were."""
    found = [ground for ground, owner in _registered() if owner == KEPT]
    for ground in found:
        ground.sweep()
    return len(found)


def kept_hosts() -> Iterator[tuple[str, int]]:
    """Yield name and PID 1, as this machine numbers it, of each host of the labs that were kept."""
    for ground, owner in _registered():
        if owner == KEPT:
            prefix = ground.name("")
            for supervisor, machine in _machines(prefix):
                children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
                if children:
                    yield machine.removeprefix(prefix), int(children[0])


def _register(ground: Ground, owner: str) -> None:
    _REGISTRY.mkdir(mode=0o755, exist_ok=True)
    entry = _REGISTRY / ground.identity
    staged = entry.with_name(f".{ground.identity}")
    staged.write_text(json.dumps({"owner": owner, "folder": str(ground.folder)}))
    staged.replace(entry)


def _registered() -> Iterator[tuple[Ground, str]]:
    for entry in sorted(_REGISTRY.glob("vlab*")):
        with suppress(OSError, ValueError, KeyError):
            said = json.loads(entry.read_text())
            yield Ground(entry.name, Path(said["folder"])), said["owner"]


def _birth(pid: int) -> str:
    """Return when a process began, in ticks: a number that is given again belongs to another birth."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _lives(owner: str) -> bool:
    pid, _, birth = owner.partition(" ")
    try:
        return _birth(int(pid)) == birth
    except (OSError, ValueError):
        return False


def _sweep(ground: Ground) -> None:
    ground.release()
    for namespace in _namespaces(ground):
        execute(["ip", "netns", "delete", namespace], check=False)
    for group in _CGROUPS.glob(f"*/{ground.identity}-*"):
        _remove_group(group)
    shutil.rmtree(ground.folder, ignore_errors=True)
    (_REGISTRY / ground.identity).unlink(missing_ok=True)


def _kill_processes(ground: Ground) -> None:
    def left() -> set[int]:
        found = {pid for pid, _ in _machines(ground.name(""))}
        for namespace in _namespaces(ground):
            found |= {int(pid) for pid in execute(["ip", "netns", "pids", namespace], check=False).out.split()}
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    wait_until(f"the processes of {ground.identity} are gone", lambda: not left())


def _machines(prefix: str) -> Iterator[tuple[int, str]]:
    """Yield process and name of each supervised machine whose name begins so."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = process.read_bytes().decode("utf-8", "replace").split("\0")
            name = next((word.removeprefix("--machine=") for word in words if word.startswith("--machine=")), "")
            if words[0].endswith("systemd-nspawn") and name.startswith(prefix):
                yield int(process.parent.name), name


def _namespaces(ground: Ground) -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"{ground.identity}-*")]


def mounts_in(folder: Path) -> list[Path]:
    """Return mount points at and below a folder, outer ones first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [Path(point) for point in points if f"{point}/".startswith(f"{folder}/")]


def unmount(point: Path) -> None:
    """Unmount; lazily when somebody still looks at it."""
    if not execute(["umount", str(point)], check=False).ok:
        execute(["umount", "--lazy", str(point)], check=False)


def _remove_group(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):  # a dying process may still be in it: it is empty and unseen then
            Path(folder).rmdir()
