"""A gRPC server that drives grpc's core from one thread and answers on the agent's loop.

The core (HTTP/2, TLS, limits, deadlines, compression) is that of grpc.aio and of grpc's threaded server. What lies
between it and a handler is ours, because there a call's price is: an empty handler cost 240 to 350 us of processor time
under grpc.aio, 65 to 280 us here (docs/benchmarks.md). grpc.aio carries each step of a call over a socket to the loop
and into a task of its own; here the thread that waits for the core takes these steps itself and bothers the loop once a
call, with the request's bytes, and many calls at once where many came.

Rules: the thread only starts receiving and counts calls; handlers, and all that is sent but refusals, belong to the
loop. No batch is started on a queue that is shut: the core would abort the process. ``cygrpc`` is what grpc's own
servers are written on and is not promised to stay as it is: tests/integration/oip tries all that is used of it.

Source: grpc/include/grpc/grpc.h, impl/grpc_types.h (batches, completion queues, shutdown) and grpc's ``_server.py``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import grpc

_core: Any = import_module("grpc._cython.cygrpc")
logger = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]
_WAITING_FOR_CALLS = 4
_READ_AHEAD = 4  # messages of a stream that nobody asked for yet
_NO_DEADLINE_S = 1e12  # of seconds since 1970; the core's "never" is beyond it
_OK = (grpc.StatusCode.OK, "")


class Aborted(Exception):
    """The call has its status, or nobody waits for it any more: its handler has nothing left to do."""


@dataclass(frozen=True, slots=True)
class Method:
    """A handler: ``work(request, call)``, where the request is bytes, or the call itself to iterate over for many.

    One that gives many writes them to the call and returns nothing.
    """

    work: Callable[[Any, Call], Awaitable[Any]]
    takes_many: bool = False
    gives_many: bool = False


class Call:
    """One call as its handler sees it."""

    def __init__(self, engine: Engine, event: Any, method: Method | None) -> None:
        self._engine = engine
        self._call = event.call
        self._details = event.call_details
        self._metadata = event.invocation_metadata
        self._method = method
        self._opened = False  # the initial metadata were sent
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        self._ahead: deque[bytes | None] = deque()  # None is the end
        self._reader: asyncio.Future[None] | None = None
        self._reading = False
        self._writer: asyncio.Future[None] | None = None
        self._writing = self._broken = False  # the core's thread says when they change back, or for good

    # On the core's thread

    def refuse(self, code: grpc.StatusCode, text: str) -> None:
        """Give the call its status before anything of it was read."""
        ops = (_core.SendInitialMetadataOperation((), 0), _core.ReceiveCloseOnServerOperation(0), _status(code, text))
        self._engine.begin(self._call, ops, _done)

    def receive(self) -> None:
        """Begin to receive what the call brings."""
        self._engine.begin(self._call, (_core.ReceiveCloseOnServerOperation(0),), self._closed)
        if self._method is not None and self._method.takes_many:
            self._engine.post(self._run, self)
        else:
            self._engine.begin(self._call, (_core.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> None:
        self._engine.post(self._run, event.batch_operations[0].message())

    def _read(self, event: Any) -> None:
        self._engine.post(self._got, event.batch_operations[0].message())

    def _written(self, event: Any) -> None:
        self._broken |= not event.success
        self._writing = False
        writer = self._writer  # who begins to wait says so first, and only then looks whether we are still writing
        if writer is not None:
            self._engine.post(_wake, writer)

    def _closed(self, event: Any) -> None:
        self._engine.calls -= 1
        if event.batch_operations[0].cancelled():
            self._engine.post(self._forsake, None)

    # On the loop

    def _forsake(self, _: None) -> None:
        """Stop: the client went away, or its deadline passed."""
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def _run(self, request: bytes | Call | None) -> None:
        if self._gone:
            return
        if request is None:
            with suppress(Aborted):
                self._end(grpc.StatusCode.UNIMPLEMENTED, "the call takes exactly one message, none came")
            return
        self._task = self._engine.spawn(self._answer(request))

    async def _answer(self, request: bytes | Call) -> None:
        method = self._method
        if method is None:
            raise RuntimeError("a call without method was not refused")
        try:
            answer = await method.work(request, self)
            await self._flush()
            self._end(*_OK, answer=None if method.gives_many else answer)
        except Aborted:
            return
        except Exception:
            logger.exception("a call failed for a fault of the agent's own; please report it")
            with suppress(Aborted):
                self._end(grpc.StatusCode.INTERNAL, "the agent could not answer for a fault of its own")

    def _end(self, code: grpc.StatusCode, text: str, trailers: Metadata = (), answer: bytes | None = None) -> None:
        ops = [] if self._opened else [_core.SendInitialMetadataOperation((), 0)]
        if answer is not None:
            ops.append(_core.SendMessageOperation(answer, 0))
        ops.append(_status(code, text, trailers))
        self._opened = True
        self._engine.begin(self._call, ops, _done)

    async def abort(self, code: grpc.StatusCode, text: str, trailers: Metadata = ()) -> None:
        """End the call with a status; raises :class:`Aborted`."""
        await self._flush()
        self._end(code, text, trailers)
        raise Aborted

    async def write(self, answer: bytes) -> None:
        """Send one of many. Waits until the core has taken the one before, which is when the client's window lets it.

        Raises:
            Aborted: The call is over.
        """
        await self._flush()
        if self._broken:
            raise Aborted
        ops = [] if self._opened else [_core.SendInitialMetadataOperation((), 0)]
        self._opened = self._writing = True
        self._engine.begin(self._call, (*ops, _core.SendMessageOperation(answer, 0)), self._written)

    async def _flush(self) -> None:
        while self._writing:
            self._writer = asyncio.get_running_loop().create_future()
            if self._writing:
                await self._writer
            self._writer = None

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> bytes:
        self._read_on()
        while not self._ahead:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._ahead[0]
        if message is None:
            raise StopAsyncIteration
        self._ahead.popleft()
        return message

    def _got(self, message: bytes | None) -> None:
        self._reading = False
        self._ahead.append(message)
        if message is not None and not self._gone:
            self._read_on()
        if self._reader is not None:
            _wake(self._reader)

    def _read_on(self) -> None:
        """Have the next message of a stream received, where there may be one and there is room for it."""
        is_over = bool(self._ahead) and self._ahead[-1] is None
        if self._reading or is_over or len(self._ahead) >= _READ_AHEAD:
            return
        with suppress(Aborted):
            self._engine.begin(self._call, (_core.ReceiveMessageOperation(0),), self._read)
            self._reading = True

    def time_remaining(self) -> float | None:
        """Return the seconds left of the client's deadline, None where it set none."""
        deadline = float(self._details.deadline)
        return None if deadline > _NO_DEADLINE_S else max(deadline - time.time(), 0.0)

    def invocation_metadata(self) -> Metadata:
        """Return what the client sent before its messages."""
        return tuple(self._metadata or ())


