"""The shim and the disk agree with the kernel: replayed to its end, a log gives the folder that is really there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.powercut.disk import Disk, Node, Tree, write_tree
from tests.support.powercut.recording import Recording
from tests.support.powercut.records import LogBroken, Op, Record


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    (tmp_path / "root").mkdir()
    return Recording(tmp_path / "root", tmp_path / "log")


def run(recording: Recording, code: str) -> None:
    environment = {**os.environ, **recording.environment, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=recording.root, env=environment, check=True, timeout=60)


def disk_of(recording: Recording) -> Disk:
    disk = Disk()
    for record in recording.records():
        disk.apply(record)
    return disk


def real(folder: Path) -> Tree:
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        found[str(path.relative_to(folder))] = Node(mode, content)
    return found


CHANGES = {
    "written in pieces, at its place, behind its end and gathered": """
        fd = os.open("a", os.O_RDWR | os.O_CREAT, 0o640)
        os.write(fd, b"one"); os.pwrite(fd, b"two", 10); os.writev(fd, [b"x", b"", b"yz"]); os.pwritev(fd, [b"Q"], 1)
    """,
    "appended by two descriptors": """
        first, second = (os.open("a", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in "12")
        for number in range(9): os.write((first, second)[number % 2], bytes([65 + number]) * number)
    """,
    "truncated in every way": """
        pathlib.Path("a").write_bytes(b"x" * 9000); os.truncate("a", 10)
        with open("a", "r+b") as file: file.truncate(5); file.truncate(7000)
        pathlib.Path("b").write_bytes(b"gone"); open("b", "w").close()
    """,
    "allocated": """
        with open("a", "ab") as file: os.posix_fallocate(file.fileno(), 0, 5000)
    """,
    "copied by the kernel": """
        pathlib.Path("a").write_bytes(bytes(range(256)) * 40); shutil.copyfile("a", "b")
        with open("a", "rb") as source, open("c", "wb") as target:
            os.copy_file_range(source.fileno(), target.fileno(), 500, 3)
    """,
    "renamed, linked, removed": """
        os.makedirs("d/e"); pathlib.Path("d/e/f").write_text("1"); os.rename("d/e/f", "d/g"); os.link("d/g", "h")
        pathlib.Path("i").write_text("2"); os.replace("i", "h"); os.makedirs("gone/deeper")
        pathlib.Path("gone/deeper/x").write_text("3"); shutil.rmtree("gone"); os.rename("d", "moved")
    """,
    "named from an open folder": """
        os.mkdir("d"); at = os.open("d", os.O_RDONLY)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at)); os.rename("f", "g", src_dir_fd=at, dst_dir_fd=at)
        os.chdir("d"); pathlib.Path("../up").write_text("u"); os.chmod("g", 0o400)
    """,
    "written after its name was taken": """
        with open("a", "wb", buffering=0) as file:
            file.write(b"old"); os.unlink("a"); pathlib.Path("a").write_bytes(b"new"); file.write(b"old too")
    """,
    "bound to a socket": """
        import socket; socket.socket(socket.AF_UNIX).bind("s")
    """,
    "closed to others": """
        os.umask(0); os.mkdir("d", 0o711); os.chmod("d", 0o700); os.close(os.open("f", os.O_CREAT, 0o666))
        fd = os.open("g", os.O_CREAT, 0o666); os.fchmod(fd, 0o400)
    """,
    "changed by forks, threads and other programs at once": """
        def append(name):
            fd = os.open("all", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for number in range(100): os.write(fd, f"{name} {number};".encode())
        children = [os.fork() for _ in "12"]
        me = os.getpid()
        threads = [threading.Thread(target=append, args=(f"{me}-{n}",)) for n in range(3)]
        [thread.start() for thread in threads]; [thread.join() for thread in threads]
        if all(children):
            subprocess.run("echo from a shell >> all; mv all b; mkdir -p x/y; cp b x/y/z", shell=True, check=True)
            [os.waitpid(child, 0) for child in children if child]
        else:
            os._exit(0)
    """,
    "fought over by processes": """
        children = [os.fork() for _ in "12"]
        for _ in range(2000):
            with contextlib.suppress(FileExistsError): os.close(os.open("a", os.O_CREAT | os.O_EXCL))
            with contextlib.suppress(FileNotFoundError): os.unlink("a")
        if not all(children):
            os._exit(0)
        [os.waitpid(child, 0) for child in children]
    """,
    "a database": """
        import sqlite3; base = sqlite3.connect("base", isolation_level=None)
        base.execute("PRAGMA journal_mode=WAL"); base.execute("PRAGMA wal_autocheckpoint=4")
        base.execute("CREATE TABLE t (x)")
        for number in range(50): base.execute("INSERT INTO t VALUES (randomblob(3000))")
        base.execute("VACUUM"); base.close()
    """,
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_log_replayed_to_its_end_gives_the_folder_that_is_there(recording: Recording, changes: str) -> None:
    imports = "import contextlib, os, pathlib, shutil, subprocess, threading\n"
    run(recording, imports + textwrap.dedent(changes))
    there = disk_of(recording).live()
    assert {path: there[path] for path in sorted(there)} == real(recording.root)
    copy = recording.root.parent / "copy"
    copy.mkdir()
    write_tree(there, copy)
    assert real(copy) == real(recording.root)


UNMODELLED = {
    "fopen": "import ctypes; ctypes.CDLL(None).fopen(b'a', b'w')",
    "O_SYNC": "import os; os.open('a', os.O_WRONLY | os.O_CREAT | os.O_SYNC)",
    "O_TMPFILE": "import os; os.open('.', os.O_WRONLY | os.O_TMPFILE)",
    "symlink": "import os; os.symlink('/', 'a')",
    "mmap": "import mmap; f = open('a', 'w+b'); f.write(b'1'); f.flush(); mmap.mmap(f.fileno(), 1)",
    "a name that crosses the root": "import os; open('a', 'w').close(); os.rename('a', '../outside')",
}


@pytest.mark.parametrize("function", UNMODELLED)
def test_a_log_of_what_the_shim_cannot_describe_is_refused(recording: Recording, function: str) -> None:
    run(recording, UNMODELLED[function])
    with pytest.raises(LogBroken, match=function):
        recording.records()


def test_a_log_that_was_cut_is_refused(recording: Recording) -> None:
    recording.log.write_bytes(Record(Op.WRITE, "a", inode=1, data=b"12345").to_bytes()[:-1])
    with pytest.raises(LogBroken, match="ends inside"):
        recording.records()


def test_nothing_is_said_of_what_happens_elsewhere(recording: Recording, tmp_path: Path) -> None:
    run(recording, f"import pathlib; f = pathlib.Path({str(tmp_path)!r}, 'rooted'); f.write_text('x'); f.unlink()")
    assert recording.records() == []


def test_marks_stand_behind_what_happened_before_them(recording: Recording) -> None:
    run(recording, "open('a', 'w').close()")
    recording.mark(told="ä")
    run(recording, "open('b', 'w').close()")
    first, second, third = recording.records()
    assert (first.path, second.fact, third.path) == ("a", {"told": "ä"}, "b")


def test_a_file_of_a_process_without_the_shim_is_refused_but_where_it_is_expected() -> None:
    stray = Record(Op.UNLINK, "staging/part")
    with pytest.raises(LogBroken, match="nothing made 'staging'"):
        Disk().apply(stray)
    Disk(unrecorded=("staging",)).apply(stray)
