"""A process that becomes a worker: started, greeted, and not yet handed a model.

The first word is the process's, its version, before it is handed anything: one that ends without it, or is of another
version because the program was replaced under a running agent, is the host's trouble and blames no model.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from vedette.agent.adapters.ring import SETUP_BYTES
from vedette.agent.domain.errors import AgentError, SpawnFailed
from vedette.models.version import __version__

MODULE = "vedette.agent.adapters.worker_main"
STDERR_BYTES = 64 * 1024
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


class Child:
    """One process of the agent's, with a socket to it and a memory file for what it says last.

    Args:
        process: What was started.
        doorbell: Our end of its socket, non-blocking.
        stderr: The memory file's descriptor; the child owns it from now on.
    """

    def __init__(self, process: subprocess.Popen[bytes], doorbell: socket.socket, stderr: int) -> None:
        self._process = process
        self.doorbell = doorbell
        self._stderr = stderr

    @classmethod
    async def start(cls, workdir: Path, timeout_s: float, admit: Callable[[int], None]) -> Child:
        """Return a process that runs this agent's version and waits for a model.

        Args:
            workdir: Its working directory, made when it is absent; nothing is ever in it.
            timeout_s: For its greeting.
            admit: Puts the new process in its place; must not raise.

        Raises:
            SpawnFailed: The host would not start one.
        """
        try:
            child = cls._forked(workdir)
        except OSError as exc:
            raise SpawnFailed(f"a worker process cannot be started: {exc}") from exc
        admit(child.pid)
        try:
            await child._greeted(timeout_s)
        except BaseException:
            child.kill()
            await child.ended()
            raise
        return child

    @classmethod
    def _forked(cls, workdir: Path) -> Child:
        workdir.mkdir(mode=0o500, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # Not a pipe: nobody would read it. The worker's RLIMIT_FSIZE bounds it.
        stderr = os.memfd_create("vedette-stderr", os.MFD_CLOEXEC)
        try:
            with theirs:
                command = [sys.executable, "-P", "-s", "-m", MODULE, str(theirs.fileno()), str(os.getpid())]
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

    async def _greeted(self, timeout_s: float) -> None:
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
        if self._process.returncode is None:
            await _exit_of(self._process)
        how = _describe_exit(self._process.returncode) + self._last_words()
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


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | _SET_VARIABLES


async def _exit_of(process: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
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
