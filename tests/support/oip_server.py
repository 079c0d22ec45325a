"""A program: the protocol's server over one isolated model, as an agent runs it, for benchmarks and crowds of clients.

``python -m tests.support.oip_server FOLDER`` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from tests.support.appliance import FAST, Appliance
from tests.support.oip import install, served, tensor_release
from tests.support.tiny_models import mlp_model, mlp_rows, mlp_specs
from vedette.models.golden import Golden

MODEL = "mlp"


async def serve(folder: Path) -> None:
    """Serve the perceptron of FACTS.md until standard input ends."""
    appliance = Appliance(folder)
    appliance.use(replace(appliance.settings, worker=replace(FAST, threads=1)))
    inputs, outputs = mlp_specs()
    file, rows = mlp_model(), mlp_rows(4)
    golden = Golden({"features": rows}, {"probabilities": await asyncio.to_thread(_answers, file, rows)})
    await install(appliance, tensor_release(appliance.shelf, file, inputs, outputs, golden, model=MODEL))
    async with served(appliance, folder) as server:
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await appliance.close()


def _answers(file: bytes, rows):  # type: ignore[no-untyped-def]
    """Return the reference's outputs; computed by onnx, for this process is an agent's: without onnxruntime."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(file).run(None, {"features": rows})[0]


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
