"""Whatever the controller registers, the appliance serves: every kind of element, several inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.appliance import Appliance
from tests.support.tiny_models import assigned, echo_model
from vedette.controller.jobs.examine import examine, golden_rows
from vedette.models.golden import Golden
from vedette.models.release import Build, TensorSpec, Tolerance


async def test_what_registration_makes_of_a_model_of_strings_is_served(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path)
    inputs = [
        TensorSpec("word", "bytes", (-1,)),
        TensorSpec("half", "float16", (-1, 2)),
        TensorSpec("n", "int8", (-1,)),
    ]
    examined = examine(echo_model(inputs))
    golden = Golden(*golden_rows(examined.data, examined.inputs))
    outputs = tuple(TensorSpec(port.name, port.dtype, port.shape) for port in examined.outputs)
    build = Build("onnx-fp32", appliance.shelf.put(examined.data), Tolerance(0.0, 0.0))
    release = appliance.shelf.flow_release(
        1,
        builds=(build,),
        inputs=tuple(inputs),
        outputs=outputs,
        golden=appliance.shelf.put(golden.to_bytes()),
        schema=None,
        kind="tensor",
    )
    await appliance.serving.install(assigned(release), release, appliance.fetch)
    word = np.array([b"caf\xc3\xa9", b""], object)
    asked = {"word": word, "half": np.ones((2, 2), np.float16), "n": np.array([-1, 2], np.int8)}
    answer = await appliance.serving.infer("flow-threat", asked, outputs=("word_out", "n_out"))
    assert {name: array.tolist() for name, array in answer.outputs.items()} == {
        "word_out": word.tolist(),
        "n_out": [-1, 2],
    }
    await appliance.close()
