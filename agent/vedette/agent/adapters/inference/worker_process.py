"""A process that becomes a worker: started, greeted, and not yet handed a model.

Either it is started anew, which takes python, numpy and onnxruntime a quarter of a second and 25 MB each time; or it
is forked from a :class:`Nursery`, a process that has loaded them and nothing else and has one thread. That is the warm
spare: there at once, for every slot and any number of workers, and what it loaded is in memory once for all of them.
Measured on 2 busy cores, started and forked: a killed worker's next answer after 464 and 56 ms (medians), proportional
memory with one worker 49 and 53 MB, with eight 237 and 92 MB. The price: all workers share one layout of addresses.

The first word is the process's, its version, before it is handed anything: one that ends without it, or is of another
version because the program was replaced under a running agent, is the host's trouble and blames no model.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vedette.agent.adapters.inference.ring import SETUP_BYTES
from vedette.agent.domain.errors import AgentError, SpawnFailed
from vedette.models.version import __version__

logger = logging.getLogger(__name__)

MODULE = "vedette.agent.adapters.inference.worker_main"
STDERR_BYTES = 64 * 1024
ROOM_BYTES = 256 * 1024 * 1024
"""Of available memory that a host must have for a nursery; beside one worker it costs 4 MB, then it saves."""
_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h
_KEPT_VARIABLES = ("PYTHONPATH", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")
_SET_VARIABLES = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # onnxruntime from 1.29 on keeps a database of events under the home folder and uploads it to its maker, from two
    # threads of its own, unless this is set before it is imported (microsoft/onnxruntime #27379, #29843).
    "ORT_DISABLE_TELEMETRY": "1",
}


class Process(Protocol):
    """A child of this process: of :class:`subprocess.Popen`, or forked for us by a nursery."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Reap it if it has ended; return how, None while it lives."""

    def kill(self) -> None:
        """Send SIGKILL; harmless when it has ended."""


