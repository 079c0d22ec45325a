"""The real server of the Open Inference Protocol over real workers, and clients made by others in their own process.

tritonclient registers the protocol's messages under the names that ours have, and a process has each name once. So it
lives in a process of its own: :func:`in_client` runs a function of :mod:`tests.support.triton_calls` there.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.appliance import Appliance
from tests.support.tiny_models import Shelf, assigned, model_bytes
from vedette.agent.adapters.oip.server import InferenceServer
from vedette.agent.adapters.oip.tensors import DATATYPES
from vedette.agent.settings import OipSettings
from vedette.models.golden import Golden
from vedette.models.release import Build, Release, TensorSpec, Tolerance
from vedette.wire.oip import inference_pb2 as pb

PREFIX = "/inference.GRPCInferenceService/"
NUMBERS = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)


def onnx_type(dtype: str) -> int:
    """Return ONNX's number of a dtype; ``bytes`` are strings."""
    if dtype == "bytes":
        return int(TensorProto.STRING)
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def echo_model(dtypes: Sequence[str], shape: Sequence[int | str] = ("n", 4)) -> bytes:
    """Return a model that gives back each input: in_float32 as out_float32."""
    value = helper.make_tensor_value_info
    return model_bytes(
        [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in dtypes],
        [value(f"in_{t}", onnx_type(t), list(shape)) for t in dtypes],
        [value(f"out_{t}", onnx_type(t), list(shape)) for t in dtypes],
    )


def sample(dtype: str, shape: Sequence[int]) -> Any:
    """Return an array of a dtype with its extremes in it."""
    size = int(np.prod(shape))
    if dtype == "bytes":
        items = [b"", b"plain", "smörgås".encode(), b"\x00\xff" * 3, b"x" * 300]
        array = np.empty(size, object)
        array[:] = [items[i % len(items)] for i in range(size)]
    elif dtype == "bool":
        array = np.arange(size) % 2 == 0
    elif dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        array = np.resize(np.array([info.min, info.max, 0, 1], dtype), size)
    else:
        array = np.resize(np.array([0.0, -1.5, np.finfo(dtype).max, np.inf, 0.25], dtype), size)
    return array.reshape(shape)


def echo_release(shelf: Shelf, dtypes: Sequence[str], *, model: str = "echo", version: int = 1) -> Release:
    """Return a release of :func:`echo_model`."""
    inputs, outputs = (tuple(TensorSpec(f"{side}_{t}", t, (-1, 4)) for t in dtypes) for side in ("in", "out"))
    rows = {t: sample(t, (2, 4)) for t in dtypes}
    told = [t if t != "bytes" else "float32" for t in dtypes]  # golden samples are a file of numbers
    rows |= {"float32": sample("float32", (2, 4))}
    golden = Golden({f"in_{t}": rows[t] for t in told}, {f"out_{t}": rows[t] for t in told})
    return tensor_release(shelf, echo_model(dtypes), inputs, outputs, golden, model=model, version=version)


def tensor_release(
    shelf: Shelf,
    file: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    golden: Golden,
    *,
    model: str,
    version: int = 1,
) -> Release:
    """Return a release of any model."""
    return Release(
        model=model,
        version=version,
        created=datetime(2026, 11, 1, tzinfo=UTC),
        kind="tensor",
        schema=None,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        labels=(),
        threshold=0.5,
        builds=(Build("onnx-fp32", shelf.put(file), Tolerance(1e-5, 1e-5)),),
        golden=shelf.put(golden.to_bytes()),
    )


async def install(appliance: Appliance, release: Release, slot: str | None = None) -> None:
    """Make a release active."""
    await appliance.serving.install(assigned(release, slot or release.model), release, appliance.fetch)


@asynccontextmanager
async def served(appliance: Appliance, folder: Path, **changes: Any) -> AsyncIterator[InferenceServer]:
    """Serve what is installed there, on a unix socket and on a port."""
    settings = {"socket": folder / "oip.sock", "listen": ("127.0.0.1", 0)} | changes
    server = InferenceServer(appliance.serving, OipSettings(**settings))
    await server.start_unix()
    await server.start_tcp()
    try:
        yield server
    finally:
        await server.stop(0.0)


class Client:
    """A client of raw messages on a channel of its own."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])

    async def ask(self, name: str, body: bytes, **call: Any) -> bytes:
        """Return the answer's bytes."""
        path = name if name.startswith("/") else PREFIX + name
        return bytes(await self._channel.unary_unary(path)(body, **call))

    async def infer(self, request: pb.ModelInferRequest, **call: Any) -> pb.ModelInferResponse:
        """Return the answer to a request."""
        return pb.ModelInferResponse.FromString(await self.ask("ModelInfer", request.SerializeToString(), **call))

    def stream(self, name: str = "ModelStreamInfer", **call: Any) -> Any:
        """Open a stream of bytes both ways."""
        return self._channel.stream_stream(name if name.startswith("/") else PREFIX + name)(**call)

    def watch(self, path: str, body: bytes) -> Any:
        """Ask what answers more than once."""
        return self._channel.unary_stream(path)(body)

    async def close(self) -> None:
        await self._channel.close()


@asynccontextmanager
async def client_of(server: InferenceServer) -> AsyncIterator[Client]:
    """Return a client on the server's port."""
    client = Client(f"127.0.0.1:{server.port}")
    try:
        yield client
    finally:
        await client.close()


def request_of(model: str, inputs: Mapping[str, Any], **fields: Any) -> pb.ModelInferRequest:
    """Return a request with raw contents, as tritonclient sends them; numbers only."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=DATATYPES[str(array.dtype)], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


_CONTENTS = {
    "bool": "bool",
    "float32": "fp32",
    "float64": "fp64",
    "int64": "int64",
    "uint64": "uint64",
    "bytes": "bytes",
}


def as_contents(request: pb.ModelInferRequest, name: str, array: Any) -> None:
    """Add an input with typed contents; FP16, which has none, as a tensor that no row of a table looks at."""
    dtype = "bytes" if array.dtype == object else str(array.dtype)
    field = _CONTENTS.get(dtype, "uint" if dtype.startswith("u") else "int")
    tensor = request.inputs.add(name=name, datatype=DATATYPES[dtype], shape=array.shape)
    if dtype != "float16":
        getattr(tensor.contents, f"{field}_contents").extend(array.ravel().tolist())


class ClientProcess:
    """A process for clients of others."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of :mod:`tests.support.triton_calls` gives there."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        self._pool.shutdown()
