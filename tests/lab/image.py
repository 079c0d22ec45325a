"""Root file systems: a bare Debian 12, and layers on it with our packages installed.

A root is built once for each recipe and then only read: hosts put an overlay on it. Its folder carries the digest of
its recipe, so a changed recipe or another package is another root, and nothing needs to be told to rebuild. Building is
done in a folder beside it under a lock and ends with a rename: whoever comes second waits and finds it there, and a
build that was killed leaves nothing that looks finished. Only the bare root needs a network, once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.commands import LabError, execute
from tests.lab.ground import LAB_FOLDER

SUITE = "bookworm"
PACKAGES = (
    # What a minimal appliance has: an init, a clock, a network, a log that is rotated.
    "systemd", "systemd-sysv", "dbus", "iproute2", "procps", "kmod", "logrotate",
    # What our packages depend on; dpkg finds them there, so an installation needs no network.
    "python3", "libgomp1", "libstdc++6", "zlib1g", "libexpat1",
    # What it suggests: the packet filter.
    "nftables",
    # For scenarios: programs that believe in another time.
    "libfaketime",
)  # fmt: skip
_RECIPE_VERSION = 4
_KEPT_LAYERS = 4
_UNUSED_S = 6 * 3600.0
_MACHINES_OWN = ("etc/machine-id", "etc/hostname", "etc/hosts", "var/lib/systemd/random-seed", "var/log/journal")


@dataclass(frozen=True, slots=True)
class Image:
    """A root that hosts may stand on: folders for an overlay, the uppermost first."""

    name: str
    folders: tuple[Path, ...]

    @property
    def lowerdir(self) -> str:
        """What the overlay's option of that name says."""
        return ":".join(map(str, self.folders))


def bare() -> Image:
    """Return Debian 12 with none of our packages; build it if this machine has none yet.

    Raises:
        LabError: It is not here and cannot be built.
    """
    recipe = f"{_RECIPE_VERSION} {SUITE} {' '.join(PACKAGES)}"
    name = f"bare-{_digest(recipe.encode())}"
    folder = _images() / name
    with building(folder) as staged:
        if staged is not None:
            _bootstrap(staged)
    return Image(name, (folder,))


def layer_folder(base: Image, *packages: Path) -> Path:
    """Return where the layer with some packages on a base belongs."""
    digests = [hashlib.sha256(package.read_bytes()).hexdigest() for package in packages]
    names = "+".join(package.name.split("_")[0] for package in packages)
    return _images() / f"{names}-{_digest(' '.join([base.name, *digests]).encode())}"


@contextmanager
def building(folder: Path) -> Iterator[Path | None]:
    """Yield an empty folder that becomes the wanted one, or None when that is there; one builder at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            os.utime(folder)  # when it was last wanted
            yield None
            return
        staged = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
        staged.rename(folder)


def prune(keep: int = _KEPT_LAYERS, unused_s: float = _UNUSED_S) -> list[Path]:
    """Remove layers and later packages of builds that nobody wants any more; return them.

    Each build of the packages leaves half a gigabyte behind. What stays: the ``keep`` newest of each kind, what was
    wanted within ``unused_s``, so also what somebody is about to use, and whatever a host that runs stands on.
    """
    in_use = Path("/proc/self/mounts").read_text()
    gone = []
    for kind in (
        "images/vedette-agent",
        "images/vedette-controller",
        "newer/vedette-agent",
        "newer/vedette-controller",
    ):
        found = sorted(LAB_FOLDER.glob(f"{kind}[-+_]*"), key=lambda folder: folder.stat().st_mtime)
        for folder in found[: -keep or None]:
            if time.time() - folder.stat().st_mtime > unused_s and str(folder) not in in_use and _removed(folder):
                gone.append(folder)
    return gone


def _removed(folder: Path) -> bool:
    """Remove a folder unless somebody is just looking at it; nobody ever sees half of it."""
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        doomed = folder.with_name(f".{folder.name}.new")  # a builder that comes next clears it away if we are killed
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
    return True


def forget_machine(root: Path) -> None:
    """Remove from a root what makes it one machine; its children get their own."""
    for own in _MACHINES_OWN:
        path = root / own
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _images() -> Path:
    return LAB_FOLDER / "images"


def _digest(recipe: bytes) -> str:
    return hashlib.sha256(recipe).hexdigest()[:12]


def _bootstrap(root: Path) -> None:
    words = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    if mirror := os.environ.get("VEDETTE_LAB_MIRROR"):
        words.append(mirror)
    made = execute(words, check=False, timeout=600)
    if not made.ok:
        why = "Debian's root could not be made; it needs a network, once (VEDETTE_LAB_MIRROR names a mirror)"
        raise LabError(f"{why}:\n{made}")
    forget_machine(root)
    # Empty, not absent: each host's own is put over it, and no boot is a "first boot" that would apply presets.
    (root / "etc/machine-id").touch()
    (root / "etc/resolv.conf").write_text("")
    (root / "var/log/journal").mkdir()
    root.chmod(0o755)
