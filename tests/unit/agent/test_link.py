"""Claims about the link, against a real gRPC server with real TLS; waits are on a fake clock."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.clock import NOON, FakeClock
from tests.support.fake_controller import AGENT_ID, FakeController
from tests.support.pki import Authority
from vedette.agent.adapters.fleet.identity import Identity, certificate_request
from vedette.agent.adapters.fleet.link import STEADY_S, Link, LinkState
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.errors import StateError
from vedette.agent.domain.proxy import STRAIGHT, Ways
from vedette.wire import values
from vedette.wire.values import Facts, GenerationResult, Outcome, Status, Welcome


class Desk:
    """Speaks for an agent that has nothing to do."""

    def __init__(self) -> None:
        self.running = 0
        self.welcomes: list[Welcome] = []
        self.wanted: list[values.DesiredState] = []
        self.heard = asyncio.Event()
        self.trouble: StateError | None = None

    def hello(self) -> values.Hello:
        return values.Hello(facts=Facts(hostname="h"), boot_epoch=1, status=self.status())

    def status(self) -> Status:
        if self.trouble is not None:
            raise self.trouble
        return Status(running_sequence=self.running)

    def welcomed(self, word: Welcome) -> None:
        self.welcomes.append(word)

    def desired(self, word: values.DesiredState) -> None:
        self.wanted.append(word)
        self.heard.set()


def identity_for(controller: FakeController, key: bytes) -> Identity:
    return Identity(
        agent_id=AGENT_ID,
        name="edge-7",
        controller_id="c1",
        ca_digest=controller.authority.digest,
        addresses=(controller.address,),
        release_keys=(controller.release_key.public,),
        assignment_keys=(controller.assignment_key.public,),
        key=key,
        certificate=controller.authority.client(certificate_request(key, "edge-7"), AGENT_ID),
        ca=controller.authority.pem,
    )


class Bench:
    """A link between a desk and a fake controller, on a clock that moves on command."""

    def __init__(self, identity: Identity, welcome_timeout_s: float = 5.0, ways: Ways = STRAIGHT) -> None:
        self.clock = FakeClock()
        self.desk = Desk()
        self.conditions = Conditions(self.clock)
        self.backoff = Backoff(base_s=1.0, cap_s=60.0, uniform=lambda low, high: high)
        self.link = Link(
            identity, self.conditions, self.clock, self.backoff, ways=ways, welcome_timeout_s=welcome_timeout_s
        )

    @property
    def codes(self) -> list[str]:
        return [condition.code for condition in self.conditions.current()]

    @property
    def waits(self) -> list[float]:
        """The waits between two tries; those between two statuses are no whole seconds or the interval."""
        return [wait for wait in self.clock.slept if wait in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)]

    async def until_waits(self, count: int) -> None:
        seen = 0
        while len(self.waits) < count:
            seen += 1
            await self.clock.until_asleep(len(self.clock.slept) + 1)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.link.run(bench.desk))
    try:
        yield bench
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with FakeController() as started:
        yield started


async def test_hello_goes_up_and_welcome_and_desired_state_come_down(
    controller: FakeController, agent_key: bytes
) -> None:
    controller.desired = controller.assign(1)
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        await bench.desk.heard.wait()
        assert bench.desk.wanted == [controller.desired]
        assert bench.desk.welcomes == [Welcome(time=NOON, status_interval_s=60)]
        assert bench.link.status.state is LinkState.CONNECTED
    assert [hello.facts.hostname for hello in controller.hellos] == ["h"]


async def test_a_change_goes_up_without_waiting_for_the_interval(controller: FakeController, agent_key: bytes) -> None:
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        await controller.until(lambda c: c.hellos)
        bench.desk.running = 3
        bench.link.changed()
        await controller.until(lambda c: c.statuses and c.statuses[-1].running_sequence == 3)


async def test_a_status_goes_up_at_the_interval_that_the_welcome_says(
    controller: FakeController, agent_key: bytes
) -> None:
    controller.status_interval_s = 37
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        await bench.clock.until_asleep(1)
        assert bench.clock.slept == [37.0]
        assert controller.statuses == []
        await bench.clock.advance(37.0)
        await controller.until(lambda c: c.statuses)


async def test_a_result_that_was_not_sent_goes_up_in_the_next_session(
    controller: FakeController, agent_key: bytes
) -> None:
    bench = Bench(identity_for(controller, agent_key))
    bench.link.report(GenerationResult(sequence=4, outcome=Outcome.FAILED, code="disk-full"))
    bench.link.report(GenerationResult(sequence=4, outcome=Outcome.APPLIED))
    bench.link.report(GenerationResult(sequence=5, outcome=Outcome.REFUSED, code="expired"))
    async with running(bench):
        await controller.until(lambda c: len(c.results) == 2)
    assert [(r.sequence, r.outcome) for r in controller.results] == [(4, Outcome.APPLIED), (5, Outcome.REFUSED)]


async def test_a_lost_session_is_followed_by_another(controller: FakeController, agent_key: bytes) -> None:
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        await controller.until(lambda c: c.hellos)
        await bench.clock.until_asleep(1)
        controller.drop_streams()
        await bench.until_waits(1)
        assert bench.codes == ["controller-unreachable"]
        assert bench.link.status.state is LinkState.WAITING
        await bench.clock.advance(1.0)
        await controller.until(lambda c: len(c.hellos) == 2)


async def test_waits_grow_while_nobody_answers_and_the_condition_is_named(
    controller: FakeController, agent_key: bytes
) -> None:
    bench = Bench(identity_for(controller, agent_key))
    await controller.stop()
    async with running(bench):
        for tries in range(1, 5):
            await bench.until_waits(tries)
            assert bench.codes == ["controller-unreachable"]
            await bench.clock.advance(60.0)
    assert bench.waits[:4] == [1.0, 2.0, 4.0, 8.0]


async def test_tries_that_fail_are_no_news_for_the_log(
    controller: FakeController, agent_key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vedette")
    bench = Bench(identity_for(controller, agent_key))
    await controller.stop()
    async with running(bench):
        for tries in range(1, 4):
            await bench.until_waits(tries)
            await bench.clock.advance(60.0)
    assert caplog.text == ""  # the condition is logged, once, by whoever holds the conditions


async def test_a_session_that_never_lasts_does_not_shorten_the_waits(
    controller: FakeController, agent_key: bytes
) -> None:
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        for tries in range(1, 4):
            await controller.until(lambda c, tries=tries: len(c.hellos) == tries)  # type: ignore[misc]
            controller.drop_streams()
            await bench.until_waits(tries)
            await bench.clock.advance(bench.waits[-1])
    assert bench.waits[:3] == [1.0, 2.0, 4.0]


async def test_a_controller_of_another_ca_is_named_as_such(controller: FakeController, agent_key: bytes) -> None:
    wrong = replace(identity_for(controller, agent_key), ca=Authority().pem)
    async with running(Bench(wrong)) as bench:
        await bench.until_waits(1)
        assert bench.codes == ["controller-certificate-wrong"]
    assert controller.hellos == []


async def test_a_controller_that_refuses_is_named_with_its_reason(controller: FakeController, agent_key: bytes) -> None:
    controller.refuse_connect = "agent-revoked"
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        await bench.until_waits(1)
        (condition,) = bench.conditions.current()
    assert condition.code == "controller-refused"
    assert "agent-revoked" in condition.text


async def test_a_session_clears_the_conditions_of_its_failures(controller: FakeController, agent_key: bytes) -> None:
    controller.refuse_connect = "agent-revoked"
    async with running(Bench(identity_for(controller, agent_key))) as bench:
        await bench.until_waits(1)
        controller.refuse_connect = ""
        await bench.clock.advance(1.0)
        await controller.until(lambda c: c.hellos)
        await bench.link.bulk()
        assert bench.codes == []


async def test_an_agent_that_cannot_read_its_own_state_keeps_its_link_alive(
    controller: FakeController, agent_key: bytes
) -> None:
    bench = Bench(identity_for(controller, agent_key))
    bench.desk.trouble = StateError("disk I/O error")
    async with running(bench):
        await bench.until_waits(1)
        assert bench.codes == ["state-unreadable"]
        bench.desk.trouble = None
        await bench.clock.advance(1.0)
        await bench.link.bulk()
        assert bench.codes == []


async def test_the_next_address_is_tried_after_a_failure(controller: FakeController, agent_key: bytes) -> None:
    identity = identity_for(controller, agent_key).reached_at(("127.0.0.1:1", controller.address))
    async with running(Bench(identity)) as bench:
        await bench.until_waits(1)
        await bench.clock.advance(1.0)
        await controller.until(lambda c: c.hellos)


async def test_a_server_that_takes_the_connection_and_says_nothing_is_left(
    controller: FakeController, agent_key: bytes
) -> None:
    with socket.socket() as deaf:  # the kernel takes the connection, nobody reads it
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        identity = identity_for(controller, agent_key).reached_at((f"127.0.0.1:{deaf.getsockname()[1]}",))
        async with running(Bench(identity, welcome_timeout_s=0.2)) as bench:
            await bench.until_waits(1)
            assert bench.codes == ["controller-unreachable"]


async def test_the_first_address_is_used_again_after_a_session_with_the_second(
    controller: FakeController, agent_key: bytes
) -> None:
    async with FakeController(controller.authority) as second:
        identity = identity_for(controller, agent_key).reached_at((controller.address, second.address, "127.0.0.1:1"))
        await controller.stop()
        async with running(Bench(identity)) as bench:
            await bench.until_waits(1)
            await bench.clock.advance(1.0)
            await second.until(lambda c: c.hellos)
            await bench.link.bulk()
            await bench.clock.advance(STEADY_S)
            await controller.start(port=controller.port)
            second.drop_streams()
            await bench.until_waits(2)
            await bench.clock.advance(1.0)
            await controller.until(lambda c: c.hellos)
            assert len(second.hellos) == 1


async def test_a_session_that_never_lasts_gives_the_next_address_its_turn(
    controller: FakeController, agent_key: bytes
) -> None:
    async with FakeController(controller.authority) as second:
        identity = identity_for(controller, agent_key).reached_at((controller.address, second.address))
        async with running(Bench(identity)) as bench:
            await controller.until(lambda c: c.hellos)
            await bench.link.bulk()
            controller.drop_streams()
            await bench.until_waits(1)
            await bench.clock.advance(1.0)
            await second.until(lambda c: c.hellos)


async def test_a_controller_is_reached_by_an_ipv6_address(agent_key: bytes) -> None:
    async with FakeController(host="[::1]") as controller:
        assert controller.address.startswith("[::1]:")
        async with running(Bench(identity_for(controller, agent_key))) as bench:
            await bench.link.bulk()
            assert bench.link.status.address == controller.address


async def test_a_captive_portal_is_named_whether_it_speaks_tls_or_not(
    controller: FakeController, agent_key: bytes, tmp_path: Path
) -> None:
    async def portal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n")
        writer.close()

    key, certificate = Authority().server("login.portal.example")
    (tmp_path / "portal.pem").write_bytes(key + certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "portal.pem")
    for tls in (None, context):
        server = await asyncio.start_server(portal, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        identity = identity_for(controller, agent_key).reached_at((f"127.0.0.1:{port}",))
        async with server, running(Bench(identity)) as bench:
            await bench.until_waits(1)
            (condition,) = bench.conditions.current()
            assert (condition.code, "captive portal" in condition.text) == ("controller-certificate-wrong", True)


async def test_a_name_that_cannot_be_resolved_says_so(controller: FakeController, agent_key: bytes) -> None:
    identity = identity_for(controller, agent_key).reached_at(("ctl.invalid:7443",))
    async with running(Bench(identity)) as bench:
        await bench.until_waits(1)
        (condition,) = bench.conditions.current()
        assert condition.code == "controller-unreachable"
        assert "name ctl.invalid cannot be resolved" in condition.text
        assert "getent ahosts ctl.invalid" in condition.text