def _status(code: grpc.StatusCode, text: str, trailers: Metadata = ()) -> Any:
    return _core.SendStatusFromServerOperation(trailers, code.value[0], text.encode(), 0)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _done(_: Any) -> None:
    """Take notice that something was sent, or could not be: the end of a call is told by its close."""


class Engine:
    """A server: one completion queue, one thread that waits for it.

    Args:
        methods: By path, ``/package.Service/Name``.
        options: The core's channel arguments.
        most_calls: At once; more are refused.
        check: Of a call's metadata: the status and text to refuse it with, or None. Called on the core's thread.
        on_refused: Called on the loop for each call that the check refused.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        options: Sequence[tuple[str, int]],
        most_calls: int,
        check: Callable[[Metadata], tuple[grpc.StatusCode, str] | None] = lambda _: None,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._most_calls = most_calls
        self._check = check
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._server = _core.Server(tuple(options), False)
        self._queue = _core.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._wait, name="oip", daemon=True)
        self._lock = threading.Lock()  # between starting a batch and shutting the queue
        self._shut = False
        self._posted: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls = 0  # in progress; the core's thread counts

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Bind an address and return its port.

        Raises:
            RuntimeError: It cannot be bound; the core logs why.
        """
        given: Any = credentials
        secrets = () if given is None else (given._credentials,)
        port = int(self._server.add_http2_port(address.encode(), *secrets))
        if port == 0:
            raise RuntimeError(f"{address} cannot be bound")
        return port

    def start(self) -> None:
        """Take calls."""
        self._server.start()
        for _ in range(_WAITING_FOR_CALLS):
            self._server.request_call(self._queue, self._queue, self._accept)
        self._thread.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more, let calls end for that long, cancel the rest."""
        if not self._thread.is_alive():  # never started: nobody would hear of the end
            self._server.start()
            self._thread.start()
        ended = asyncio.Event()
        self._server.shutdown(self._queue, lambda _: self.post(lambda _: ended.set(), None))
        try:
            async with asyncio.timeout(grace_s):
                await ended.wait()
        except TimeoutError:
            self._server.cancel_all_calls()
            await ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with self._lock:
            self._shut = True
        self._server.destroy()
        self._queue.shutdown()
        self._thread.join()

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Run a handler."""
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def begin(self, call: Any, ops: Sequence[Any], tag: Callable[[Any], None]) -> None:
        """Have the core do something for a call; the tag is called, on its thread, when it is done.

        Raises:
            Aborted: The server has stopped.
        """
        with self._lock:
            if self._shut:
                raise Aborted
            call.start_server_batch(ops, tag)

    def post(self, work: Callable[[Any], None], given: Any) -> None:
        """Have something done on the loop, in order; wakes it once for all that comes before it looks."""
        self._posted.append((work, given))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop was closed under a server that was not stopped
                self._loop.call_soon_threadsafe(self._do_posted)

    def _do_posted(self) -> None:
        self._woken = False  # first: what is posted from here on wakes the loop again, or is done below
        while self._posted:
            work, given = self._posted.popleft()
            work(given)

    def _wait(self) -> None:
        while True:
            event = self._queue.poll()
            if event.completion_type == _core.CompletionType.queue_shutdown:
                return
            try:
                event.tag(event)
            except Aborted:
                continue
            except Exception:  # whatever is wrong with one call, others are served
                logger.exception("a call failed for a fault of the agent's own; please report it")

    def _checked(self, metadata: Metadata) -> tuple[grpc.StatusCode, str] | None:
        try:
            return self._check(metadata)
        except Exception:
            logger.exception("a call could not be checked for a fault of the agent's own; please report it")
            return grpc.StatusCode.INTERNAL, "the agent could not answer for a fault of its own"

    def _accept(self, event: Any) -> None:
        if not event.success:  # the server stops
            return
        self._server.request_call(self._queue, self._queue, self._accept)
        method = self._methods.get(event.call_details.method)
        call = Call(self, event, method)
        refusal = self._checked(event.invocation_metadata or ())
        if refusal is not None:
            self.post(lambda _: self._on_refused(), None)
        elif method is None:
            refusal = grpc.StatusCode.UNIMPLEMENTED, "Method not found!"
        elif self.calls >= self._most_calls:
            refusal = grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most_calls} calls are in progress, the limit"
        if refusal is not None:
            call.refuse(*refusal)
            return
        self.calls += 1
        call.receive()
