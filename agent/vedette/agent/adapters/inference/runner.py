"""Keeps one build answering: who waits, what shares a batch, which worker takes it, and what is tried again.

Rules:

* A request goes at once to the worker with the least in flight; only when none is free does it wait, by priority and
  then in order of arrival. What waits is joined: when a worker is free, waiting requests of the same priority share one
  batch of up to ``max_rows``, where rows are all there is to every tensor. So nobody waits to be joined.
* **No request is run more than twice.** A joined batch that fails is taken apart: each of its requests is tried once
  more, alone, so that only the one that is to blame gets the error. (Halving, again and again, would run the innocent
  log2 n times, and a poisonous one would cost as many workers; this costs two, as it would alone.) A request alone
  whose worker died or hung is tried once more, alone. Those behind it in flight never ran and are simply sent again.
* At most ``queue`` requests wait. A new one then takes the place of the youngest of lower priority, or is refused; the
  refused are told when to come again, by the pace of late.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vedette.agent.adapters.inference.ring import Array, Part, Plan
from vedette.agent.adapters.inference.worker import Batch, Worker, WorkerSettings
from vedette.agent.domain.errors import (
    AgentError,
    BlobCorrupt,
    InferenceError,
    InvalidRequest,
    ModelFailed,
    ModelRefused,
    OutOfMemory,
    Overloaded,
    SpawnFailed,
    WorkerCrashed,
    WorkerTimeout,
)
from vedette.agent.domain.priority import Priority

logger = logging.getLogger(__name__)

_RESTART_WAITS_S = (0.0, 0.1, 0.5, 2.0, 5.0)
_RETRY_LEAST_S, _RETRY_MOST_S = 0.01, 30.0
_TRIES = 2


class Retired(Exception):
    """The runner answers no more; another build may."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One reason to think ill of a build. A conclusive one needs no second."""

    error: AgentError
    conclusive: bool = False


@dataclass(slots=True, order=True)
class _Job:
    """A request, or a part of one that is longer than a batch. Ordered by who goes first."""

    priority: Priority
    number: int
    part: Part = field(compare=False)
    rows: int = field(compare=False)
    chosen: bytes = field(compare=False)
    limit_s: float | None = field(compare=False)
    answer: asyncio.Future[dict[str, Array]] = field(compare=False)
    since_ns: int = field(compare=False)
    tries: int = field(compare=False, default=0)


