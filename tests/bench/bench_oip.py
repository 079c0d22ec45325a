"""Requests of the Open Inference Protocol a second, against MLServer with the same model and the same client.

Ours is isolated, as an agent runs it: the model in a worker process. MLServer runs it in its own process, with no
parallel workers: once with its other settings as they come, once with ``debug`` off, which is without access log. This
process is the client: an unmodified tritonclient, threads as callers. Rounds alternate, so that a busy machine slows
all. MLServer is installed into build/mlserver at the first run; where that fails, ours is measured alone.
"""

from __future__ import annotations

import json
import queue
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny_models import mlp_model, mlp_rows

_ROOT = Path(__file__).parents[2]
_VENV = _ROOT / "build/mlserver"
_WANTED = ("mlserver==1.7.1", "onnxruntime")
_CASES = ((1, 1), (1, 16), (64, 1), (64, 16))  # rows, callers
_KINDS: Mapping[str, Mapping[str, Any]] = {"MLServer": {}, "MLServer without debug": {"debug": False}}
_ROUNDS = 5
_SECONDS = 1.0
_WINDOW = 16  # requests of a stream in progress


def run() -> dict[str, float]:
    """Return requests per second and p99 of both, and the ratios."""
    figures: dict[str, float] = {}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        ours = running.enter_context(_ours(folder))
        servers = {"vedette": ours}
        if _is_installed():
            for name, settings in _KINDS.items():
                servers[name] = running.enter_context(_mlserver(folder / name.replace(" ", "-"), settings))
        ratios: dict[str, list[float]] = {name: [] for name in list(servers)[1:]}
        for rows, callers in _CASES:
            rates = _rounds(servers, rows, callers, figures)
            for name, found in ratios.items():
                found.append(statistics.median(rates["vedette"]) / statistics.median(rates[name]))
                figures[f"{rows} x {callers} vedette / {name}"] = found[-1]
        for name, found in ratios.items():
            figures[f"median of the four: vedette / {name}"] = statistics.median(found)
        # MLServer streams ModelInferResponse, without Triton's message around it: a tritonclient takes that for errors.
        for rows in (1, 64):
            figures[f"{rows} x {_WINDOW} vedette stream requests/s"] = _stream_rate(ours, rows)
    return figures


def _rounds(servers: dict[str, int], rows: int, callers: int, figures: dict[str, float]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in servers}
    took: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(_ROUNDS):
        for name, port in servers.items():
            latencies = _ask(port, rows, callers, _SECONDS)
            rates[name].append(len(latencies) / _SECONDS)
            took[name] += latencies
    for name in servers:
        figures[f"{rows} x {callers} {name} requests/s"] = statistics.median(rates[name])
        figures[f"{rows} x {callers} {name} p99 ms"] = float(np.percentile(took[name], 99)) * 1e3
    return rates


def _ask(port: int, rows: int, callers: int, seconds: float) -> list[float]:
    """Return the time of each answer that callers, each asking again as soon as it is answered, got in some seconds."""
    import tritonclient.grpc as triton

    took: list[float] = []
    begin = threading.Barrier(callers + 1)

    def call() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            inputs = _inputs(triton, rows)
            client.infer("mlp", inputs)
            begin.wait()
            at = time.perf_counter()
            end = at + seconds
            while at < end:
                client.infer("mlp", inputs)
                now = time.perf_counter()
                took.append(now - at)
                at = now

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    return took


def _inputs(triton: Any, rows: int) -> list[Any]:
    features = mlp_rows(rows)
    tensor = triton.InferInput("features", list(features.shape), "FP32")
    tensor.set_data_from_numpy(features)
    return [tensor]


def _stream_rate(port: int, rows: int) -> float:
    """Return answers a second on one stream with some requests always in progress."""
    import tritonclient.grpc as triton

    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        inputs = _inputs(triton, rows)
        client.start_stream(lambda result, error: answers.put(error))
        for _ in range(_WINDOW):
            client.async_stream_infer("mlp", inputs)
        count, end = 0, time.perf_counter() + 3 * _SECONDS
        while time.perf_counter() < end:
            if (error := answers.get(timeout=30)) is not None:
                raise RuntimeError(f"a stream failed: {error}")
            count += 1
            client.async_stream_infer("mlp", inputs)
        for _ in range(_WINDOW):
            answers.get(timeout=30)
        client.stop_stream()
    return count / (3 * _SECONDS)


@contextmanager
def _ours(folder: Path) -> Iterator[int]:
    home = folder / "agent"
    home.mkdir()
    command = [sys.executable, "-m", "tests.support.oip_server", str(home)]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("no pipes")
        yield int(process.stdout.readline())
        process.stdin.close()


@contextmanager
def _mlserver(home: Path, kind: Mapping[str, Any]) -> Iterator[int]:
    home.mkdir()
    ports = _free_ports(3)
    names = ("grpc_port", "http_port", "metrics_port")
    settings = {"parallel_workers": 0, **kind, "host": "127.0.0.1", **dict(zip(names, ports, strict=True))}
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model.onnx").write_bytes(mlp_model())
    shutil.copy(Path(__file__).with_name("mlserver_runtime.py"), home)
    model = {
        "name": "mlp",
        "implementation": "mlserver_runtime.OnnxModel",
        "parameters": {"uri": str(home / "model.onnx")},
    }
    (home / "model-settings.json").write_text(json.dumps(model))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([_VENV / "bin/mlserver", "start", str(home)], cwd=home, stdout=log, stderr=log)
    try:
        _wait_until_ready(ports[0], process, home / "log")
        yield ports[0]
    finally:
        process.terminate()
        process.wait()


def _is_installed() -> bool:
    """Install MLServer once; say why where it cannot be."""
    if (_VENV / ".ready").exists():
        return True
    subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
    pip = [_VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *_WANTED]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"MLServer cannot be installed, so nothing is compared: {why[0]}", file=sys.stderr)
        return False
    (_VENV / ".ready").touch()
    return True


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    end = time.monotonic() + 60
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        while time.monotonic() < end and process.poll() is None:
            try:
                if client.is_model_ready("mlp"):
                    return
            except InferenceServerException:
                time.sleep(0.2)
    raise RuntimeError(f"MLServer does not serve: {log.read_text()[-2000:]}")
