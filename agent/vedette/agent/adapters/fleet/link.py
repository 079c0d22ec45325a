"""The link: one stream to the controller, kept open for as long as the agent lives.

Rules: nothing that serves waits for it. It holds one newest status, never a queue of them, and the results of
assignments until they were written. Bulk (blobs, telemetry) goes over a second connection of the same session, so that
a download on a slow line never delays control. Each failure becomes a condition with a name, and a wait that grows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

import grpc

from vedette.agent.adapters.fleet.channels import (
    BULK_OPTIONS,
    OPTIONS,
    ControllerUnreachable,
    ProxyUnreachable,
    call_error,
    credentials,
    way,
)
from vedette.agent.adapters.fleet.identity import Identity
from vedette.agent.adapters.waiting import either
from vedette.agent.domain.advice import AdvisedError
from vedette.agent.domain.backoff import Backoff
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.errors import AgentError
from vedette.agent.domain.proxy import STRAIGHT, Ways
from vedette.wire import values
from vedette.wire.convert import AgentWord, agent_word_to_wire, controller_word_from_wire
from vedette.wire.errors import WireError
from vedette.wire.v1 import fleet_pb2_grpc

logger = logging.getLogger(__name__)

WELCOME_TIMEOUT_S = 30.0
"""A server that took the connection and says nothing is left after this long."""
STEADY_S = 10.0
"""A session that lasted so long makes the next wait short again; one welcome alone does not."""
_STATUS_GAP_S = 0.25  # between two statuses, so that a burst of events is one message
_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 1.0, 3600.0
_CONDITIONS = (
    "controller-unreachable",
    "proxy-unreachable",
    "proxy-refused",
    "controller-certificate-wrong",
    "controller-refused",
    "message-too-large",
    "protocol-broken",
    "state-unreadable",
)


class ProtocolBroken(AdvisedError):
    """The controller said something that its protocol does not allow."""

    code = "protocol-broken"


class SelfUnknown(AdvisedError):
    """The agent's own state cannot be read, so there is nothing to say to the controller."""

    code = "state-unreadable"


class FleetDesk(Protocol):
    """Who speaks for the agent. All methods return at once and are called from the event loop."""

    def hello(self) -> values.Hello:
        """Return the first word of a session."""
        ...

    def status(self) -> values.Status:
        """Return how the agent stands now."""
        ...

    def welcomed(self, word: values.Welcome) -> None:
        """Take the controller's answer to the hello."""
        ...

    def desired(self, word: values.DesiredState) -> None:
        """Take what the controller wants; it may have come before."""
        ...


