"""The worker: a process that loads one model and answers batches in the ring until its socket closes.

Started as ``python -P -m vedette.agent.adapters.inference.worker_main SOCKET AGENT worker`` with nothing else open, or
forked by one that was started with ``nursery`` in place of ``worker``. It says its version once the runtime's libraries
are loaded. Then it gets the layout as JSON with the ring's and the model's descriptors, limits itself before it parses
a byte of the model, and answers each RUN in order with DONE or FAILED. It trusts the agent and protects the agent from
the model: memory by RLIMIT_AS (onnxruntime turns that into a clean error, FAILURES.md section 6), time by a watchdog
thread, files by an empty working directory and RLIMIT_FSIZE, processes by RLIMIT_NPROC, all that reaches out of the
process by a filter of system calls (:mod:`vedette.agent.adapters.inference.seccomp`). The model comes as bytes of a
sealed memfd, never as a path: by path onnxruntime 1.32 follows a hard link out of the folder; by bytes it looks in the
working directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import locale
import math
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vedette.agent.adapters.inference.ring import (
    AREAS,
    RECORD,
    SETUP_BYTES,
    Area,
    Failure,
    Kind,
    Patience,
    Plan,
    RingError,
    Shape,
    Tensor,
    attach_ring,
)
from vedette.agent.adapters.inference.seccomp import FilterUnavailable, forbid_reaching_out
from vedette.models.release import TensorSpec
from vedette.models.version import __version__

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
_WORKER, _NURSERY = b"vedette-worker", b"vedette-nursery"
_ADOPTED_WITHIN_S = 5.0
_OOM_SCORE = 500  # of 1000, see proc_pid_oom_score_adj(5)
_MOST_BINDINGS = 64
_OUT_OF_MEMORY = ("Cannot allocate memory", "Failed to allocate memory", "bad_alloc", "bad allocation")
_OTHER_SHAPE = "pre-allocated output"  # of onnxruntime's refusal to write another shape than the bound one
_ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "bytes",
    **{f"tensor({name}{bits})": f"{name}{bits}" for name in ("int", "uint") for bits in (8, 16, 32, 64)},
}


class ModelError(Exception):
    """A batch, or the loading, failed; ``failure`` says why."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure


def _die_with(agent: int, name: bytes) -> None:
    """Ask the kernel to kill this process with the agent; also when the agent is gone already. Say what it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    wishes = ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_NAME, name))
    for option, value in wishes:
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() != agent:
        os._exit(1)


def _limit(name: int, most: int) -> None:
    hard = resource.getrlimit(name)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(name, (least, least))


def _die_first() -> None:
    """Let the kernel, where memory runs out for all, end this process before the rest of the appliance."""
    score = Path("/proc/self/oom_score_adj")
    if int(score.read_text()) < _OOM_SCORE:  # lowering it is a privilege
        score.write_text(str(_OOM_SCORE))


def _live_within(setup: Mapping[str, Any]) -> None:
    """Set the limits that hold while the model is loaded."""
    _die_first()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, setup["stderr_bytes"])
    _limit(resource.RLIMIT_AS, setup["memory_bytes"])
    os.nice(setup["nice"])  # on top of the agent's own: to ask for less than that is not allowed
    if setup["cpus"]:
        os.sched_setaffinity(0, setup["cpus"])


class Watchdog(threading.Thread):
    """Stops a run at its deadline through ``RunOptions.terminate``.

    It sleeps without a time-out while nothing runs and is not woken for each run: only for the first, and for one whose
    deadline comes before the instant it sleeps to. Thus a fast model pays one lock a run and no thread switch.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="watchdog")
        self._changed = threading.Condition()
        self._run: tuple[Any, float] | None = None
        self._sleeps_to = math.inf

    def begin(self, options: Any, deadline_s: float) -> None:
        """Watch a run from now on."""
        with self._changed:
            at = time.monotonic() + deadline_s
            self._run = (options, at)
            if at < self._sleeps_to:
                self._changed.notify()

    def end(self) -> bool:
        """Stop watching; return whether the run was stopped."""
        with self._changed:
            watched, self._run = self._run, None
            return watched is not None and bool(watched[0].terminate)

    def run(self) -> None:
        """Wait for deadlines."""
        with self._changed:
            while True:
                self._sleeps_to = math.inf
                if self._run is not None:
                    options, at = self._run
                    if at <= time.monotonic():
                        options.terminate = True  # no more can be done here: the agent kills a worker that goes on
                    else:
                        self._sleeps_to = at
                self._changed.wait(None if self._sleeps_to == math.inf else self._sleeps_to - time.monotonic())


