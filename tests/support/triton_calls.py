"""What an unmodified ``tritonclient.grpc`` is asked to do, in a process of its own (see :mod:`tests.support.oip`)."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

_AHEAD = 4
"""Requests on a stream before their answers: enough that the next one waits when an answer leaves."""


def _client(url: str) -> Any:
    import tritonclient.grpc as triton

    return triton, triton.InferenceServerClient(url)


def _inputs(triton: Any, arrays: dict[str, Any]) -> list[Any]:
    from tritonclient.utils import np_to_triton_dtype

    made = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def infer(
    url: str,
    model: str,
    arrays: dict[str, Any],
    outputs: list[str] | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], str, str, str]:
    """Return outputs by name, and the answer's model, version and id."""
    triton, client = _client(url)
    wanted = None if outputs is None else [triton.InferRequestedOutput(name) for name in outputs]
    with client:
        result = client.infer(model, _inputs(triton, arrays), outputs=wanted, **(options or {}))
        response = result.get_response()
        found = {output.name: result.as_numpy(output.name) for output in response.outputs}
    return found, response.model_name, response.model_version, response.id


def questions(url: str, model: str) -> dict[str, Any]:
    """Return what every question answers, as plain values."""
    _, client = _client(url)
    with client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": client.is_model_ready(model),
            "version ready": client.is_model_ready(model, "1"),
            "other version ready": client.is_model_ready(model, "2"),
            "unknown ready": client.is_model_ready("nobody"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(model, as_json=True),
            "config": client.get_model_config(model, as_json=True)["config"],
            "statistics": client.get_inference_statistics(model, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
        }


REFUSED = (
    ("load_model", ("echo",)),
    ("unload_model", ("echo",)),
    ("get_system_shared_memory_status", ()),
    ("register_system_shared_memory", ("r", "/k", 16)),
    ("unregister_system_shared_memory", ()),
    ("get_cuda_shared_memory_status", ()),
    ("register_cuda_shared_memory", ("r", b"", 0, 16)),
    ("unregister_cuda_shared_memory", ()),
    ("get_trace_settings", ()),
    ("update_trace_settings", ()),
    ("get_log_settings", ()),
    ("update_log_settings", ({},)),
    ("get_model_metadata", ("nobody",)),
    ("get_model_metadata", ("echo", "9")),
    ("get_model_config", ("nobody",)),
    ("get_inference_statistics", ("nobody",)),
)


def refusals(url: str) -> list[tuple[str, str, str]]:
    """Return call, status and text of everything that is refused."""
    from tritonclient.utils import InferenceServerException

    _, client = _client(url)
    found = []
    with client:
        for name, arguments in REFUSED:
            try:
                getattr(client, name)(*arguments)
            except InferenceServerException as exc:
                found.append((name, exc.status(), exc.message()))
            else:
                found.append((name, "OK", ""))
    return found


def stream(
    url: str, model: str, arrays: list[dict[str, Any]], final: bool = False, headers: dict[str, str] | None = None
) -> list[tuple[str, Any, str]]:
    """Send each on one stream; return id, first output or None, and the error's text of each answer as it comes."""
    triton, client = _client(url)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    found = []
    with client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        for number, each in enumerate(arrays):
            inputs = _inputs(triton, each)
            client.async_stream_infer(model, inputs, request_id=f"r{number}", enable_empty_final_response=final)
        for _ in arrays:
            result, error = answers.get(timeout=30)
            if error is not None:
                found.append(("", None, str(error)))
                if headers:
                    break
                continue
            response = result.get_response()
            last = "final" if "triton_final_response" in response.parameters else ""
            found.append((response.id, result.as_numpy(response.outputs[0].name), last))
        client.stop_stream(cancel_requests=bool(headers))
    return found


def hammer(
    url: str, model: str, arrays: dict[str, Any], callers: int, seconds: float
) -> tuple[int, list[str], list[str]]:
    """Ask from many threads for a while; return the number of answers, the versions seen in order, and the errors."""
    import time

    from tritonclient.utils import InferenceServerException

    triton, client = _client(url)
    inputs = _inputs(triton, arrays)
    versions: list[str] = []
    errors: list[str] = []
    counts = [0] * callers
    end = time.monotonic() + seconds

    def ask(number: int) -> None:
        while time.monotonic() < end:
            try:
                versions.append(client.infer(model, inputs).get_response().model_version)
                counts[number] += 1
            except InferenceServerException as exc:
                errors.append(str(exc))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    seen = [version for index, version in enumerate(versions) if index == 0 or versions[index - 1] != version]
    return sum(counts), seen, errors


def prove(
    url: str, model: str, until: str, column: int, width: int
) -> tuple[dict[int, int], dict[int, int], list[str]]:
    """Ask as fast as answers come, one by one and on a stream, until a file is there; hold each against its version.

    Return answers by version, of both ways, and what was wrong. See :mod:`tests.support.proving_models`.
    """
    provers = [_Prover(url, model, Path(until), column, width) for _ in range(2)]
    ways = (provers[0].ask_alone, provers[1].ask_streamed)
    threads = [threading.Thread(target=way) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone, streamed = provers
    return alone.seen, streamed.seen, alone.wrong + streamed.wrong


class _Prover:
    """Requests of several lengths, and whether each answer is right for the version that it names."""

    def __init__(self, url: str, model: str, until: Path, column: int, width: int) -> None:
        import numpy as np

        self._triton, self._client = _client(url)
        self._model, self._until, self._column = model, until, column
        self._asked = [np.zeros((rows, width), np.float32) for rows in (1, 2, 7, 64)]
        random = np.random.default_rng()
        for rows in self._asked:
            rows[:, column] = random.integers(0, 2, len(rows))
            rows[0, column] = 1  # an answer of nothing but zeros would prove nothing
        self.seen: dict[int, int] = {}
        self.wrong: list[str] = []

    def ask_alone(self) -> None:
        """Send a request when the one before is answered."""
        from tritonclient.utils import InferenceServerException

        number = 0
        with self._client:
            while not self._until.exists():
                number += 1
                try:
                    result = self._client.infer(self._model, self._inputs(number), request_id=str(number))
                except InferenceServerException as exc:
                    self.wrong.append(f"request {number}: {exc}")
                else:
                    self._judge(result, number)

    def ask_streamed(self) -> None:
        """Send on one stream, some ahead of their answers."""
        answers = queue.Queue[tuple[Any, Any]]()
        sent = answered = 0
        with self._client:
            self._client.start_stream(lambda result, error: answers.put((result, error)))
            while answered < sent or not self._until.exists():
                if sent - answered < _AHEAD and not self._until.exists():
                    sent += 1
                    self._client.async_stream_infer(self._model, self._inputs(sent), request_id=str(sent))
                    continue
                result, error = answers.get(timeout=60)
                answered += 1
                if error is None:
                    self._judge(result, answered)
                else:
                    self.wrong.append(f"streamed {answered}: {error}")
            self._client.stop_stream()

    def _inputs(self, number: int) -> list[Any]:
        return _inputs(self._triton, {"features": self._asked[number % len(self._asked)]})

    def _judge(self, result: Any, number: int) -> None:
        import numpy as np

        response = result.get_response()
        version, marks = int(response.model_version), self._asked[number % len(self._asked)][:, self._column]
        self.seen[version] = self.seen.get(version, 0) + 1
        score = marks * np.float32(0.5 + version / 128)
        right = {"score": score, "label": marks, "probabilities": np.stack([1 - score, score], axis=1)}
        bad = [name for name, array in right.items() if not np.array_equal(result.as_numpy(name), array)]
        if bad or response.id != str(number):
            self.wrong.append(f"request {number}, answered as {response.id} by version {version}: wrong {bad}")