class LinkState(StrEnum):
    """Where the link stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """Where the link stands, since when, and with whom."""

    state: LinkState
    address: str
    since: datetime


class Link:
    """The agent's end of the stream. Run it as one task; cancel that to close."""

    def __init__(
        self,
        identity: Identity,
        conditions: Conditions,
        clock: Clock,
        backoff: Backoff,
        *,
        ways: Ways = STRAIGHT,
        welcome_timeout_s: float = WELCOME_TIMEOUT_S,
    ) -> None:
        self._identity = identity
        self._conditions = conditions
        self._clock = clock
        self._backoff = backoff
        self._ways = ways
        self._welcome_timeout_s = welcome_timeout_s
        self._has_news = asyncio.Event()
        self._results: deque[values.GenerationResult] = deque(maxlen=64)
        self._bulk: grpc.aio.Channel | None = None
        self._is_up = asyncio.Event()  # set exactly while there is a bulk connection
        self._up_since: float | None = None
        self._status = LinkStatus(LinkState.WAITING, "", clock.now())
        self.sessions = 0
        self.failures: Counter[str] = Counter()  # by code: why sessions ended or did not begin

    @property
    def status(self) -> LinkStatus:
        """Where the link stands."""
        return self._status

    def changed(self) -> None:
        """Say that the status is news; it goes up soon, or in the next hello."""
        self._has_news.set()

    def report(self, result: values.GenerationResult) -> None:
        """Say what became of an assignment; of each sequence the newest word is kept until it was written."""
        kept = [known for known in self._results if known.sequence != result.sequence]
        self._results = deque([*kept, result], maxlen=64)
        self._has_news.set()

    async def bulk(self) -> grpc.aio.Channel:
        """Return the connection for blobs and telemetry once there is one; it ends with its session."""
        while self._bulk is None:
            await self._is_up.wait()
        return self._bulk

    async def run(self, desk: FleetDesk) -> None:
        """Hold a session for ever: connect, talk, and after a failure wait and go on with the next address.

        After a steady session the list is begun anew: the first address is preferred whenever there is a choice.
        """
        turn = 0
        while True:
            address = self._identity.addresses[turn % len(self._identity.addresses)]
            turn += 1
            self._up_since = None
            try:
                await self._session(address, desk)
            except AdvisedError as exc:
                self._failed(exc)
            except AgentError as exc:  # our own state could not be read: a full or failing disk must not end the agent
                remedy = "look at the disk of state_dir; models keep serving"
                self._failed(SelfUnknown("the agent cannot say how it stands", str(exc), remedy))
            if self._up_since is not None and self._clock.monotonic() - self._up_since >= STEADY_S:
                self._backoff.succeeded()
                turn = 0
            wait_s = self._backoff.failed()
            self._stand(LinkState.WAITING, address)
            logger.debug("next try to reach the controller in %.1f s", wait_s)
            await self._clock.sleep(wait_s)

    async def _session(self, address: str, desk: FleetDesk) -> None:
        """Hold one session until it ends, which is always an error.

        Raises:
            ControllerUnreachable, ControllerCertificateWrong, ControllerRefused, MessageTooLarge, ProtocolBroken: Why
                it ended.
        """
        self._stand(LinkState.CONNECTING, address)
        async with self._channel(address, OPTIONS) as control, self._channel(address, BULK_OPTIONS) as bulk:
            call = fleet_pb2_grpc.FleetStub(control).Connect()  # type: ignore[no-untyped-call,unused-ignore]
            try:
                interval_s = await self._welcome(call, address, desk)
                self._up(address, bulk)
                await either(self._listen(call, desk), self._speak(call, desk, interval_s))
            except grpc.RpcError as exc:
                raise call_error(exc, address, self._ways.proxy_to(address)) from exc
            except asyncio.InvalidStateError as exc:  # a write after the server ended the call
                raise await _ending(call, address) from exc
            except WireError as exc:
                remedy = "update the controller or the agent so that both speak the same protocol"
                raise ProtocolBroken(f"the controller at {address} broke the protocol", str(exc), remedy) from exc
            finally:
                self._bulk = None
                self._is_up.clear()
                call.cancel()

    async def _welcome(self, call: Any, address: str, desk: FleetDesk) -> float:
        try:
            async with asyncio.timeout(self._welcome_timeout_s):
                await _write(call, desk.hello())
                message = await call.read()
        except TimeoutError as exc:
            raise self._unanswered(address) from exc
        if message is grpc.aio.EOF:
            raise await _ending(call, address)
        word = controller_word_from_wire(message)
        if not isinstance(word, values.Welcome):
            raise WireError(f"the first word is a {type(word).__name__}, a Welcome was due")
        desk.welcomed(word)
        return min(max(float(word.status_interval_s), _LEAST_INTERVAL_S), _MOST_INTERVAL_S)

    def _unanswered(self, address: str) -> AdvisedError:
        limit = f"in {self._welcome_timeout_s:g} s"
        if (proxy := self._ways.proxy_to(address)) is not None:  # which of the two is silent is not to be told
            return ProxyUnreachable.at(proxy.address, address, f"neither it nor the controller answered {limit}")
        why = f"it took the connection and did not answer {limit}"
        return ControllerUnreachable(f"no answer from the controller at {address}", why, _TRIED_AGAIN)

    def _up(self, address: str, bulk: grpc.aio.Channel) -> None:
        self.sessions += 1
        self._bulk = bulk
        self._is_up.set()
        self._up_since = self._clock.monotonic()
        self._stand(LinkState.CONNECTED, address)
        self._conditions.clear(*_CONDITIONS)
        logger.info("connected to the controller at %s", address)

    async def _listen(self, call: Any, desk: FleetDesk) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            word = controller_word_from_wire(message)
            if isinstance(word, values.DesiredState):
                desk.desired(word)
        raise await _ending(call, self._status.address)

    async def _speak(self, call: Any, desk: FleetDesk, interval_s: float) -> None:
        while True:
            await either(self._has_news.wait(), self._clock.sleep(interval_s))
            self._has_news.clear()
            while self._results:
                result = self._results[0]
                await _write(call, result)
                with suppress(ValueError):  # a newer word of the same sequence took its place meanwhile
                    self._results.remove(result)
            await _write(call, desk.status())
            await self._clock.sleep(_STATUS_GAP_S)

    @asynccontextmanager
    async def _channel(self, address: str, options: Sequence[tuple[str, str | int]]) -> AsyncIterator[grpc.aio.Channel]:
        known = self._identity
        trusted = credentials(known.ca, known.key, known.certificate)
        target, asked = way(address, self._ways.proxy_to(address))
        async with grpc.aio.secure_channel(target, trusted, options=(*options, *asked)) as channel:
            yield channel

    def _failed(self, exc: AdvisedError) -> None:
        self.failures[exc.code] += 1
        # The condition is logged when it begins and ends. Were each try, a week without a link would fill the log.
        logger.debug("%s: %s", exc.what, exc.why)
        self._conditions.clear(*(code for code in _CONDITIONS if code != exc.code))
        self._conditions.hold(exc.code, values.Severity.WARNING, f"{exc.what}: {exc.why}; {exc.remedy}")

    def _stand(self, state: LinkState, address: str) -> None:
        self._status = LinkStatus(state, address, self._clock.now())


_TRIED_AGAIN = "it is tried again; models keep serving meanwhile"


async def _write(call: Any, word: AgentWord) -> None:
    await call.write(agent_word_to_wire(word))


async def _ending(call: Any, address: str) -> AdvisedError:
    """Return why the controller ended a call; an end without an error is one too, a session has none."""
    status = await call.code()
    if status is grpc.StatusCode.OK:
        return ControllerUnreachable(
            f"the controller at {address} ended the session", "it gave no reason", _TRIED_AGAIN
        )
    error = grpc.aio.AioRpcError(
        status, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
    return call_error(error, address)
