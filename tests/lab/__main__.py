"""``make lab``: builds what is missing, then runs the scenarios, or brings hosts up for a person and leaves them.

usage: make lab [ARGS="…"]

  make lab                            all scenarios, three at a time
  make lab ARGS="-k upgrade"          some; whatever pytest understands may follow
  make lab ARGS=--keep                one controller and three agents with traffic, to look around in
  make lab ARGS="--enter edge-lyon"   a shell on a host that was kept
  make lab ARGS=--down                end those that were kept
  make soak                           the scenarios with their large sizes
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import ground
from tests.lab.commands import CommandFailed, LabError, NeverHappened, wait_until
from tests.lab.image import bare, prune
from tests.lab.lab import Lab, installed
from tests.lab.models import flow_model
from tests.lab.packages import Packages

_AT_ONCE = 3
_SITES = ("lyon", "oslo", "porto")
_CAPTURES = ("base/softflowd-v9", "base/softflowd-ipfix", "base/pmacct-v9")
_SHELL = ("env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "bash", "-l")


def main(arguments: list[str]) -> int:
    """Do what the command line asks; return the exit code."""
    if why := ground.missing():
        print(f"skipped: {why}")
        return 0
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        return _run(arguments)
    except (LabError, CommandFailed, NeverHappened) as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as exc:
        return exc.returncode  # it has said why
    except KeyboardInterrupt:
        return 130
    finally:
        ground.sweep_abandoned()


def _run(arguments: list[str]) -> int:
    ground.sweep_abandoned()
    if arguments[:1] == ["--down"]:
        print(f"ended {ground.sweep_kept()} kept labs")
        return 0
    if arguments[:1] == ["--enter"]:
        return _enter(arguments[1:])
    _prepare()
    if arguments[:1] == ["--keep"]:
        _keep()
        return 0
    return _scenarios(arguments)


def _prepare() -> None:
    """Build what all scenarios stand on, so that none of them is charged for it."""
    packages = Packages()
    with _timed("packages of this checkout"):
        _build_packages()
    with _timed("a bare Debian 12"):
        bare()
    for package in (packages.agent, packages.controller):
        with _timed(f"{package.name} installed on it ({package.stat().st_size / 1e6:.1f} MB)"):
            installed(package)
    prune()


def _build_packages() -> None:
    """Build the packages in dist/ unless they were made of these very sources."""
    if "VEDETTE_LAB_DEBS" not in os.environ:
        # Without the libraries that make lends to tests: a package must name what Debian has.
        ours = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
        subprocess.run([str(ground.ROOT / "packaging/build"), "--if-changed"], cwd=ground.ROOT, env=ours, check=True)


def _scenarios(arguments: list[str]) -> int:
    words = ["-p", "no:cacheprovider", "-q", "--no-header", "-m", "lab"]
    if not {"-n", "--pdb", "-s"} & set(arguments):
        words += ["-n", str(_AT_ONCE), "--dist", "worksteal"]
    # A process of its own: it alone gets Ctrl-C's KeyboardInterrupt at a place where it can clean up.
    command = [sys.executable, "-m", "pytest", *words, str(ground.ROOT / "tests/lab"), *arguments]
    with subprocess.Popen(command, cwd=ground.ROOT) as tests:
        while True:
            try:
                return tests.wait()
            except KeyboardInterrupt:
                continue  # pytest has it too and is taking the hosts down


def _keep() -> None:
    lab = Lab(ground.break_ground())
    try:
        with _timed("one controller and three agents"):
            lab.controller()
            agents = [lab.agent(f"edge-{site}", labels={"site": site}) for site in _SITES]
        with _timed("a model for all of them, and traffic"):
            for agent, capture in zip(agents, _CAPTURES, strict=True):
                lab.traffic(agent, capture)
            lab.roll_out(lab.register(flow_model()))
            wait_until("verdicts are written", lambda: all(lab.verdicts(agent) for agent in agents), 60)
        lab.ground.keep()
    except BaseException:
        lab.close()
        raise
    print(lab.vedette("agent ls").out)
    for name, host in lab.hosts.items():
        print(
            f'make lab ARGS="--enter {name}"'.ljust(40),
            f"# or: nsenter --target {host.leader} --all {' '.join(_SHELL)}",
        )
    print("make lab ARGS=--down".ljust(40), "# ends all of them")


def _enter(words: list[str]) -> int:
    wanted = words[0] if words else ""
    hosts = dict(ground.kept_hosts())
    if wanted not in hosts:
        there = ", ".join(hosts) or "none: make lab ARGS=--keep"
        print(f"no host {wanted!r} was kept; there is {there}", file=sys.stderr)
        return 3
    terminal = f"TERM={os.environ.get('TERM', 'dumb')}"
    shell = [*_SHELL[:2], terminal, *_SHELL[2:]]
    return subprocess.run(["nsenter", "--target", str(hosts[wanted]), "--all", *shell], check=False).returncode


@contextmanager
def _timed(what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    print(f"{time.monotonic() - begun:7.1f} s  {what}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
