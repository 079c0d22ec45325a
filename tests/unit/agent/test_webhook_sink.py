"""Claims about verdicts posted to a webhook, at receivers on real sockets."""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.support.receivers import Answer, Request, TlsGround, WebhookReceiver, hanging_receiver, unused_port
from tests.support.verdicts import verdicts
from vedette.agent.adapters.sinks.webhook import MAX_ANSWER_BYTES, WebhookSink
from vedette.agent.domain.webhook import Endpoint, Outcome, bodies, judged, parse_endpoint, retry_after_s, signature
from vedette.agent.settings import TlsFiles, WebhookSettings
from vedette.models.toml_settings import WrongValue

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("https://h.example/a?b=c", Endpoint(True, "h.example", 443, "/a?b=c")),
        ("http://h.example", Endpoint(False, "h.example", 80, "/")),
        ("https://[2001:db8::1]:8443/x", Endpoint(True, "2001:db8::1", 8443, "/x")),
    ],
)
def test_an_endpoint_is_of_a_url(raw: str, expected: Endpoint) -> None:
    assert parse_endpoint(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "h.example/x",
        "ftp://h/x",
        "https://",
        "https://u:p@h/x",
        "https://h:99999/",
        "https://h/a b",
        "https://h/\u00fc",
    ],
)
def test_what_is_no_plain_url_is_refused(raw: str) -> None:
    with pytest.raises(WrongValue):
        parse_endpoint(raw)


def test_the_log_never_has_an_endpoints_query() -> None:
    assert str(parse_endpoint("https://h.example/a?token=secret")) == "https://h.example:443/a"


def test_a_signature_is_hmac_sha256_of_time_and_body() -> None:
    digest = hmac.new(b"key", b'1795433861.{"a":1}\n', hashlib.sha256).hexdigest()
    assert signature(b"key", 1_795_433_861, b'{"a":1}\n') == f"t=1795433861,v1={digest}"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.TAKEN), (204, Outcome.TAKEN), (301, Outcome.AGAIN), (400, Outcome.REFUSED),
        (401, Outcome.REFUSED), (408, Outcome.AGAIN), (413, Outcome.REFUSED), (425, Outcome.AGAIN),
        (429, Outcome.AGAIN), (500, Outcome.AGAIN), (503, Outcome.AGAIN), (600, Outcome.AGAIN),
    ],
)  # fmt: skip
def test_a_status_says_what_becomes_of_a_batch(status: int, outcome: Outcome) -> None:
    assert judged(status) is outcome


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 400, 1e9),
        ("-5", 0.0),
        ("soon", 0.0),
        ("²", 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0.0),
        ("Mon, 23 Nov 2026 12:00:05 -0000", 5.0),
    ],
)
def test_a_receiver_may_ask_to_wait(text: str | None, expected: float) -> None:
    assert retry_after_s(text, NOW) == expected


def test_batches_keep_the_order_and_both_limits() -> None:
    lines = [b"12345\n"] * 5 + [b"x" * 50]
    assert [len(batch) for batch in bodies(lines, 2, 100)] == [2, 2, 2]
    assert [len(batch) for batch in bodies(lines, 100, 13)] == [2, 2, 1, 1]
    assert bodies([], 2, 100) == []


class Bench:
    """A sink with its problems noted."""

    def __init__(self, url: str, **changes: Any) -> None:
        self.problems: list[str | None] = []
        self.told: queue.Queue[str | None] = queue.Queue()
        known: dict[str, Any] = {
            "secret_file": None, "tls": TlsFiles(), "batch_rows": 2, "batch_age_s": 3600.0, "timeout_s": 20.0,
            "retry_cap_s": 0.01, "give_up_s": 3600.0, "emit_all": True, "queue_bytes": 10**6,
        }  # fmt: skip
        self.sink = WebhookSink(WebhookSettings(endpoint=parse_endpoint(url), **(known | changes)), self._problem)
        self.sink.start()

    def _problem(self, problem: str | None) -> None:
        self.problems.append(problem)
        self.told.put(problem)

    def await_problem(self) -> str | None:
        return self.told.get(timeout=20.0)

    def write(self, *lines: str) -> None:
        self.sink.write(verdicts(*(json.dumps({"n": line}) for line in lines)))


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(url: str, **changes: Any) -> Bench:
        made.append(Bench(url, **changes))
        return made[-1]

    yield make
    for each in made:
        each.sink.close(0.0)


