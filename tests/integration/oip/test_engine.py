"""What lies between grpc's core and the handlers: calls that end in every way, against a real client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.support.waiting import until
from vedette.agent.adapters.oip.engine import Call, Engine, Method

Code = grpc.StatusCode


@asynccontextmanager
async def running(*methods: Method, most_calls: int = 100, **given: Any) -> AsyncIterator[tuple[Engine, Any]]:
    """Serve methods as /s/0, /s/1 … and connect to them."""
    engine = Engine({f"/s/{number}": method for number, method in enumerate(methods)}, (), most_calls, **given)
    port = engine.listen("127.0.0.1:0")
    engine.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield engine, channel
    await engine.stop(0.0)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    """Return the status of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def blocked(entered: list[Call], left: list[bool], go: asyncio.Event) -> Method:
    """Return a handler that waits for the event and tells whether it was cancelled meanwhile."""

    async def work(body: bytes, call: Call) -> bytes:
        entered.append(call)
        try:
            await go.wait()
        except asyncio.CancelledError:
            left.append(True)
            raise
        left.append(False)
        return body

    return Method(work)


async def echo(body: bytes, _: Call) -> bytes:
    return body


async def test_a_handler_that_fails_costs_its_call_and_tells_nothing_of_why(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: bytes, __: Call) -> bytes:
        raise ValueError("a secret")

    async with running(Method(broken), Method(echo)) as (_, channel):
        code, text = await refusal(channel.unary_unary("/s/0")(b""))
        assert code is Code.INTERNAL
        assert "secret" not in str(text)
        assert await channel.unary_unary("/s/1")(b"x") == b"x"
    assert "a secret" in caplog.text


async def test_a_path_that_is_none_is_unimplemented() -> None:
    async with running(Method(echo)) as (_, channel):
        assert (await refusal(channel.unary_unary("/s/none")(b"")))[0] is Code.UNIMPLEMENTED


async def test_a_call_that_takes_one_message_and_gets_none_is_told_so() -> None:
    async with running(Method(echo)) as (_, channel):
        call = channel.stream_stream("/s/0")()
        await call.done_writing()
        assert await call.code() is Code.UNIMPLEMENTED
        assert "exactly one message" in await call.details()


async def test_a_call_too_many_is_refused_and_those_before_it_are_answered() -> None:
    entered, left, go = [], [], asyncio.Event()  # type: ignore[var-annotated]
    async with running(blocked(entered, left, go), most_calls=2) as (engine, channel):
        held = [asyncio.ensure_future(channel.unary_unary("/s/0")(b"%d" % n)) for n in range(2)]
        await until(lambda: len(entered) == 2)
        code, text = await refusal(channel.unary_unary("/s/0")(b""))
        assert (code, text) == (Code.RESOURCE_EXHAUSTED, "2 calls are in progress, the limit")
        go.set()
        assert await asyncio.gather(*held) == [b"0", b"1"]
        await until(lambda: engine.calls == 0)
        assert await channel.unary_unary("/s/0")(b"again") == b"again"


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_handler_nobody_waits_for_is_cancelled(how: str) -> None:
    entered, left, go = [], [], asyncio.Event()  # type: ignore[var-annotated]
    async with running(blocked(entered, left, go)) as (engine, channel):
        call = channel.unary_unary("/s/0")(b"", timeout=0.5 if how == "late" else None)
        await until(lambda: bool(entered))
        if how == "cancelled":
            call.cancel()
        await until(lambda: left == [True])
        await until(lambda: engine.calls == 0)


async def test_the_clients_deadline_is_what_remains_and_none_is_none() -> None:
    async def remaining(_: bytes, call: Call) -> bytes:
        return str(call.time_remaining()).encode()

    async with running(Method(remaining)) as (_, channel):
        assert await channel.unary_unary("/s/0")(b"") == b"None"
        assert 50 < float(await channel.unary_unary("/s/0")(b"", timeout=60)) <= 61