class _Seat:
    """A place for one worker, which is replaced when it is lost."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.dead: Worker | None = None
        self.replacing: asyncio.Task[None] | None = None


class Runner:
    """Starts a build's workers, replaces those that are lost, and says so.

    Args:
        plan: Layout of the model's tensors.
        settings: Of the workers, and how many.
        spawn: Starts a worker for the build. Raises as :meth:`Worker.start`, or BlobCorrupt.
        on_strike: Called, on the loop, for each death, hang, breach of the budget or failed restart.
    """

    def __init__(
        self,
        plan: Plan,
        settings: WorkerSettings,
        spawn: Callable[[], Awaitable[Worker]],
        on_strike: Callable[[Strike], None] = lambda strike: None,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._spawn = spawn
        self.on_strike = on_strike
        self.on_batch: Callable[[int, int, int, int, int], None] = lambda *_: None
        self._seats = [_Seat() for _ in range(settings.workers)]
        self._waiting: list[_Job] = []
        self._number = 0
        self._batch_s = 0.0  # of late, from sent to answered
        self._joins = plan.joinable
        self._retired = False
        self._outstanding = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self.restarts = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' processes, those that there are."""
        return tuple(seat.worker.pid for seat in self._seats if seat.worker is not None)

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return self._outstanding

    @property
    def waiting(self) -> int:
        """Requests, or parts of them, that wait for a worker."""
        return sum(not job.answer.done() for job in self._waiting)

    # Workers

    async def start(self) -> None:
        """Start the workers that are not there. Raises as ``spawn``."""
        for seat in self._seats:
            if seat.worker is None:
                self._adopt(seat, await self._spawn())

    def _adopt(self, seat: _Seat, worker: Worker) -> None:
        worker.serve(self)
        seat.worker = worker
        if worker.alive:
            self._pump()
        else:
            self.lost(worker, WorkerCrashed("the worker died"), ())  # between its start and now

    def lost(self, worker: Worker, error: InferenceError, flying: Sequence[Batch]) -> None:
        """Have the worker replaced; what it had is tried again, what was to blame once."""
        for index, batch in enumerate(flying):
            self._again(batch.owner, error if index == 0 else None)
        seat = next(seat for seat in self._seats if seat.worker is worker)
        seat.worker, seat.dead = None, worker
        seat.replacing = asyncio.get_running_loop().create_task(self._replace(seat, worker, error))
        self._pump()

    async def _replace(self, seat: _Seat, dead: Worker, error: InferenceError) -> None:
        # The dead must be gone before the next is born: both together would not fit the budget.
        how = await dead.stop()
        self.on_strike(Strike(type(error)(f"{error}: {how}")))
        attempt = 0
        while not self._retired:
            await asyncio.sleep(_RESTART_WAITS_S[min(attempt, len(_RESTART_WAITS_S) - 1)])
            attempt += 1
            try:
                worker = await self._spawn()
            except SpawnFailed as exc:
                logger.warning("%s; trying again", exc)  # the host's fault, no strike
            except AgentError as exc:
                self.on_strike(Strike(exc, conclusive=isinstance(exc, BlobCorrupt | ModelRefused)))
            else:
                self.restarts += 1
                self._adopt(seat, worker)
                return

    # Requests

    async def infer(
        self,
        arrays: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        priority: Priority = Priority.FLOW,
        limit_s: float | None = None,
    ) -> dict[str, Array]:
        """Answer a request, cut into batches where it is longer than one and joined again.

        Args:
            arrays: By input name.
            outputs: Those asked for; none is all.
            priority: Who goes first where some must wait.
            limit_s: The deadline of each batch, instead of that by the model's pace.

        Raises:
            Retired: This runner answers no more and no part of the request is to blame.
            InvalidRequest: The inputs do not fit.
            Overloaded: ``queue`` requests wait already, or this one gave its place to one of higher priority.
            ModelFailed, OutOfMemory, WorkerTimeout: The model's answer to these inputs.
            WorkerCrashed: The worker died of it, twice.
        """
        rows = self._plan.rows(arrays)
        chosen = self._plan.chosen(outputs) if outputs else b""
        if rows == 0 and self._plan.divisible:
            return self._plan.empty_outputs(chosen)
        self._check_open(priority)
        self._outstanding += 1
        self._drained.clear()
        try:
            if rows <= self._plan.max_rows:
                return await self._answer(self._job((arrays, 0, rows), chosen, priority, limit_s))
            return await self._cut(arrays, rows, chosen, priority, limit_s)
        finally:
            self._outstanding -= 1
            if not self._outstanding:
                self._drained.set()

    def _job(self, part: Part, chosen: bytes, priority: Priority, limit_s: float | None) -> _Job:
        self._number += 1
        answer: asyncio.Future[dict[str, Array]] = asyncio.get_running_loop().create_future()
        rows = part[2] - part[1]
        return _Job(priority, self._number, part, rows, chosen, limit_s, answer, time.monotonic_ns())

    def _check_open(self, priority: Priority) -> None:
        """Make sure that one more may wait, at the expense of one of lower priority if need be."""
        if self._retired:
            raise Retired
        if len(self._waiting) < self._settings.queue:
            return
        self._waiting = [job for job in self._waiting if not job.answer.done()]  # some callers went away
        heapq.heapify(self._waiting)
        if len(self._waiting) < self._settings.queue:
            return
        youngest = max(self._waiting)
        refused = Overloaded(
            f"{len(self._waiting)} requests wait, limit {self._settings.queue} (inference.queue)", self._retry_after_s()
        )
        if youngest.priority <= priority:
            raise refused
        youngest.answer.set_exception(refused)

    def _retry_after_s(self) -> float:
        """Return when what waits now will have been answered, by the pace of late and as if nothing were joined."""
        wait_s = self._batch_s * len(self._waiting) / len(self._seats)
        return min(max(wait_s, _RETRY_LEAST_S), _RETRY_MOST_S)

    async def _answer(self, job: _Job) -> dict[str, Array]:
        worker = self._freest()
        if worker is None:
            heapq.heappush(self._waiting, job)
            return await self._waited(job)
        self._dispatch(worker, [job])
        if worker.pays_to_spin(job.rows):
            # First everything else that is ready: other batches leave before we look for this one's answer, and
            # who asks again and again keeps the loop from nothing.
            await asyncio.sleep(0)
            worker.spin(job.answer)
        return await self._waited(job)

    async def _waited(self, job: _Job) -> dict[str, Array]:
        try:
            return await job.answer
        finally:
            job.answer.cancel()  # when the caller went away; what is in flight keeps its area until it is answered

    async def _cut(
        self, arrays: Mapping[str, Array], rows: int, chosen: bytes, priority: Priority, limit_s: float | None
    ) -> dict[str, Array]:
        step = self._plan.max_rows
        if not self._plan.divisible:
            raise InvalidRequest(f"{rows} rows, limit {step} (max_rows) for a model that cannot be cut into batches")
        jobs = [self._job((arrays, at, min(at + step, rows)), chosen, priority, limit_s) for at in range(0, rows, step)]
        # All, so that no part still runs when the request has failed.
        parts = await asyncio.gather(*map(self._answer, jobs), return_exceptions=True)
        answers = [_unless_error(part) for part in parts]
        joined = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        lengths = {name: len(array) for name, array in joined.items() if len(array) != rows}
        if lengths:
            raise ModelFailed(f"outputs {lengths} have not the {rows} rows of the inputs, so batches cannot be joined")
        return joined

    # Batches

    def _freest(self) -> Worker | None:
        """Return the worker with the least in flight that takes one more."""
        free = [seat.worker for seat in self._seats if seat.worker is not None and seat.worker.is_free]
        return min(free, key=_outstanding) if free else None

    def _pump(self) -> None:
        """Send what waits for as long as a worker is free."""
        while self._waiting and (worker := self._freest()) is not None:
            jobs = self._next_jobs()
            if jobs:
                self._dispatch(worker, jobs)

    def _next_jobs(self) -> list[_Job]:
        """Take the first that waits, and those behind it that may share its batch."""
        jobs: list[_Job] = []
        rows = 0
        while self._waiting:
            job = self._waiting[0]
            if job.answer.done():  # its caller went away
                heapq.heappop(self._waiting)
                continue
            if jobs and not (_alike(jobs[0], job) and rows + job.rows <= self._plan.max_rows):
                break
            jobs.append(heapq.heappop(self._waiting))
            rows += job.rows
            if not self._joins or job.tries or job.limit_s is not None:
                break
        return jobs

    def _dispatch(self, worker: Worker, jobs: list[_Job]) -> None:
        head = jobs[0]
        batch = Batch([job.part for job in jobs], sum(job.rows for job in jobs), head.chosen, head.limit_s, jobs)
        try:
            worker.send(batch)
        except InvalidRequest as exc:  # of strings, which are never joined
            _fail(head, exc)

    def answered(self, worker: Worker, batch: Batch, result: dict[str, Array] | InferenceError) -> None:
        """Hand each asker its rows, or try a joined batch's requests alone."""
        jobs: list[_Job] = batch.owner
        queue_ns = max(int(batch.since * 1e9) - batch.input_ns - min(job.since_ns for job in jobs), 0)
        self.on_batch(batch.rows, queue_ns, batch.input_ns, batch.compute_ns, batch.output_ns)
        self._batch_s += 0.1 * ((batch.compute_ns + batch.input_ns + batch.output_ns) / 1e9 - self._batch_s)
        if isinstance(result, InferenceError):
            self._failed(jobs, result)
        elif len(jobs) == 1:
            if not jobs[0].answer.done():
                jobs[0].answer.set_result(result)
        elif any(array.shape[:1] != (batch.rows,) for array in result.values()):
            self._joins = False  # its rows are not the inputs' rows: what is whose cannot be told
            for job in jobs:
                job.tries += 1
            self._again(jobs, None)
        else:
            _share(jobs, result)
        if self._waiting:
            self._pump()

    def _failed(self, jobs: list[_Job], error: InferenceError) -> None:
        if len(jobs) > 1:
            self._again(jobs, error)
            return
        # Once more would be no better: the worker lives, and this is its answer.
        _fail(jobs[0], error)
        if isinstance(error, OutOfMemory | WorkerTimeout):
            self.on_strike(Strike(error))

    def _again(self, jobs: list[_Job], error: InferenceError | None) -> None:
        """Let requests wait again, each alone where one of them is to blame; who was tried twice gets the error."""
        for job in jobs:
            job.tries += error is not None
            if job.answer.done():
                continue
            if error is not None and job.tries >= _TRIES:
                _fail(job, error)
            else:
                heapq.heappush(self._waiting, job)

    # The end

    async def retire(self, drain_s: float) -> None:
        """Answer what was asked for, for at most ``drain_s``, then end the workers. Ask nothing new of it meanwhile."""
        try:
            async with asyncio.timeout(drain_s):
                await self._drained.wait()
        except TimeoutError:
            logger.warning("%d requests were not answered in %g s of draining", self._outstanding, drain_s)
        await self.abandon()

    async def abandon(self) -> None:
        """End the workers now; requests that are not to blame raise :class:`Retired`."""
        self._retired = True
        workers = [seat.worker for seat in self._seats if seat.worker is not None]
        unanswered, self._waiting = self._waiting, []
        for worker in workers:
            unanswered += [job for batch in worker.halt() for job in batch.owner]
        for job in unanswered:
            _fail(job, Retired())
        tasks = [seat.replacing for seat in self._seats if seat.replacing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in (*workers, *(seat.dead for seat in self._seats if seat.dead is not None)):
            await worker.stop()
        self._seats = [_Seat() for _ in self._seats]


def _outstanding(worker: Worker) -> int:
    return worker.outstanding


def _alike(first: _Job, job: _Job) -> bool:
    """Whether two that wait may share a batch: neither was tried already, and both want the same of the model."""
    fresh = not first.tries and not job.tries and first.limit_s is None and job.limit_s is None
    return fresh and first.priority is job.priority and first.chosen == job.chosen


def _share(jobs: Sequence[_Job], outputs: Mapping[str, Array]) -> None:
    """Give each its rows of a joined batch's outputs, a view of a copy that is theirs."""
    at = 0
    for job in jobs:
        if not job.answer.done():
            job.answer.set_result({name: array[at : at + job.rows] for name, array in outputs.items()})
        at += job.rows


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def _unless_error(part: dict[str, Array] | BaseException) -> dict[str, Array]:
    if isinstance(part, BaseException):
        raise part
    return part
