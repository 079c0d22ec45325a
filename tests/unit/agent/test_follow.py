"""Claims about following a log file across all that is done to one."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vedette.agent.adapters.sources import follow
from vedette.agent.adapters.sources.follow import GRACE_S, Follower, Position, PositionError


class Writer:
    """A program that logs, and a follower beside it on a clock that moves by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "eve.json"
        self.now_s = 100.0
        self.written = 0
        self.got: list[bytes] = []
        self.rest = b""
        self.followers: list[Follower] = []
        self.follower = self.start(None)

    def start(self, stored: Position | None) -> Follower:
        self.follower = Follower(self.path, stored, lambda: self.now_s)
        self.followers.append(self.follower)
        return self.follower

    def log(self, count: int, path: Path | None = None) -> None:
        with (path or self.path).open("ab") as file:
            for _ in range(count):
                file.write(b"line %d\n" % self.written)
                self.written += 1
        os.utime(path or self.path, ns=(0, 10**9 * self.written))  # their order is told by time

    def take(self, most: int = 64) -> None:
        """Read all there is."""
        while self.look(most):
            pass

    def look(self, most: int = 1) -> bool:
        """Read so many bytes."""
        piece = self.follower.read(most)
        if piece is None:
            return False
        if piece.begins and self.rest:
            self.got.append(self.rest)
            self.rest = b""
        *lines, self.rest = (self.rest + piece.data).split(b"\n")
        self.got += lines
        return True

    def settle(self) -> None:
        """Read all there is, and what the grace of a rotation holds back."""
        self.take()
        self.now_s += GRACE_S
        self.take()

    @property
    def numbers(self) -> list[int]:
        return [int(line.split()[1]) for line in self.got]

    def restart(self) -> None:
        position = self.follower.position
        self.follower.close()
        self.start(position)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    made = Writer(tmp_path)
    yield made
    for follower in made.followers:
        follower.close()


def test_lines_are_read_as_they_are_written(writer: Writer) -> None:
    assert writer.follower.read(64) is None
    for count in (3, 0, 50):
        writer.log(count)
        writer.take()
    assert writer.numbers == list(range(53))
    assert writer.follower.lag_bytes == 0
    writer.log(2)
    assert writer.follower.lag_bytes == len(b"line 53\n") * 2


def rename(writer: Writer) -> None:
    for number in range(8, 0, -1):
        older = writer.path.with_name(f"eve.json.{number}")
        if older.exists():
            older.rename(writer.path.with_name(f"eve.json.{number + 1}"))
    writer.path.rename(writer.path.with_name("eve.json.1"))
    writer.path.touch()


def copy_and_cut(writer: Writer) -> None:
    shutil.copy2(writer.path, writer.path.with_name(f"eve.json-{20261100 + writer.written}"))
    os.truncate(writer.path, 0)


@pytest.mark.parametrize("rotate", [rename, copy_and_cut])
@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("rotations", [1, 3])
def test_nothing_is_lost_or_read_twice_over_rotations(
    writer: Writer, rotate: Callable[[Writer], None], is_restarted: bool, rotations: int
) -> None:
    writer.log(40)
    writer.settle()
    writer.log(7)  # never seen before the file is rotated
    if is_restarted:
        position = writer.follower.position
        writer.follower.close()
    for _ in range(rotations if is_restarted or rotate is rename else 1):
        rotate(writer)
        if not is_restarted:
            writer.look()
        writer.log(90)
    if is_restarted:
        writer.start(position)
    for _ in range(rotations + 1):
        writer.settle()
    assert writer.numbers == list(range(writer.written))
    assert writer.follower.counters.gaps == 0


@pytest.mark.parametrize("is_first_kept", [True, False])
def test_a_file_that_came_and_was_rotated_away_between_two_looks_is_read(writer: Writer, is_first_kept: bool) -> None:
    writer.log(5)
    writer.take()
    for _ in range(3):
        rename(writer)
        writer.log(5)
    if not is_first_kept:
        writer.path.with_name("eve.json.3").unlink()
    writer.settle()
    assert writer.numbers == list(range(20))
    assert (writer.follower.counters.rotations, writer.follower.counters.gaps) == (3, 0)


