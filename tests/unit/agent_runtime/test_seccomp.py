"""The filter of system calls that a worker sets on itself: as a program, read by hand, and on a real process."""

from __future__ import annotations

import errno
import os
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from vedette.agent.adapters.inference.seccomp import FilterUnavailable, denied_numbers, filter_program

ALLOWED, KILLED = "allowed", "killed"
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), r"#define __NR_(\w+)\s+(\d+)"),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"), r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
}
CLONE = {"x86_64": 56, "aarch64": 220}
MMAP = {"x86_64": 9, "aarch64": 222}


def judged(machine: str, number: int, *arguments: int, arch: int = 0, pid: int = 77) -> str | int:
    """Return what the filter says of a call: allowed, killed, or the error it gets; classic BPF, run by hand."""
    words = struct.pack("=IIQ6Q", number, arch or MACHINES[machine], 0, *(*arguments, *[0] * 6)[:6])
    program = list(struct.iter_unpack("=HBBI", filter_program(machine, pid)))
    at = held = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (held,) = struct.unpack_from("=I", words, value)
        elif code == 0x06:
            named = {0x7FFF0000: ALLOWED, 0x80000000: KILLED}
            return named.get(value, value & 0xFFFF)
        else:
            holds = {0x15: held == value, 0x25: held > value, 0x45: bool(held & value)}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_fails_and_what_computing_needs_does_not(machine: str) -> None:
    assert {judged(machine, number) for number in denied_numbers(machine).values()} == {errno.EPERM}
    needed = {"x86_64": (0, 1, 44, 45, 202, 28, 11, 12), "aarch64": (63, 64, 206, 207, 98, 233, 215, 214)}[machine]
    assert {judged(machine, number) for number in needed} == {ALLOWED}  # read … futex, madvise, munmap, brk


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_may_be_started_and_processes_not(machine: str) -> None:
    assert judged(machine, CLONE[machine], 0x3D0F00) == ALLOWED  # as pthread_create asks
    assert judged(machine, CLONE[machine], 0x1200011) == errno.EPERM  # as fork asks
    assert judged(machine, 435, 0) == errno.ENOSYS  # clone3: its flags cannot be seen


@pytest.mark.parametrize("machine", MACHINES)
def test_memory_that_may_be_run_is_refused(machine: str) -> None:
    assert judged(machine, MMAP[machine], 0, 4096, 3) == ALLOWED
    assert judged(machine, MMAP[machine], 0, 4096, 7) == errno.EPERM


def test_a_process_may_signal_and_limit_itself_alone() -> None:
    kill, tgkill, prlimit = 62, 234, 302
    assert [judged("x86_64", kill, pid) for pid in (77, 78, 0, 2**64 - 1)] == [ALLOWED] + [errno.EPERM] * 3
    assert [judged("x86_64", tgkill, pid) for pid in (77, 1)] == [ALLOWED, errno.EPERM]
    assert [judged("x86_64", prlimit, pid) for pid in (0, 1)] == [ALLOWED, errno.EPERM]


def test_calls_of_another_table_or_of_a_newer_kernel_are_no_way_round() -> None:
    assert judged("x86_64", 1, arch=0x40000003) == KILLED  # int 0x80 of i386, where 1 is another call
    assert judged("x86_64", 0x40000000 | 2) == errno.ENOSYS  # open by the x32 table
    assert judged("x86_64", 468) == errno.ENOSYS


def test_a_processor_that_is_not_known_is_told() -> None:
    with pytest.raises(FilterUnavailable, match="riscv64"):
        filter_program("riscv64", 1)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    path, pattern = HEADERS[machine]
    if not path.exists():
        pytest.skip(f"no kernel headers at {path}")
    kernels = {name: int(number) for name, number in re.findall(pattern, path.read_text())}
    ours = denied_numbers(machine)
    assert {name: kernels[name] for name in ours if name in kernels} == {n: ours[n] for n in ours if n in kernels}
    assert len(ours.keys() & kernels.keys()) > 80


TRIES = """
import ctypes, errno, mmap, os, socket, sys, threading
from vedette.agent.adapters.inference.seccomp import denied_numbers, forbid_reaching_out
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
forbid_reaching_out()

def error_of(work):
    try:
        work()
    except OSError as exc:
        return exc.errno
    return 0

def called(number):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0, 0)
    return ctypes.get_errno()

works = [lambda: open(sys.argv[1]), lambda: open(sys.argv[1], "w"), lambda: os.listdir("/"), os.fork, socket.socket,
         lambda: os.execv(sys.executable, ["python"]), lambda: os.kill(os.getppid(), 0), lambda: os.unlink(sys.argv[1]),
         lambda: mmap.mmap(-1, 4096, prot=7)]
errors = [error_of(work) for work in works]
assert errors == [errno.EPERM] * len(works), errors
errors = {name: called(number) for name, number in denied_numbers(os.uname().machine).items()}
assert set(errors.values()) == {errno.EPERM}, errors
assert called(500) == errno.ENOSYS
thread = threading.Thread(target=os.kill, args=(os.getpid(), 0))
thread.start()
thread.join()
os.abort()
"""


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="the system calls of this processor are not listed")
def test_a_process_under_the_filter_reaches_nothing_and_can_still_end_itself(tmp_path: Path) -> None:
    (tmp_path / "beside").write_text("kept")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", TRIES, str(tmp_path / "beside")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -6, done.stderr
    assert (tmp_path / "beside").read_text() == "kept"
