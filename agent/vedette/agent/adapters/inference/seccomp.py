"""A filter of system calls that a worker sets on itself for ever, before it reads a byte of a model.

Rules:

* It takes away what reaches out of the process: opening a file by any name, making a socket, starting a program or a
  process, looking into or signalling another, a kernel interface with another way to any of these (io_uring), memory
  that may be run. What was opened before stays: the ring, the model, the socket to the agent.
* What is refused fails with EPERM, which onnxruntime, glibc and Python take for an ordinary error: the model is refused
  and the worker goes on. Calls that are newer than this list fail with ENOSYS, so that a kernel's update opens no door.
* Threads may be started, because a session starts its own; processes may not.

A list of what is denied, not of what is allowed: what a runtime, a glibc and an allocator call to compute differs
between versions, and a call denied by mistake (futex, madvise) is a model that hangs. A batch makes five calls, and the
kernel remembers which calls a filter always allows; the rest of its price was not measured well (docs/serving.md).

Sources: seccomp(2); Linux, Documentation/userspace-api/seccomp_filter.rst; numbers from arch/x86/entry/syscalls/
syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.1 (Debian 12) and later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

_PR_SET_SECCOMP = 22  # include/uapi/linux/prctl.h
_SECCOMP_MODE_FILTER = 2
_RET_KILL_PROCESS, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000  # include/uapi/linux/seccomp.h
_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16  # in struct seccomp_data; an argument's low half comes first
_LOAD, _RETURN = 0x20, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_RET | BPF_K: include/uapi/linux/bpf_common.h
_IF_EQUAL, _IF_GREATER, _IF_ANY_BIT = 0x15, 0x25, 0x45  # BPF_JMP | BPF_JEQ, BPF_JGT, BPF_JSET; all with BPF_K
_CLONE_THREAD = 0x00010000  # include/uapi/linux/sched.h
_PROT_EXEC = 4
_PR_SET_NAME = 15
_SELF = 0
_NEWEST = 467
"""The newest call that the list below has weighed (open_tree_attr, Linux 6.15)."""

# Numbers: x86-64, AArch64. -1 where there is none.
_DENIED: dict[str, tuple[int, int]] = {
    # files by name
    "open": (2, -1),
    "creat": (85, -1),
    "openat": (257, 56),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "uselib": (134, -1),
    "truncate": (76, 45),
    "unlink": (87, -1),
    "unlinkat": (263, 35),
    "rename": (82, -1),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, -1),
    "mkdirat": (258, 34),
    "rmdir": (84, -1),
    "link": (86, -1),
    "linkat": (265, 37),
    "symlink": (88, -1),
    "symlinkat": (266, 36),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "chmod": (90, -1),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "setxattrat": (463, 463),
    "utimensat": (280, 88),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # other programs, near and far
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "mq_open": (240, 180),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    # processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    # the kernel
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "personality": (135, 92),
    "modify_ldt": (154, -1),
}
_CLONE3 = (435, 435)
"""Its flags lie in memory, where no filter reads: ENOSYS makes glibc ask by clone."""


class FilterUnavailable(Exception):
    """This machine sets no such filter."""


@dataclass(frozen=True, slots=True)
class _Machine:
    audit: int  # AUDIT_ARCH_…, include/uapi/linux/audit.h
    column: int  # of the numbers above
    clone: int
    prctl: int
    kill: int
    tgkill: int
    prlimit64: int
    executable: tuple[int, ...]  # mmap, mprotect, pkey_mprotect: each has the protection as its third argument


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0, 56, 157, 62, 234, 302, (9, 10, 329)),
    "aarch64": _Machine(0xC00000B7, 1, 220, 167, 129, 131, 261, (222, 226, 288)),
}


def denied_numbers(machine: str) -> dict[str, int]:
    """Return the calls that are always denied, by name."""
    column = _MACHINES[machine].column
    return {name: numbers[column] for name, numbers in _DENIED.items() if numbers[column] >= 0}


def filter_program(machine: str, pid: int) -> bytes:
    """Return the filter for a process, as an array of struct sock_filter.

    Raises:
        FilterUnavailable: The processor's calls are not known here.
    """
    known = _MACHINES.get(machine)
    if known is None:
        raise FilterUnavailable(f"the system calls of {machine} are not known; known: {', '.join(_MACHINES)}")
    program = [
        *(_op(_LOAD, _AT_ARCH), _op(_IF_EQUAL, known.audit, 1, 0), _op(_RETURN, _RET_KILL_PROCESS)),
        *(_op(_LOAD, _AT_NUMBER), _op(_IF_GREATER, _NEWEST, 0, 1), _refused(errno.ENOSYS)),  # also the x32 table
        *(_op(_IF_EQUAL, _CLONE3[known.column], 0, 1), _refused(errno.ENOSYS)),
        *_only_if(known.clone, 0, _IF_ANY_BIT, _CLONE_THREAD),
        *_only_if(known.prctl, 0, _IF_EQUAL, _PR_SET_NAME),
        *_only_if(known.prlimit64, 0, _IF_EQUAL, _SELF),
        *_only_if(known.kill, 0, _IF_EQUAL, pid),
        *_only_if(known.tgkill, 0, _IF_EQUAL, pid),
    ]
    for number in known.executable:
        program += _only_if(number, 2, _IF_ANY_BIT, _PROT_EXEC, negated=True)
    for number in sorted(denied_numbers(machine).values()):
        program += [_op(_IF_EQUAL, number, 0, 1), _refused(errno.EPERM)]
    return b"".join([*program, _op(_RETURN, _RET_ALLOW)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refused(error: int) -> bytes:
    return _op(_RETURN, _RET_ERRNO | error)


def _only_if(number: int, argument: int, test: int, value: int, *, negated: bool = False) -> list[bytes]:
    """Deny a call unless the low half of one of its arguments passes a test; the number is loaded before and after."""
    last = (1, 0) if negated else (0, 1)
    return [
        _op(_IF_EQUAL, number, 0, 4),
        _op(_LOAD, _AT_ARGUMENTS + 8 * argument),
        _op(test, value, *last),
        _op(_RETURN, _RET_ALLOW),
        _refused(errno.EPERM),
    ]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_reaching_out() -> None:
    """Set the filter on this thread, and thereby on all it starts; there is no way back.

    Raises:
        FilterUnavailable: The kernel was built without, the processor is unknown, or a filter above forbids it.
    """
    program = filter_program(platform.machine(), os.getpid())
    described = _Program(len(program) // 8, program)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0) != 0:
        raise FilterUnavailable(f"the kernel sets no filter of system calls: {os.strerror(ctypes.get_errno())}")