def compress(writer: Writer, number: int) -> None:
    plain = writer.path.with_name(f"eve.json.{number}")
    packed = plain.with_name(f"{plain.name}.gz")
    packed.write_bytes(b"\x1f\x8b")
    shutil.copystat(plain, packed)
    plain.unlink()


def test_a_file_that_was_compressed_before_anybody_saw_it_is_a_gap(writer: Writer) -> None:
    writer.log(5)
    writer.take()
    rename(writer)
    writer.log(5)
    compress(writer, 1)
    writer.settle()
    assert (writer.numbers, writer.follower.counters.gaps) == (list(range(10)), 0)  # it was open
    for packed in (1, 1, 0):
        rename(writer)
        if packed:
            compress(writer, packed)
        writer.log(5)
    writer.settle()
    assert writer.numbers == [*range(10), *range(15, 25)]
    assert writer.follower.counters.gaps == 1


def test_a_writer_that_was_not_told_of_the_rotation_yet_is_waited_for(writer: Writer) -> None:
    writer.log(5)
    writer.take()
    old = writer.path.with_name("eve.json.1")
    writer.path.rename(old)
    writer.take()
    writer.log(3, old)
    writer.take()
    writer.path.touch()  # logrotate's create
    writer.settle()
    writer.log(2, old)
    writer.settle()
    writer.log(1, old)
    writer.log(4)
    writer.take()
    assert writer.numbers == list(range(11)), "the new file waits for the old one to be quiet"
    writer.now_s += GRACE_S
    writer.take()
    assert writer.numbers == list(range(15))
    assert writer.follower.counters.rotations == 1


def test_a_file_that_is_compressed_and_deleted_is_read_to_its_end(writer: Writer) -> None:
    writer.log(5)
    writer.look(10)
    writer.path.rename(writer.path.with_name("eve.json.1"))
    writer.log(3)
    writer.path.with_name("eve.json.1").unlink()
    writer.path.with_name("eve.json.1.gz").write_bytes(b"\x1f\x8b")
    writer.settle()
    assert writer.numbers == list(range(8))


def test_a_file_compressed_while_nobody_looked_is_a_gap(writer: Writer) -> None:
    writer.log(5)
    writer.take()
    position = writer.follower.position
    writer.follower.close()
    writer.log(5)
    writer.path.rename(writer.path.with_name("eve.json.1.gz"))
    writer.log(5)
    writer.start(position)
    writer.settle()
    assert writer.numbers == [*range(5), *range(10, 15)]
    assert writer.follower.counters.gaps == 1


def test_a_file_that_is_cut_with_no_copy_is_begun_anew_and_counted(writer: Writer) -> None:
    writer.log(20)
    writer.take()
    writer.path.write_bytes(b"")
    writer.written = 70
    writer.log(30)  # longer than what was read: only the first bytes tell
    writer.take()
    assert writer.numbers == [*range(20), *range(70, 100)]
    assert (writer.follower.counters.truncations, writer.follower.counters.gaps) == (1, 1)


def test_a_file_of_the_same_inode_and_other_first_bytes_is_another_file(writer: Writer) -> None:
    writer.log(20)
    writer.take()
    position = writer.follower.position
    writer.follower.close()
    writer.path.write_bytes(b"line 70\n" * 40)
    writer.start(position)
    writer.take()
    assert writer.numbers == [*range(20), *[70] * 40]
    assert writer.follower.counters.gaps == 1


def test_a_restart_goes_on_at_the_very_byte(writer: Writer) -> None:
    writer.log(30)
    for most in (1, 7, 10, 40):
        writer.restart()
        while writer.look(most):
            writer.restart()
        writer.log(20)
    writer.take()
    assert writer.numbers == list(range(writer.written))


def test_the_first_start_reads_the_last_part_of_what_lies_there(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "FIRST_BYTES", 100)
    writer.log(500)
    piece = writer.follower.read(10_000)
    assert piece is not None
    assert (len(piece.data), piece.begins, writer.follower.began_inside) == (100, True, True)
    assert writer.follower.head(7) == b"line 0\n"