async def test_a_check_sees_the_metadata_and_refuses_before_a_handler_hears_of_it() -> None:
    heard = []

    async def work(body: bytes, _: Call) -> bytes:
        heard.append(body)
        return body

    def check(metadata: Any) -> tuple[grpc.StatusCode, str] | None:
        return None if ("key", "good") in [tuple(pair) for pair in metadata] else (Code.UNAUTHENTICATED, "no")

    async with running(Method(work), check=check) as (_, channel):
        assert await refusal(channel.unary_unary("/s/0")(b"bad", metadata=[("key", "b")])) == (
            Code.UNAUTHENTICATED,
            "no",
        )
        assert await channel.unary_unary("/s/0")(b"good", metadata=[("key", "good")]) == b"good"
    assert heard == [b"good"]


async def test_a_check_that_fails_costs_its_call(caplog: pytest.LogCaptureFixture) -> None:
    def check(metadata: Any) -> None:
        if "bad" in dict(metadata):
            raise ValueError("a fault")

    async with running(Method(echo), check=check) as (_, channel):
        assert (await refusal(channel.unary_unary("/s/0")(b"", metadata=[("bad", "1")])))[0] is Code.INTERNAL
        assert await channel.unary_unary("/s/0")(b"next") == b"next"
    assert "a fault" in caplog.text


async def _upper(requests: Call, call: Call) -> None:
    async for body in requests:
        await call.write(body.upper())


async def test_a_stream_goes_both_ways_until_the_client_has_no_more() -> None:
    async with running(Method(_upper, takes_many=True, gives_many=True)) as (_, channel):
        call = channel.stream_stream("/s/0")()
        for body in (b"a", b"b"):
            await call.write(body)
            assert await call.read() == body.upper()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is Code.OK


async def test_what_is_written_and_not_read_yet_arrives_before_the_end() -> None:
    async def many(_: bytes, call: Call) -> None:
        for number in range(300):
            await call.write(b"%d" % number * 1000)
        await call.abort(Code.ABORTED, "so many")

    async with running(Method(many, gives_many=True)) as (_, channel):
        call = channel.unary_stream("/s/0")(b"")
        for number in range(300):
            assert await call.read() == b"%d" % number * 1000
        assert await call.code() is Code.ABORTED


async def test_what_is_sent_ahead_of_its_reader_is_read_in_order() -> None:
    go = asyncio.Event()

    async def late(requests: Call, call: Call) -> None:
        await go.wait()
        await call.write(b" ".join([body async for body in requests]))

    async with running(Method(late, takes_many=True, gives_many=True)) as (_, channel):
        call = channel.stream_stream("/s/0")()
        for number in range(50):
            await call.write(b"%d" % number)
        await call.done_writing()
        go.set()
        assert await call.read() == b" ".join(b"%d" % number for number in range(50))


async def _stopping(grace_s: float, act: Callable[[asyncio.Event], None]) -> tuple[Any, list[bool]]:
    entered, left, go = [], [], asyncio.Event()  # type: ignore[var-annotated]
    engine = Engine({"/s/0": blocked(entered, left, go)}, (), 10)
    port = engine.listen("127.0.0.1:0")
    engine.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = asyncio.ensure_future(channel.unary_unary("/s/0")(b"held"))
        await until(lambda: bool(entered))
        stopped = asyncio.create_task(engine.stop(grace_s))
        await asyncio.sleep(0)
        act(go)
        await stopped
        return (await asyncio.gather(call, return_exceptions=True))[0], left


async def test_a_server_that_stops_lets_calls_end_within_the_grace() -> None:
    answer, left = await _stopping(60.0, lambda go: go.set())
    assert answer == b"held"
    assert left == [False]


async def test_a_server_that_stops_cancels_what_has_not_ended_by_then() -> None:
    answer, left = await _stopping(0.0, lambda go: None)
    assert isinstance(answer, grpc.aio.AioRpcError)
    assert left == [True]


async def test_a_server_that_never_started_stops() -> None:
    engine = Engine({}, (), 10)
    engine.listen("127.0.0.1:0")
    await engine.stop(0.0)


async def test_an_address_that_is_taken_is_said() -> None:
    async with running() as _:
        first = Engine({}, (("grpc.so_reuseport", 0),), 10)
        port = first.listen("127.0.0.1:0")
        second = Engine({}, (("grpc.so_reuseport", 0),), 10)
        with pytest.raises(RuntimeError, match=f"127.0.0.1:{port}"):
            second.listen(f"127.0.0.1:{port}")
        await first.stop(0.0)
        await second.stop(0.0)
