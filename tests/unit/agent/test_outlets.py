"""Claims about the verdict file, the HTTP pages and what the agent says of itself."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.verdicts import verdicts
from vedette.agent.adapters.host.usage import UsageMeter, cpu_seconds, proportional_bytes
from vedette.agent.adapters.sinks.json_lines import JsonSink
from vedette.agent.adapters.storage.files import replace_file
from vedette.agent.adapters.telling.http import AddressInUse, HttpServer, Page
from vedette.agent.domain.metrics import Family, Sample, histogram, render, single


class Sink:
    """A sink with its problems noted."""

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.problems: list[str | None] = []
        self.sink = JsonSink(
            path, max_bytes=max_bytes, emits_all=True, queue_bytes=10**6, on_problem=self.problems.append
        )
        self.sink.start()

    def write(self, *lines: str) -> None:
        for line in lines:
            self.sink.write(verdicts(line))
        assert self.sink.flush(10.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log/verdicts.jsonl"


@pytest.fixture
def sink(path: Path) -> Iterator[Sink]:
    made = Sink(path)
    yield made
    made.sink.close(10.0)


def test_lines_arrive_in_order_in_a_file_of_mode_0640(sink: Sink, path: Path) -> None:
    sink.write("one", "two", "three")
    assert path.read_text() == "one\ntwo\nthree\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sink.sink.counters.written == 3


def test_a_rotated_file_is_left_and_a_new_one_begun(sink: Sink, path: Path) -> None:
    sink.write("old")
    path.rename(path.with_suffix(".1"))
    sink.sink.reopen()
    sink.write("new")
    assert (path.with_suffix(".1").read_text(), path.read_text()) == ("old\n", "new\n")


def test_a_file_renamed_without_a_signal_gets_no_further_line(sink: Sink, path: Path) -> None:
    sink.write("old")
    path.rename(path.with_suffix(".1"))
    sink.write("new")
    assert (path.with_suffix(".1").read_text(), path.read_text()) == ("old\n", "new\n")


def test_a_deleted_file_is_made_again_by_the_next_line(sink: Sink, path: Path) -> None:
    sink.write("old")
    path.unlink()
    sink.write("new")
    assert path.read_text() == "new\n"


def test_a_line_cut_by_a_power_failure_does_not_spoil_the_next(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"whole":1}\n{"cut":')
    sink = Sink(path)
    sink.write('{"next":2}')
    sink.sink.close(10.0)
    assert path.read_text() == '{"whole":1}\n{"cut":\n{"next":2}\n'


def test_a_full_disk_is_told_once_counted_and_leaves_whole_lines(sink: Sink, path: Path) -> None:
    sink.write("first")
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))  # a write beyond 20 bytes fails as on a full disk
        sink.write("x" * 30, "y" * 30)
        assert path.read_text() == "first\n"
        assert sink.sink.counters.lost["disk"] == 2
        assert len([problem for problem in sink.problems if problem]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    sink.write("after")
    assert path.read_text() == "first\nafter\n"
    assert sink.problems[-1] is None


def test_a_folder_that_cannot_be_made_is_told_and_the_sink_recovers(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    sink = Sink(tmp_path / "log/verdicts.jsonl")
    sink.write("lost")
    assert sink.problems
    assert "verdicts.jsonl" in str(sink.problems[0])
    (tmp_path / "log").unlink()
    sink.write("kept")
    sink.sink.close(10.0)
    assert (tmp_path / "log/verdicts.jsonl").read_text() == "kept\n"


def test_a_full_queue_drops_and_counts_without_waiting(tmp_path: Path) -> None:
    made = JsonSink(tmp_path / "v", max_bytes=None, emits_all=True, queue_bytes=100, on_problem=lambda _: None)
    for _ in range(5):  # it was not started: nothing empties the queue
        made.write(verdicts("x" * 39))
    assert made.counters.lost["queue"] == 3


def test_a_file_at_its_greatest_size_is_left_as_it_is_until_it_is_rotated(path: Path) -> None:
    sink = Sink(path, max_bytes=12)
    sink.write("first", "second", "3")
    assert path.read_text() == "first\n3\n"
    assert dict(sink.sink.counters.lost) == {"queue": 0, "disk": 0, "size": 1}
    sink.write("second")
    path.rename(path.with_suffix(".1"))
    sink.write("after")
    sink.sink.close(10.0)
    assert path.read_text() == "after\n"
    assert "sink.json.max_size" in str(sink.problems[0])
    assert sink.problems[-1] is None


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer({"/metrics": Page("text/plain", lambda: b"figures\n")})
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"400"),
    ],
)
async def test_a_request_gets_its_status(server: HttpServer, request_head: bytes, status: bytes) -> None:
    port = await server.listen("127.0.0.1", 0)
    answer = await _get(*await asyncio.open_connection("127.0.0.1", port), request_head)
    assert answer.split()[1] == status
    assert (b"figures" in answer) == (status == b"200")


async def test_a_head_beyond_the_limit_is_dropped(server: HttpServer) -> None:
    port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        answer = await _get(reader, writer, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
    except ConnectionError:
        answer = b""
    assert b"figures" not in answer


async def test_a_taken_port_is_a_typed_error(server: HttpServer) -> None:
    port = await server.listen("127.0.0.1", 0)
    with pytest.raises(AddressInUse, match=str(port)):
        await HttpServer({}).listen("127.0.0.1", port)


async def test_the_unix_socket_is_its_owners_alone_and_replaces_a_dead_one(server: HttpServer, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await server.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    answer = await _get(*await asyncio.open_unix_connection(path), b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"figures" in answer


async def test_a_socket_path_that_is_too_long_says_the_limit(server: HttpServer, tmp_path: Path) -> None:
    with pytest.raises(AddressInUse) as caught:
        await server.listen_unix(tmp_path / ("x" * 120))
    assert "107" in caught.value.remedy


def test_metrics_are_prometheus_text() -> None:
    families = [
        single("a_total", "counter", "Of a\nkind.", 3),
        Family("b", "gauge", "B.", (Sample(0.5, {"slot": 'x"y\\z'}),)),
        Family("none", "gauge", "Left out.", ()),
        histogram("c_seconds", "C.", [0.001, 0.01], {"s": [1, 2, 3]}, {"s": 0.25}),
    ]
    assert render(families).decode().splitlines() == [
        "# HELP a_total Of a\\nkind.",
        "# TYPE a_total counter",
        "a_total 3",
        "# HELP b B.",
        "# TYPE b gauge",
        'b{slot="x\\"y\\\\z"} 0.5',
        "# HELP c_seconds C.",
        "# TYPE c_seconds histogram",
        'c_seconds_bucket{slot="s",le="0.001"} 1',
        'c_seconds_bucket{slot="s",le="0.01"} 3',
        'c_seconds_bucket{slot="s",le="+Inf"} 6',
        'c_seconds_sum{slot="s"} 0.25',
        'c_seconds_count{slot="s"} 6',
    ]


def test_usage_counts_a_process_from_its_start_and_forgets_one_that_ended() -> None:
    gone = 2**22 + 1  # above the largest pid
    meter = UsageMeter(lambda: [gone])
    first = meter.read()
    assert first.cpu_seconds == pytest.approx(cpu_seconds(os.getpid()) or 0.0, abs=0.5)
    assert first.memory_bytes == pytest.approx(proportional_bytes(os.getpid()), rel=0.2)
    assert meter.read().cpu_seconds < 1.0
    assert (cpu_seconds(gone), proportional_bytes(gone)) == (None, 0)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_file(path, b"old", 0o644)
    (tmp_path / ".f.new").write_bytes(b"left by a killed process")
    replace_file(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["f"]