def test_a_file_that_appears_later_is_read_whole(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "FIRST_BYTES", 100)
    assert writer.follower.read(10) is None
    problem = writer.follower.problem
    assert problem is not None
    assert problem.is_waiting
    assert "is not there: start the program that writes it" in problem.text
    writer.log(500)
    writer.take()
    assert writer.numbers == list(range(500))
    assert writer.follower.problem is None


def test_a_rotation_in_progress_is_nobodys_trouble_and_a_lost_file_is(writer: Writer) -> None:
    writer.log(1)
    writer.take()
    writer.path.unlink()
    writer.take()
    assert writer.follower.problem is None
    writer.now_s += 31
    writer.take()
    assert writer.follower.problem is not None
    writer.log(1)
    writer.settle()
    assert writer.follower.problem is None
    assert writer.numbers == [0, 1]


def test_a_file_that_is_put_back_is_no_trouble_any_more(writer: Writer) -> None:
    writer.log(1)
    writer.take()
    aside = writer.path.with_name("aside")
    writer.path.rename(aside)
    writer.now_s += 31
    writer.take()
    assert writer.follower.problem is not None
    aside.rename(writer.path)
    writer.take()
    assert writer.follower.problem is None


@pytest.mark.parametrize("make", ["fifo", "socket", "folder", "device"])
def test_only_regular_files_are_followed_and_nothing_waits_for_another(writer: Writer, make: str) -> None:
    if make == "fifo":
        os.mkfifo(writer.path)
    elif make == "folder":
        writer.path.mkdir()
    elif make == "device":
        writer.path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(writer.path))
    assert writer.follower.read(10) is None
    assert "is no regular file: pipes and devices" in writer.follower.problem.text


def test_a_file_that_may_not_be_read_says_which_command_helps(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    writer.log(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        assert writer.follower.read(10) is None
        assert "usermod -aG GROUP vedette-agent" in writer.follower.problem.text
    writer.take()
    assert (writer.follower.problem, writer.numbers) == (None, [0])


def test_a_link_is_followed_to_another_file(writer: Writer, tmp_path: Path) -> None:
    folders = [tmp_path / "2026-11-22", tmp_path / "2026-11-23"]
    for folder in folders:
        folder.mkdir()
    writer.path.symlink_to(folders[0] / "conn.log")
    writer.log(3)
    writer.take()
    writer.path.unlink()
    writer.path.symlink_to(folders[1] / "conn.log")
    writer.log(3)
    writer.settle()
    assert writer.numbers == list(range(6))


def test_open_files_are_bounded_however_often_a_file_is_rotated(writer: Writer) -> None:
    writer.log(1)
    for _ in range(100):
        writer.log(1)
        writer.look()
        writer.path.unlink()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    writer.follower.close()
    assert open_files - len(list(Path("/proc/self/fd").iterdir())) == 32


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_writes_rotations_and_restarts_reads_every_line_once(writer: Writer, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        what = chance.choice(["log", "log", "read", "rename", "restart", "copy"])
        if what == "log":
            writer.log(chance.randint(1, 30))
        elif what == "read":
            writer.settle()
        elif what == "restart":
            writer.take(chance.randint(1, 100))
            writer.restart()
        elif writer.path.exists() and writer.path.stat().st_size:
            writer.settle()
            writer.log(chance.randint(1, 30))
            rename(writer) if what == "rename" else copy_and_cut(writer)
            writer.look()
    for _ in range(3):
        writer.settle()
    assert writer.numbers == list(range(writer.written))


@pytest.mark.parametrize(
    "change", [{"inode": -1}, {"offset": 1.5}, {"head_bytes": 2000}, {"head_digest": "x"}, {"more": 1}, {"inode": True}]
)
def test_a_stored_position_that_is_none_is_refused(change: dict[str, object]) -> None:
    good = Position(1, 2, 3, "0" * 64)
    assert Position.from_value(good.to_value()) == good
    with pytest.raises(PositionError):
        Position.from_value(good.to_value() | change)
    with pytest.raises(PositionError):
        Position.from_value([])