class Model:
    """A session bound to the ring."""

    def __init__(self, plan: Plan, areas: tuple[Area, ...], data: bytes, *, threads: int, arena: bool) -> None:
        import onnxruntime

        self._runtime: Any = onnxruntime
        self._plan = plan
        self.areas = areas
        self._bindings: dict[tuple[int, bytes, bytes], Any] = {}
        self._written: dict[int, bytes] = {}  # of each area, what its output shapes were written for
        tensors = (*plan.inputs, *plan.outputs)
        self._binds = all(t.row_shaped or -1 not in t.shape for t in plan.outputs) and not any(
            t.is_text for t in tensors
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning burnt 93 % of a core at 140 requests/s against 26 % without (FACTS.md, "Inference").
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.enable_cpu_mem_arena = arena
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        _check_tensors("input", plan.inputs, self._session.get_inputs(), exact=True)
        _check_tensors("output", plan.outputs, self._session.get_outputs(), exact=False)
        self._options = self._made_options()

    def _made_options(self) -> Any:
        options = self._runtime.RunOptions()
        options.log_severity_level = 4
        # onnxruntime 1.32 looks this entry up at each bound run; where it is absent that costs a C++ exception, 30 us.
        options.add_run_config_entry("gpu_graph_id", "-1")
        return options

    def run(self, area: int, chosen: bytes, deadline_s: float, watchdog: Watchdog) -> None:
        """Answer the batch in an area, with the outputs asked for.

        Raises:
            ModelError: It failed.
        """
        options = self._options
        watchdog.begin(options, deadline_s)
        stopped = False
        try:
            try:
                self._run(area, chosen, options)
            finally:
                stopped = watchdog.end()
                if stopped:
                    self._options = self._made_options()  # the word to stop stays in them
        except (RingError, MemoryError) as exc:
            kind = Failure.OUTPUT if isinstance(exc, RingError) else Failure.MEMORY
            raise ModelError(kind, str(exc) or "out of memory") from exc
        except Exception as exc:  # onnxruntime raises RuntimeError and its own classes, which share no other base
            raise ModelError(Failure.TIMEOUT if stopped else _failure_of(exc, Failure.MODEL), str(exc)) from exc

    def _run(self, area: int, chosen: bytes, options: Any) -> None:
        if self._binds:
            try:
                self._run_bound(area, chosen, options)
                return
            except Exception as exc:
                if _OTHER_SHAPE not in str(exc):
                    raise
                # The rows of an output are not the rows of the inputs (a detector's boxes): let the runtime allocate.
                self._binds = False
                self._bindings.clear()
        self._run_copied(area, chosen, options)

    def _shapes(self, area: int) -> tuple[Shape, ...]:
        place = self.areas[area]
        return tuple(place.read_shape(index, t) for index, t in enumerate(self._plan.inputs))

    def _run_bound(self, area: int, chosen: bytes, options: Any) -> None:
        raw = self.areas[area].raw_shapes()  # of small batches, taking shapes apart would be a tenth of the time
        key = (area, raw, chosen)
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= _MOST_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[key] = self._bound(area, self._shapes(area), chosen)
        self._session.run_with_iobinding(binding, options)
        if self._written.get(area) != raw:
            rows = _rows(self._plan.inputs, self._shapes(area))
            for index, tensor in enumerate(self._plan.outputs, len(self._plan.inputs)):
                self.areas[area].shapes[index, : len(tensor.shape)] = _with_rows(tensor, rows)
            self._written[area] = raw

    def _bound(self, area: int, shapes: tuple[Shape, ...], chosen: bytes) -> Any:
        binding = self._session.io_binding()
        rows = _rows(self._plan.inputs, shapes)
        place = self.areas[area]
        for tensor, shape in zip(self._plan.inputs, shapes, strict=True):
            at = place.place(tensor, shape).ctypes.data
            binding.bind_input(tensor.name, "cpu", 0, tensor.dtype.type, shape, at)
        for tensor in self._plan.asked(chosen):
            shape = _with_rows(tensor, rows)
            at = place.place(tensor, shape).ctypes.data
            binding.bind_output(tensor.name, "cpu", 0, tensor.dtype.type, shape, at)
        return binding

    def _run_copied(self, area: int, chosen: bytes, options: Any) -> None:
        place = self.areas[area]
        feeds = {t.name: _fed(place, t, shape) for t, shape in zip(self._plan.inputs, self._shapes(area), strict=True)}
        asked = [(index, t) for index, t in enumerate(self._plan.outputs) if not chosen or chosen[index]]
        outputs = self._session.run([tensor.name for _, tensor in asked], feeds, options)
        for (index, tensor), array in zip(asked, outputs, strict=True):
            place.write_output(index, tensor, array)


def _fed(place: Area, tensor: Tensor, shape: Shape) -> Any:
    """Return an input as the runtime takes it; of strings it wants ``str``."""
    if not tensor.is_text:
        return place.place(tensor, shape)
    values = place.read_strings(tensor, shape)
    values.reshape(-1)[:] = [value.decode() for value in values.flat]
    return values


def _rows(inputs: tuple[Tensor, ...], shapes: tuple[Shape, ...]) -> int:
    return next((shape[0] for tensor, shape in zip(inputs, shapes, strict=True) if tensor.batched), 1)


def _with_rows(tensor: Tensor, rows: int) -> Shape:
    return (rows, *tensor.shape[1:]) if tensor.batched else tensor.shape


def _failure_of(exc: Exception, otherwise: Failure) -> Failure:
    return Failure.MEMORY if any(sign in str(exc) for sign in _OUT_OF_MEMORY) else otherwise


def _check_tensors(what: str, declared: tuple[Tensor, ...], found: list[Any], *, exact: bool) -> None:
    """Compare the release's tensors with the model's own.

    Raises:
        ModelError: A name is missing or (where ``exact``) over, or a type or fixed length differs.
    """
    own = {tensor.name: tensor for tensor in found}
    missing = [tensor.name for tensor in declared if tensor.name not in own]
    over = sorted(set(own) - {tensor.name for tensor in declared}) if exact else []
    if missing or over:
        raise ModelError(Failure.REFUSED, f"the release's {what}s {missing} are not the model's {sorted(own)[:10]}")
    for tensor in declared:
        dtype = _ORT_TYPES.get(own[tensor.name].type, own[tensor.name].type)
        if dtype != tensor.kind:
            raise ModelError(Failure.REFUSED, f"{what} {tensor.name!r} is {dtype}, the release says {tensor.kind}")
        shape = own[tensor.name].shape
        if len(shape) != len(tensor.shape) or any(
            isinstance(size, int) and want not in (-1, size) for size, want in zip(shape, tensor.shape, strict=True)
        ):
            raise ModelError(
                Failure.REFUSED, f"{what} {tensor.name!r} has shape {shape}, the release says {list(tensor.shape)}"
            )


def _forbid() -> str:
    """Set the filter; return why there is none, empty when there is."""
    try:
        forbid_reaching_out()
    except FilterUnavailable as exc:
        return str(exc)
    return ""


def _load(setup: Mapping[str, Any], ring: int, model: int) -> tuple[Model, str]:
    """Load the model under the limits; return it and why no filter of system calls holds, empty when one does.

    Raises:
        ModelError: It is refused.
    """
    inputs, outputs = ([TensorSpec(n, d, tuple(s)) for n, d, s in setup[side]] for side in ("inputs", "outputs"))
    layout = {name: setup[name] for name in ("max_rows", "variable_bytes", "row_wise")}
    plan = Plan.of(inputs, outputs, **layout)
    areas = attach_ring(plan, ring)
    try:
        _live_within(setup)
    except (OSError, ValueError) as exc:
        raise ModelError(Failure.HOST, f"the worker's limits cannot be set: {exc}") from exc
    unfiltered = _forbid()
    try:
        with mmap.mmap(model, 0, access=mmap.ACCESS_READ) as data:
            return Model(plan, areas, bytes(data), threads=setup["threads"], arena=setup["arena"]), unfiltered
    except ModelError:
        raise
    except MemoryError as exc:
        raise ModelError(Failure.MEMORY, f"the model does not fit {setup['memory_bytes']} bytes") from exc
    except Exception as exc:  # onnxruntime's classes share no base but Exception
        raise ModelError(_failure_of(exc, Failure.REFUSED), str(exc)) from exc


def _answer(model: Model, record: bytes, watchdog: Watchdog) -> bytes:
    kind, area, is_chosen, request, deadline_us = RECORD.unpack(record)
    if kind != Kind.RUN or area >= AREAS:
        raise RingError(f"record of kind {kind} for area {area}")
    started = time.perf_counter_ns()
    try:
        model.run(area, model.areas[area].read_choice() if is_chosen else b"", deadline_us / 1e6, watchdog)
    except ModelError as exc:
        model.areas[area].write_text(str(exc))
        return RECORD.pack(Kind.FAILED, area, exc.failure, request, 0)
    return RECORD.pack(Kind.DONE, area, 0, request, time.perf_counter_ns() - started)


def serve(doorbell: socket.socket) -> None:
    """Greet, load the model that the first message names and answer batches until the agent closes the socket."""
    import onnxruntime  # noqa: F401 - before limits and greeting: its libraries are not the model's fault

    doorbell.send(__version__.encode())
    message, descriptors, _, _ = socket.recv_fds(doorbell, SETUP_BYTES, 2)
    if not message:
        return
    setup = json.loads(message)
    try:
        model, unfiltered = _load(setup, *descriptors)
    except ModelError as exc:
        doorbell.send(json.dumps({"failure": exc.failure, "text": str(exc)[:4096]}).encode())
        return
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    watchdog = Watchdog()
    watchdog.start()
    # From here no thread or process is started any more. Root is exempt from this limit, the service user is not.
    _limit(resource.RLIMIT_NPROC, 0)
    doorbell.send(json.dumps({"unfiltered": unfiltered}).encode())
    patience = Patience(setup["spin_us"])
    while record := _next_record(doorbell, patience):
        doorbell.send(_answer(model, record, watchdog))


def _next_record(doorbell: socket.socket, patience: Patience) -> bytes:
    """Return the next record, b"" at the end; before sleeping, look for it where that pays."""
    if patience.pays():
        end = time.perf_counter_ns() + patience.us * 1000
        while time.perf_counter_ns() < end:
            try:
                record = doorbell.recv(RECORD.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            patience.tell(came=True)
            return record
        patience.tell(came=False)
    return doorbell.recv(RECORD.size)


def breed(control: socket.socket, agent: int) -> int | None:
    """Fork a child for each word of the agent; return its socket in a child, None when the agent closes ours.

    A child is forked twice, so that the kernel makes it the agent's own: the agent learns how it ends, and it ends with
    the agent. onnxruntime starts no thread when it is imported, which is what makes forking sound.
    """
    import onnxruntime  # noqa: F401 - what a child is to find loaded

    _die_first()
    gc.collect()
    gc.freeze()  # so that a child's collector does not write to, and thereby copy, what it never frees
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("the runtime started threads: no child can be forked")
    control.send(__version__.encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return None
        if (middle := os.fork()) == 0:
            return _born(control, agent, *descriptors)
        os.waitpid(middle, 0)
        for descriptor in descriptors:
            os.close(descriptor)


def _born(control: socket.socket, agent: int, doorbell: int, stderr: int) -> int:
    middle = os.getpid()
    if (pid := os.fork()) != 0:
        control.send(str(pid).encode())
        os._exit(0)
    control.close()
    os.dup2(stderr, sys.stderr.fileno())
    os.close(stderr)
    end = time.monotonic() + _ADOPTED_WITHIN_S
    while os.getppid() == middle and time.monotonic() < end:
        os.sched_yield()
    _die_with(agent, _WORKER)
    return doorbell


def main() -> None:
    """Run the worker; arguments are the socket's descriptor, the agent's process id and what to be."""
    descriptor, agent = (int(argument) for argument in sys.argv[1:3])
    is_nursery = sys.argv[3:] == ["nursery"]
    _die_with(agent, _NURSERY if is_nursery else _WORKER)
    # Ctrl-C at a terminal, and a service manager that stops a unit, reach the whole group; the agent alone stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    with contextlib.suppress(locale.Error):  # then models that change the case of text are refused, and no others
        # Loaded now, and kept by libc: models name it, and no file can be opened once the filter is set.
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
    doorbell = socket.socket(fileno=descriptor)
    try:
        if is_nursery:
            born = breed(doorbell, agent)
            if born is None:
                return
            doorbell = socket.socket(fileno=born)
        with doorbell:
            serve(doorbell)
    except (BrokenPipeError, ConnectionResetError):
        return  # the agent is gone


if __name__ == "__main__":
    main()
