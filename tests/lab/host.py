"""One host: an overlay on an image, a cable, disks, and Debian's own systemd booted in it.

What is real: PID 1, units, journal, users, dpkg, the network stack, memory limits of units. What is shared with the
machine: the kernel and its clock.
The overlay and the network namespace outlive reboots, kills and power cuts.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.lab.commands import LabError, Result, execute, wait_until
from tests.lab.ground import Ground, unmount
from tests.lab.image import Image
from tests.lab.network import Link, Network
from tests.lab.volume import Volume

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_S = 60
_INIT = (
    # nspawn hides version 1 controllers behind read-only mounts, and systemd asks once, at its start, what it may use.
    "for part in memory cpu cpuacct pids blkio; do"
    " test ! -e /sys/fs/cgroup/$part/tasks || mount -o remount,bind,rw /sys/fs/cgroup/$part; done; "
    "exec /lib/systemd/systemd"
)
_POWEROFF = signal.SIGRTMIN + 4  # systemd(1), "SIGNALS": starts poweroff.target
_FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
_CLOCK_FILE = "run/lab-clock"


class Host:
    """A machine of the lab.

    Args:
        ground: The lab that it belongs to.
        network: Where its cable goes.
        name: Its host name.
        image: What it stands on.
        is_read_only: Whether ``/`` is mounted read-only inside; its volumes are not.
    """

    def __init__(
        self, ground: Ground, network: Network, name: str, image: Image, *, is_read_only: bool = False
    ) -> None:
        self.name = name
        self.image = image
        self.link: Link = network.plug(name)
        self.volumes: dict[str, Volume] = {}
        self._machine = ground.name(name)
        self._network = network
        self._folder = ground.folder / name
        self._is_read_only = is_read_only
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._mount_root()

    @property
    def root(self) -> Path:
        """Its ``/`` as seen from outside, whether it is up or not; what is on a volume is not in it."""
        return self._folder / "root"

    @property
    def layer(self) -> Path:
        """What it has changed of its image."""
        return self._folder / "upper"

    @property
    def address(self) -> str:
        """Its address in the lab."""
        return self.link.address

    @property
    def is_up(self) -> bool:
        """Whether its PID 1 lives."""
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def leader(self) -> int:
        """The process on this machine that is its PID 1.

        Raises:
            LabError: It is not up.
        """
        if not self.is_up or self._leader <= 1:  # a signal to 0 would go to all of our own processes
            raise LabError(f"{self.name} is not up")
        return self._leader

    def add_volume(self, path: str, size: str) -> Volume:
        """Give it a disk of a size, such as ``64M``, at a path, with what its image has there; before it boots."""
        if self.is_up:
            raise LabError(f"{self.name} is up: disks are added before the boot")
        volume = Volume(self._folder / f"disk{len(self.volumes)}", path, size)
        volume.make(self.root / path.lstrip("/"))
        self.volumes[path] = volume
        return volume

    def configure(self, program: str, settings: str) -> None:
        """Replace ``/etc/vedette/PROGRAM.toml`` before it boots; empty keeps what is there."""
        if settings:
            (self.root / f"etc/vedette/{program}.toml").write_text(settings)

    # Life and death

    def boot(self) -> None:
        """Start it and wait until systemd has started everything or given up on some.

        Raises:
            NeverHappened: It did not come up; its console is in the message.
        """
        if self.is_up:
            raise LabError(f"{self.name} is up already")
        for volume in self.volumes.values():
            if volume.has_failed:
                volume.repair()
        self._join_groups()
        with (self._folder / "console").open("ab") as console:
            self._supervisor = subprocess.Popen(
                ["sh", "-c", self._enter_groups(), "sh", *self._nspawn()],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        self._leader = wait_until(f"{self.name} has a PID 1", self._find_leader, _BOOT_S)
        wait_until(f"{self.name} has booted; see {self._folder}/console", self._has_booted, _BOOT_S)

    def stop(self) -> None:
        """Shut it down in order, as ``systemctl poweroff`` does."""
        os.kill(self.leader, _POWEROFF)
        self._await_end(120)

    def reboot(self) -> None:
        """Shut it down in order and start it again."""
        self.stop()
        self.boot()

    def kill(self) -> None:
        """End all of its processes in one instant. Everything written is there after: the kernel lives on."""
        os.kill(self.leader, signal.SIGKILL)  # the end of a PID namespace's first process is the end of all
        if self._supervisor is not None:
            with suppress(ProcessLookupError):
                self._supervisor.kill()
        self._await_end(30)

    def end(self) -> None:
        """Leave no process of it, in whatever state it is; may be called again."""
        if self.is_up:
            with suppress(LabError, ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.kill()
            self._await_end(30)

    def replace(self) -> None:
        """Put a new machine in its place: same name, address and cable, the image as it was, no disk of the old one."""
        if self.is_up:
            raise LabError(f"{self.name} is up: a machine is replaced when it is off")
        for volume in self.volumes.values():
            unmount(volume.mounted)
            shutil.rmtree(volume.folder)
        self.volumes.clear()
        unmount(self.root)
        for folder in (self.root, self.layer, self._folder / "work"):
            shutil.rmtree(folder)
        self._mount_root()
        self.rename_others()

    def power_cut(self) -> None:
        """Kill it, and take from its volumes what had not reached the disk; see :mod:`tests.lab.volume`.

        What is not on a volume survives as after :meth:`kill`.
        """
        self.kill()
        for volume in self.volumes.values():
            volume.cut()

    # Commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        user: str = "",
        stdin: str | bytes = b"",
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command in it: a string by ``sh``, a list as it is; root unless a user is named.

        Raises:
            CommandFailed: It failed (unless ``check`` is false) or did not end in time.
        """
        __tracebackhide__ = True
        inner = ["sh", "-c", command] if isinstance(command, str) else list(command)
        if user:
            inner = ["runuser", "--user", user, "--", *inner]
        words = ["nsenter", "--target", str(self.leader), "--all", "--", *inner]
        text = command if isinstance(command, str) else shlex.join(command)
        shown = f"{self.name}# {text}" if not user else f"{self.name} ({user})$ {text}"
        whole = {**_ENVIRONMENT, **(environment or {})}
        return execute(words, check=check, timeout=timeout, stdin=stdin, environment=whole, shown=shown)

    def systemctl(self, *words: str, check: bool = True, timeout: float = 100) -> Result:
        """Run systemctl."""
        return self.run(["systemctl", *words], check=check, timeout=timeout)

    def unit(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, such as ``ActiveState``."""
        said = self.systemctl("show", unit, f"--property={','.join(properties)}").out
        return dict(line.split("=", 1) for line in said.splitlines())

    def is_active(self, unit: str) -> bool:
        """Whether a unit is active: a ``Type=notify`` service has then said that it is ready."""
        return self.systemctl("is-active", unit, check=False).out.strip() == "active"

    def main_pid(self, unit: str) -> int:
        """Return a unit's main process as the host numbers it; 0 is none."""
        return int(self.unit(unit, "MainPID")["MainPID"])

    def freeze(self, unit: str) -> None:
        """Stop a unit's main process with SIGSTOP."""
        self.systemctl("kill", "--signal=STOP", "--kill-whom=main", unit)

    def thaw(self, unit: str) -> None:
        """Let a frozen unit go on."""
        self.systemctl("kill", "--signal=CONT", "--kill-whom=main", unit)

    def journal(self, unit: str = "") -> list[dict[str, Any]]:
        """Return the journal's entries as it stores them, of one unit or all, of all boots."""
        words = ["journalctl", "--no-pager", "--output=json", *([f"--unit={unit}"] if unit else [])]
        return [json.loads(line) for line in self.run(words).out.splitlines()]

    def told(self, unit: str) -> list[str]:
        """Return the journal's messages of a unit since the last boot, oldest first."""
        entries = self.journal(unit)
        return [entry["MESSAGE"] for entry in entries if entry["_BOOT_ID"] == entries[-1]["_BOOT_ID"]]

    def log(self, unit: str = "") -> str:
        """Return the journal as a person reads it."""
        words = ["journalctl", "--no-pager", "--output=short-precise", *([f"--unit={unit}"] if unit else [])]
        return self.run(words).out

    # Files

    def put(self, source: Path | bytes | str, path: str, *, mode: int = 0o644) -> None:
        """Write a file, with its folders, owned by root."""
        data = (
            source.read_bytes() if isinstance(source, Path) else source.encode() if isinstance(source, str) else source
        )
        quoted = shlex.quote(path)
        self.run(f'mkdir -p "$(dirname {quoted})" && cat > {quoted} && chmod {mode:o} {quoted}', stdin=data)

    def read(self, path: str) -> str:
        """Return a file's text; empty when there is none."""
        quoted = shlex.quote(path)
        return self.run(f"test ! -e {quoted} || cat {quoted}").out

    def get(self, path: str, target: Path) -> None:
        """Copy a file out."""
        target.write_bytes((Path(f"/proc/{self.leader}/root") / path.lstrip("/")).read_bytes())

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return self.run(["test", "-e", path], check=False).ok

    # Time

    def clock(self, unit: str, offset: str | None) -> None:
        """Let a unit believe in another time: ``+2d``, ``-90m``, ``@2031-05-01 12:00:00``; None is the true one.

        The first call for a unit restarts it, for that is how a library is loaded into it; later ones take effect
        within a second while it runs. Durations and deadlines stay true: only the wall clock lies.
        """
        folder = f"/run/systemd/system/{unit}.service.d"
        self.put(f"{offset or '+0'}\n", f"/{_CLOCK_FILE}-{unit}")
        if self.exists(f"{folder}/lab-clock.conf"):
            return
        settings = {
            "LD_PRELOAD": _FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": f"/{_CLOCK_FILE}-{unit}",
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        lines = "\n".join(f"Environment={name}={value}" for name, value in settings.items())
        self.put(f"[Service]\n{lines}\n", f"{folder}/lab-clock.conf")
        self.systemctl("daemon-reload")
        self.systemctl("try-restart", unit)

    # Inside

    def rename_others(self) -> None:
        """Write what the lab's hosts are called where its programs look."""
        (self.root / "etc/hosts").write_text(self._network.names())

    def _mount_root(self) -> None:
        for folder in (self.root, self.layer, self._folder / "work"):
            folder.mkdir(parents=True)
        layers = f"lowerdir={self.image.lowerdir},upperdir={self.layer},workdir={self._folder}/work"
        # volatile: what is not on a volume outlives a power cut in any case, so nobody needs to wait for its fsyncs.
        execute(["mount", "-t", "overlay", "-o", f"{layers},index=off,volatile", self._machine, str(self.root)])
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")
        (self.root / "var/log/journal").mkdir(exist_ok=True)

    def _nspawn(self) -> list[str]:
        # Where no systemd manages the machine, nobody can give the host a scope of its own.
        alone = [] if Path("/run/systemd/system").is_dir() else ["--keep-unit"]
        binds = [f"--bind={volume.mounted}:{path}" for path, volume in self.volumes.items()]
        return [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self._machine}",
            f"--hostname={self.name}", f"--network-namespace-path=/run/netns/{self.link.namespace}", "--register=no",
            # nspawn takes it away unless it makes the network itself; a machine's root has it over its own network.
            "--capability=CAP_NET_ADMIN", *alone, "--console=pipe", "--resolv-conf=off", "--timezone=off",
            "--link-journal=no", *binds,
            *(["--read-only"] if self._is_read_only else []), "sh", "-c", _INIT,
        ]  # fmt: skip

    def _groups(self) -> list[Path]:
        """Return one control group for each hierarchy: without them all hosts' systemds would share theirs."""
        if (_CGROUPS / "cgroup.controllers").exists():
            return []  # version 2: nspawn makes a group by itself
        return [folder / self._machine for folder in _CGROUPS.iterdir() if folder.is_dir() and not folder.is_symlink()]

    def _join_groups(self) -> None:
        for group in self._groups():
            group.mkdir(exist_ok=True)
            for inherited in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, and nothing may run in it then
                if (group / inherited).exists():
                    (group / inherited).write_text((group.parent / inherited).read_text())

    def _enter_groups(self) -> str:
        joins = "".join(f"echo $$ > {shlex.quote(str(group))}/cgroup.procs; " for group in self._groups())
        return f'{joins}exec "$@"'

    def _find_leader(self) -> int:
        if self._supervisor is None or self._supervisor.poll() is not None:
            console = (self._folder / "console").read_text(errors="replace")
            raise LabError(f"{self.name} did not start:\n{console[-3000:]}")
        pid = self._supervisor.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _has_booted(self) -> bool:
        self._leader = self._find_leader()
        return self.systemctl("is-system-running", check=False).out.strip() in {"running", "degraded"}

    def _await_end(self, timeout: float) -> None:
        if self._supervisor is not None:
            self._supervisor.wait(timeout)
            self._supervisor, self._leader = None, 0
