"""Claims about what an unmodified tritonclient finds at a real server with real workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import triton_calls as calls
from tests.support.oip import NUMBERS, ClientProcess, sample
from tests.support.tiny_models import flow_outputs, flow_rows
from vedette.agent.adapters.oip.server import InferenceServer
from vedette.models.version import __version__


def _all(shape: tuple[int, ...]) -> dict[str, Any]:
    return {f"in_{dtype}": sample(dtype, shape) for dtype in NUMBERS}


@pytest.mark.parametrize("rows", [0, 1, 3, 5000])
async def test_every_number_comes_back_bit_for_bit(server: InferenceServer, triton: ClientProcess, rows: int) -> None:
    given = _all((rows, 4))
    found, model, version, _ = await triton.run(calls.infer, f"127.0.0.1:{server.port}", "echo", given)
    assert (model, version) == ("echo", "1")
    for dtype in NUMBERS:
        assert found[f"out_{dtype}"].dtype == np.dtype(dtype)
        assert found[f"out_{dtype}"].tobytes() == given[f"in_{dtype}"].tobytes()


async def test_the_unix_socket_answers_too(server: InferenceServer, tmp_path: Path, triton: ClientProcess) -> None:
    rows = flow_rows(7)
    found, *_ = await triton.run(calls.infer, f"unix:{tmp_path}/oip.sock", "flow-threat", {"features": rows})
    np.testing.assert_allclose(found["score"], flow_outputs(rows, 1.0)["score"], rtol=1e-5)


async def test_requested_outputs_come_alone_and_in_their_order(server: InferenceServer, triton: ClientProcess) -> None:
    wanted = ["out_float64", "out_bool"]
    found, *_ = await triton.run(calls.infer, f"127.0.0.1:{server.port}", "echo", _all((2, 4)), wanted)
    assert list(found) == wanted


async def test_id_and_version_come_back(server: InferenceServer, triton: ClientProcess) -> None:
    where, rows = f"127.0.0.1:{server.port}", {"features": flow_rows(1)}
    options = {"request_id": "ä" * 300, "model_version": "1", "timeout": 5_000_000, "parameters": {"colour": "red"}}
    _, model, version, request_id = await triton.run(calls.infer, where, "flow-threat", rows, None, options)
    assert (model, version, request_id) == ("flow-threat", "1", "ä" * 300)


async def test_every_question_is_answered(server: InferenceServer, triton: ClientProcess) -> None:
    where = f"127.0.0.1:{server.port}"
    await triton.run(calls.infer, where, "flow-threat", {"features": flow_rows(3)})
    found = await triton.run(calls.questions, where, "flow-threat")
    assert found["live"]
    assert found["ready"]
    assert found["model ready"]
    assert found["version ready"]
    assert not found["other version ready"]
    assert not found["unknown ready"]
    assert (found["server"]["name"], found["server"]["version"]) == ("vedette-agent", __version__)
    assert "statistics" in found["server"]["extensions"]
    assert found["metadata"] == {
        "name": "flow-threat",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": ["-1"]},
            {"name": "label", "datatype": "INT64", "shape": ["-1"]},
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "2"]},
        ],
    }
    assert found["config"]["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert found["config"]["max_batch_size"] == 4096
    assert found["index"] == {
        "models": [{"name": name, "version": "1", "state": "READY"} for name in ("echo", "flow-threat")]
    }


async def test_statistics_count_requests_rows_and_time(server: InferenceServer, triton: ClientProcess) -> None:
    where = f"127.0.0.1:{server.port}"
    for rows in (1, 3, 3):
        await triton.run(calls.infer, where, "flow-threat", {"features": flow_rows(rows)})
    (told,) = (await triton.run(calls.questions, where, "flow-threat"))["statistics"]["model_stats"]
    assert told["inference_count"] == "7"
    assert told["inference_stats"]["success"]["count"] == "3"
    assert int(told["inference_stats"]["success"]["ns"]) > 0
    assert int(told["last_inference"]) > 1.6e12


async def test_what_is_refused_says_why(server: InferenceServer, triton: ClientProcess) -> None:
    found = await triton.run(calls.refusals, f"127.0.0.1:{server.port}")
    codes = {(name, status.rpartition(".")[2]) for name, status, _ in found}
    assert codes == {
        ("load_model", "FAILED_PRECONDITION"),
        ("unload_model", "FAILED_PRECONDITION"),
        *((name, "UNIMPLEMENTED") for name, _ in calls.REFUSED[2:12]),
        ("get_model_metadata", "NOT_FOUND"),
        ("get_model_config", "NOT_FOUND"),
        ("get_inference_statistics", "NOT_FOUND"),
    }
    texts = {name: text for name, _, text in found}
    assert "the controller governs the models" in texts["load_model"]
    assert "send tensors as bytes" in texts["register_cuda_shared_memory"]
    assert texts["get_model_config"] == "no model 'nobody' is here; there are ['echo', 'flow-threat']"


async def test_a_stream_answers_in_order_and_an_error_is_its_messages_own(
    server: InferenceServer, triton: ClientProcess
) -> None:
    rows = [flow_rows(count + 1) for count in range(20)]
    given = [{"features": each} for each in rows]
    given[7] = {"features": np.zeros((1, 5), np.float32)}
    found = await triton.run(calls.stream, f"127.0.0.1:{server.port}", "flow-threat", given)
    assert [request_id for request_id, _, _ in found] == [f"r{n}" if n != 7 else "" for n in range(20)]
    assert "[INVALID_ARGUMENT] input 'features' has shape [1, 5]" in found[7][2]
    for number in (0, 6, 8, 19):
        np.testing.assert_allclose(found[number][1], flow_outputs(rows[number], 1.0)["score"], rtol=1e-5)


async def test_a_stream_marks_last_answers_where_asked(server: InferenceServer, triton: ClientProcess) -> None:
    given = [{"features": flow_rows(1)}] * 2
    where = f"127.0.0.1:{server.port}"
    marks = [mark for _, _, mark in await triton.run(calls.stream, where, "flow-threat", given, True)]
    assert marks == ["final", "final"]


async def test_a_stream_ends_with_a_status_where_asked(server: InferenceServer, triton: ClientProcess) -> None:
    given = [{"features": flow_rows(1)}, {"features": np.zeros((1, 5), np.float32)}]
    where, headers = f"127.0.0.1:{server.port}", {"triton_grpc_error": "true"}
    first, second = await triton.run(calls.stream, where, "flow-threat", given, False, headers)
    assert first[0] == "r0"
    assert "StatusCode.INVALID_ARGUMENT" in second[2]
