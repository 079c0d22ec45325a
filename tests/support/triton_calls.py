"""What an unmodified ``tritonclient.grpc`` is asked to do, in a process of its own (see :mod:`tests.support.oip`)."""

from __future__ import annotations

import queue
import threading
from typing import Any


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