class Adopted:
    """A process that the kernel made our child when the one that forked it ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As :class:`Process`."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # it ended before it was ours
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        """As :class:`Process`."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Child:
    """One process of the agent's, with a socket to it and a memory file for what it says last.

    Args:
        process: What was started.
        doorbell: Our end of its socket, non-blocking.
        stderr: The memory file's descriptor; the child owns it from now on.
    """

    def __init__(self, process: Process, doorbell: socket.socket, stderr: int) -> None:
        self._process = process
        self.doorbell = doorbell
        self._stderr = stderr

    @classmethod
    async def start(
        cls, workdir: Path, timeout_s: float, admit: Callable[[int], None], *, role: str = "worker"
    ) -> Child:
        """Return a process that runs this agent's version and waits for a model, or for what a nursery waits for.

        Args:
            workdir: Its working directory, made when it is absent; nothing is ever in it.
            timeout_s: For its greeting.
            admit: Puts the new process in its place; must not raise.

        Raises:
            SpawnFailed: The host would not start one.
        """
        try:
            child = cls._started(workdir, role)
        except OSError as exc:
            raise SpawnFailed(f"a worker process cannot be started: {exc}") from exc
        admit(child.pid)
        await child.greeted(timeout_s)
        return child

    @classmethod
    def _started(cls, workdir: Path, role: str) -> Child:
        workdir.mkdir(mode=0o500, parents=True, exist_ok=True)
        ours, theirs, stderr = _lines()
        try:
            with theirs:
                command = [sys.executable, "-P", "-s", "-m", MODULE, str(theirs.fileno()), str(os.getpid()), role]
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(theirs.fileno(),),
                    cwd=workdir,
                    env=_environment(),
                )
        except BaseException:
            ours.close()
            os.close(stderr)
            raise
        return cls(process, ours, stderr)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    async def greeted(self, timeout_s: float) -> None:
        """Wait until it has said that it is of this version; one that does not is ended.

        Raises:
            SpawnFailed: It is not, or it ended, or said nothing.
        """
        try:
            await self._hear_greeting(timeout_s)
        except BaseException:
            self.kill()
            await self.ended()
            raise

    async def _hear_greeting(self, timeout_s: float) -> None:
        late = "a worker process did not greet"
        greeting = (await self.heard(timeout_s, SpawnFailed, late)).decode("utf-8", "replace")
        if not greeting:
            raise SpawnFailed(f"a worker process ended before it was given a model: {await self.ended()}")
        if greeting != __version__:
            raise SpawnFailed(
                f"the program on the disk is {greeting[:64]}, this agent is {__version__}: "
                "restart the agent to finish the upgrade"
            )

    async def heard(self, timeout_s: float, late: type[AgentError], what: str) -> bytes:
        """Return its next word, b"" when it is gone; raise ``late`` when that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().sock_recv(self.doorbell, SETUP_BYTES)
        except TimeoutError as exc:
            raise late(f"{what} in {timeout_s:g} s (load_timeout_s)") from exc
        except ConnectionError:
            return b""

    def kill(self) -> None:
        """Send SIGKILL, whatever it is doing, and close the socket."""
        self.doorbell.close()
        self._process.kill()

    async def ended(self) -> str:
        """Wait, without a thread, for the end of a killed or dying process; return how it ended. May be asked again."""
        await _exit_of(self._process)
        how = _describe_exit(self._process.returncode or 0) + self._last_words()
        self.doorbell.close()
        return how

    def _last_words(self) -> str:
        if self._stderr < 0:
            return ""
        words = os.pread(self._stderr, STDERR_BYTES, 0)
        os.close(self._stderr)
        self._stderr = -1
        text = words.decode("utf-8", "replace").strip()
        return f"; it said: {text[-500:]}" if text else ""


class Nursery:
    """One process that has loaded what every worker needs, and forks a child whenever one is wanted.

    It is started with the first child and again after it was lost. Only children that are forked before they are given
    a model come from it, so it never sees one.

    Args:
        workdir: As :meth:`Child.start`.
        timeout_s: For a greeting.
        admit: As :meth:`Child.start`; also of the nursery.
    """

    def __init__(self, workdir: Path, timeout_s: float, admit: Callable[[int], None]) -> None:
        self._workdir = workdir
        self._timeout_s = timeout_s
        self._admit = admit
        self._parent: Child | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The process, when there is one."""
        return self._parent.pid if self._parent is not None else None

    async def child(self) -> Child:
        """Return a process of this agent's version that waits for a model.

        Raises:
            SpawnFailed: The host would not give one.
        """
        async with self._turn:
            child = await self._forked(await self._ready())
        self._admit(child.pid)
        await child.greeted(self._timeout_s)
        return child

    async def _ready(self) -> Child:
        if self._parent is not None and not self._parent.is_alive:
            logger.info("the process that workers are forked from ended: %s", await self._parent.ended())
            self._parent = None
        if self._parent is None:
            _become_subreaper()
            self._parent = await Child.start(self._workdir, self._timeout_s, self._admit, role="nursery")
        return self._parent

    async def _forked(self, parent: Child) -> Child:
        try:
            ours, theirs, stderr = _lines()
        except OSError as exc:
            raise SpawnFailed(f"a worker process cannot be forked: {exc}") from exc
        try:
            with theirs:
                socket.send_fds(parent.doorbell, [b"1"], [theirs.fileno(), stderr])
            pid = int(await parent.heard(self._timeout_s, SpawnFailed, "no worker process was forked"))
        except BaseException as exc:
            ours.close()
            os.close(stderr)
            await self.close()  # whatever it still does, its next word would not be the answer to our next
            if isinstance(exc, OSError | ValueError):
                raise SpawnFailed(f"a worker process cannot be forked: {exc}") from exc
            raise
        return Child(Adopted(pid), ours, stderr)

    async def close(self) -> None:
        """End the process; its children live on."""
        parent, self._parent = self._parent, None
        if parent is not None:
            parent.kill()
            await parent.ended()


def has_room(meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Return whether the host has memory to spare for a nursery; unknown is no."""
    try:
        lines = meminfo.read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return False
    return available >= ROOM_BYTES


def _lines() -> tuple[socket.socket, socket.socket, int]:
    """Return our end of a new child's socket, its end, and a memory file for its standard error."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        # Not a pipe: nobody would read it. The worker's RLIMIT_FSIZE bounds it.
        return ours, theirs, os.memfd_create("vedette-stderr", os.MFD_CLOEXEC)
    except BaseException:
        ours.close()
        theirs.close()
        raise


def _become_subreaper() -> None:
    """Have the kernel make orphaned descendants our children, so that we learn how they end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SpawnFailed(f"PR_SET_CHILD_SUBREAPER: {os.strerror(ctypes.get_errno())}")


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | _SET_VARIABLES


async def _exit_of(process: Process) -> None:
    loop = asyncio.get_running_loop()
    if process.poll() is not None:
        return
    ended = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.poll()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