@pytest.fixture
def receiver() -> Iterator[Callable[..., WebhookReceiver]]:
    made: list[WebhookReceiver] = []

    def make(*answers: Answer, **more: Any) -> WebhookReceiver:
        made.append(WebhookReceiver(answers, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def numbers(request: Request) -> list[str]:
    return [json.loads(line)["n"] for line in request.body.splitlines()]


Make = Callable[..., Any]


def test_a_full_batch_is_posted_as_json_lines(bench: Make, receiver: Make) -> None:
    hook = receiver()
    posting = bench(f"http://127.0.0.1:{hook.port}/in?source=a")
    posting.write("1")
    posting.write("2", "3")
    first, second = hook.request(), hook.request()
    assert [numbers(first), numbers(second)] == [["1", "2"], ["3"]]
    assert first.path == "/in?source=a"
    assert first.headers["content-type"] == "application/x-ndjson"
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert "vedette-signature" not in first.headers
    assert posting.sink.flush(20.0)
    assert (posting.sink.counters.written, posting.sink.counters.lost.total()) == (3, 0)


def test_a_batch_that_is_old_enough_is_posted_alone(bench: Make, receiver: Make) -> None:
    hook = receiver()
    posting = bench(f"http://127.0.0.1:{hook.port}/", batch_rows=100, batch_age_s=0.01)
    posting.write("1")
    assert numbers(hook.request()) == ["1"]


def test_what_was_gathered_is_posted_at_the_end(bench: Make, receiver: Make) -> None:
    hook = receiver()
    posting = bench(f"http://127.0.0.1:{hook.port}/", batch_rows=100)
    posting.write("1")
    assert posting.sink.flush(20.0)
    assert posting.sink.gathered == 1
    posting.sink.close(20.0)
    assert numbers(hook.request()) == ["1"]


def test_a_batch_not_taken_is_posted_again_with_its_key_and_body(bench: Make, receiver: Make) -> None:
    hook = receiver(Answer(503), Answer(429, (("Retry-After", "0"),)), Answer(302, (("Location", "http://x/"),)))
    posting = bench(f"http://127.0.0.1:{hook.port}/")
    posting.write("1", "2")
    tries = [hook.request() for _ in range(4)]
    assert {one.body for one in tries} == {tries[0].body}
    assert len({one.headers["idempotency-key"] for one in tries}) == 1
    assert "503" in str(posting.await_problem())
    assert posting.await_problem() is None
    assert posting.sink.flush(20.0)
    assert (posting.sink.counters.written, posting.sink.counters.lost.total()) == (2, 0)


def test_a_refused_batch_is_counted_told_and_the_next_one_posted(bench: Make, receiver: Make) -> None:
    hook = receiver(Answer(400))
    posting = bench(f"http://127.0.0.1:{hook.port}/")
    posting.write("1", "2")
    assert "400" in str(posting.await_problem())
    posting.write("3", "4")
    assert [numbers(hook.request()) for _ in range(2)] == [["1", "2"], ["3", "4"]]
    assert posting.await_problem() is None
    assert posting.sink.flush(20.0)
    assert posting.sink.counters.lost["refused"] == 2
    assert posting.sink.counters.written == 2


def test_a_wait_that_the_receiver_asks_for_is_kept_and_an_end_does_not_wait_for_it(bench: Make, receiver: Make) -> None:
    hook = receiver(*[Answer(429, (("Retry-After", "3000"),))] * 3)
    posting = bench(f"http://127.0.0.1:{hook.port}/")
    posting.write("1", "2")
    hook.request()
    assert posting.await_problem()
    posting.sink.close(0.0)
    assert not posting.sink.flush(0.0) or posting.sink.counters.lost["end"] == 2
    assert hook.requests.empty()


def test_a_batch_tried_for_too_long_makes_way_for_the_next(bench: Make, receiver: Make) -> None:
    hook = receiver(Answer(500))
    posting = bench(f"http://127.0.0.1:{hook.port}/", give_up_s=0.0)
    posting.write("1", "2")
    posting.write("3", "4")
    assert [numbers(hook.request()) for _ in range(2)] == [["1", "2"], ["3", "4"]]
    assert posting.sink.flush(20.0)
    assert posting.sink.counters.lost["late"] == 2


def test_the_signature_can_be_checked_as_the_docs_say(bench: Make, receiver: Make, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/sinks.md").read_text()
    recipe = re.search(r"```python\n(.*?def is_ours.*?)```", page, re.DOTALL)
    assert recipe is not None
    said: dict[str, Any] = {}
    exec(recipe[1], said)  # noqa: S102 - our own page
    is_ours = said["is_ours"]
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    secret.chmod(0o640)
    hook = receiver()
    bench(f"http://127.0.0.1:{hook.port}/", secret_file=secret).write("1", "2")
    got = hook.request()
    header = got.headers["vedette-signature"]
    assert is_ours(b"correct horse", header, got.body)
    assert not is_ours(b"battery", header, got.body)
    assert not is_ours(b"correct horse", header, got.body + b" ")
    assert not is_ours(b"correct horse", re.sub(r"t=\d+", "t=1", header), got.body)
    assert not is_ours(b"correct horse", signature(b"correct horse", 1, got.body), got.body)  # true, and old
    assert not is_ours(b"correct horse", "nonsense", got.body)


def test_a_secret_that_everybody_may_read_signs_nothing_until_it_is_mended(
    bench: Make, receiver: Make, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse")
    secret.chmod(0o644)
    hook = receiver()
    posting = bench(f"http://127.0.0.1:{hook.port}/", secret_file=secret)
    posting.write("1", "2")
    assert f"chmod 640 {secret}" in str(posting.await_problem())
    assert hook.requests.empty()
    secret.chmod(0o600)
    assert numbers(hook.request()) == ["1", "2"]


def test_over_https_the_receiver_is_checked_by_name(bench: Make, receiver: Make, tmp_path: Path) -> None:
    ground = TlsGround(tmp_path, "localhost")
    hook = receiver(context=ground.context)
    bench(f"https://localhost:{hook.port}/", tls=TlsFiles(ca=ground.ca)).write("1", "2")
    assert numbers(hook.request()) == ["1", "2"]
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    elsewhere = TlsGround(wrong, "other.example")
    other = receiver(context=elsewhere.context)
    posting = bench(f"https://localhost:{other.port}/", tls=TlsFiles(ca=elsewhere.ca))
    posting.write("1", "2")
    assert "Hostname mismatch" in str(posting.await_problem())
    assert other.requests.empty()


def _close(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    handler.close_connection = True  # without a word of it in the answer, as a receiver with a short idle time does


def test_a_connection_that_the_receiver_closed_while_it_was_idle_is_no_failure(bench: Make, receiver: Make) -> None:
    hook = receiver(Answer(write=_close))
    posting = bench(f"http://127.0.0.1:{hook.port}/")
    posting.write("1", "2")
    hook.request()
    assert posting.sink.flush(20.0)
    posting.write("3", "4")
    assert numbers(hook.request()) == ["3", "4"]
    assert posting.sink.flush(20.0)
    assert posting.problems == []


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    with suppress(OSError):  # broken pipe or reset: the sink hung up
        while True:
            handler.wfile.write(b"x" * 65536)
    handler.close_connection = True


def test_an_endless_answer_is_read_to_a_limit(bench: Make, receiver: Make) -> None:
    hook = receiver(Answer(write=_endless), Answer(body=b"y" * (MAX_ANSWER_BYTES + 1)))
    posting = bench(f"http://127.0.0.1:{hook.port}/")
    for pair in ("12", "34", "56"):
        posting.write(*pair)
    assert [numbers(hook.request()) for _ in range(3)] == [["1", "2"], ["3", "4"], ["5", "6"]]
    assert posting.sink.flush(20.0)
    assert posting.sink.counters.written == 6


def test_an_answer_that_trickles_is_cut_off(bench: Make, receiver: Make) -> None:
    must_end = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        try:
            while not must_end.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            pass
        handler.close_connection = True

    hook = receiver(Answer(write=trickle))
    posting = bench(f"http://127.0.0.1:{hook.port}/", timeout_s=0.3)
    posting.write("1", "2")
    assert "no whole answer within 0.3 s" in str(posting.await_problem())
    assert [numbers(hook.request()) for _ in range(2)] == [["1", "2"]] * 2
    must_end.set()


@pytest.mark.parametrize("raw", [b"nonsense\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n" * 200])
def test_an_answer_that_is_none_is_a_failure_that_passes(bench: Make, receiver: Make, raw: bytes) -> None:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)
        handler.close_connection = True

    hook = receiver(Answer(write=write))
    posting = bench(f"http://127.0.0.1:{hook.port}/")
    posting.write("1", "2")
    assert [numbers(hook.request()) for _ in range(2)] == [["1", "2"]] * 2
    assert posting.await_problem()
    assert posting.await_problem() is None


def test_a_receiver_that_is_away_or_hangs_costs_the_newest_only(bench: Make) -> None:
    away = bench(f"http://127.0.0.1:{unused_port()}/", queue_bytes=1000)
    with hanging_receiver() as port:
        hanging = bench(f"http://127.0.0.1:{port}/", queue_bytes=1000, timeout_s=0.2)
        for posting in (away, hanging):
            for _ in range(100):
                posting.write("x" * 100, "y" * 100)
            assert posting.sink.counters.lost["queue"] > 150
            assert posting.await_problem()
            assert not posting.sink.is_broken
