"""What this appliance is, read from the kernel and the installed packages; loads no runtime."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from vedette.agent.adapters.host.gpus import gpus
from vedette.models.version import __version__
from vedette.wire.values import Facts

_RUNTIMES = ("onnxruntime", "tensorrt")
# What decides which build runs well; the rest of the ~150 flags of a processor would only fill every hello.
_FEATURES = ("sse4", "avx", "amx", "fma", "f16c", "bmi", "neon", "asimd", "sve", "i8mm", "bf16", "fphp", "dotprod")


def host_facts(runtimes: Mapping[str, str]) -> Facts:
    """Return the facts of this machine, given its runtimes; what cannot be read is left empty."""
    kernel = platform.uname()
    return Facts(
        agent_version=__version__,
        os=_distribution(),
        kernel=kernel.release,
        architecture=kernel.machine,
        cpu_cores=len(os.sched_getaffinity(0)),
        cpu_features=cpu_features(_lines("/proc/cpuinfo")),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        runtimes=dict(runtimes),
        gpus=gpus(),
        hostname=socket.gethostname()[:128],
    )


def cpu_features(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the vector features that /proc/cpuinfo names (``flags`` on x86, ``Features`` on ARM), sorted."""
    for line in lines:
        key, _, listed = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(sorted(word.lower() for word in listed.split() if word.lower().startswith(_FEATURES)))
    return ()


def _distribution() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system().lower()
    return f"{release.get('ID', '')} {release.get('VERSION_ID', '')}".strip()


def runtime_versions() -> dict[str, str]:
    """Return the versions of the installed runtimes that a release may ask for."""
    found = {}
    for name in _RUNTIMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
