import asyncio
from collections.abc import AsyncIterator

import pytest

from vedette.controller.adapters.http import Answer, HttpServer, Metric, exposition
from vedette.controller.domain.errors import StoreFailed


async def hello() -> Answer:
    return Answer("200 OK", "hellö\n")


async def broken() -> Answer:
    raise KeyError("secret")


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer({"/hello": hello, "/broken": broken})
    await made.start("127.0.0.1:0")
    yield made
    await made.stop()


async def ask(server: HttpServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_pages_are_served(server: HttpServer):
    answer = await ask(server, b"GET /hello?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 7\r\n" in head
    assert body == "hellö\n".encode()
    assert (await ask(server, b"HEAD /hello HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "says"),
    [
        (b"GET /absent HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /hello HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"\xff\xfe\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
        (b"GET /hello HTTP/1.1\r\n", b""),
        (b"GET /" + b"x" * 20_000, b""),
        (b"", b""),
    ],
)
async def test_bad_requests_harm_nobody(server: HttpServer, request_bytes: bytes, says: bytes):
    answer = await ask(server, request_bytes)
    assert says in answer if says else answer == b""
    assert b"secret" not in answer
    assert b"200 OK" in await ask(server, b"GET /hello HTTP/1.1\r\n\r\n")


async def test_an_address_in_use_is_a_typed_error(server: HttpServer):
    with pytest.raises(StoreFailed, match="cannot serve HTTP"):
        await HttpServer({}).start(f"127.0.0.1:{server.port}")


def test_metrics_are_written_as_prometheus_reads_them():
    metrics = [
        Metric("a_total", "counter", "Of a.", 3, {"code": 'x"y\\z\n'}),
        Metric("a_total", "counter", "Of a.", 4, {"code": "ok", "b": "1"}),
        Metric("b", "gauge", "Of b.", 0.5),
    ]
    assert exposition(metrics).splitlines() == [
        "# HELP a_total Of a.",
        "# TYPE a_total counter",
        'a_total{b="1",code="ok"} 4',
        'a_total{code="x\\"y\\\\z\\n"} 3',
        "# HELP b Of b.",
        "# TYPE b gauge",
        "b 0.5",
    ]
