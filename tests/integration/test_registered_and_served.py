"""Whatever the controller registers, the appliance serves: any kind of tensor, of any shape, by rows or whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.any_models import CASES
from tests.support.appliance import Appliance
from tests.support.tiny_models import assigned, echo_model
from vedette.agent.domain.errors import InstallFailed
from vedette.controller.domain.model_gate import ModelRefused
from vedette.controller.domain.registry import specs, tolerance
from vedette.controller.jobs.examine import Examined, examine
from vedette.models.golden import mismatch
from vedette.models.release import Build, Release, TensorSpec, Tolerance

CLOSE = Tolerance(1e-3, 1e-3)


def release_of(appliance: Appliance, examined: Examined) -> Release:
    build = Build("onnx-fp32", appliance.shelf.put(examined.data), tolerance(examined.is_half))
    return appliance.shelf.flow_release(
        1,
        builds=(build,),
        inputs=specs(examined.inputs),
        outputs=specs(examined.outputs),
        golden=appliance.shelf.put(examined.golden.to_bytes()),
        schema=None,
        kind="tensor",
        row_wise=examined.row_wise,
    )


async def installed(appliance: Appliance, examined: Examined) -> None:
    release = release_of(appliance, examined)
    await appliance.serving.install(assigned(release), release, appliance.fetch)


@pytest.mark.parametrize("name", CASES)
async def test_a_model_of_any_kind_is_learnt_and_served(name: str, tmp_path: Path) -> None:
    case, appliance = CASES[name], Appliance(tmp_path)
    examined = examine(case.make().SerializeToString())
    assert {port.name: port.shape for port in examined.inputs} == dict(case.inputs)
    assert {port.name: port.shape for port in examined.outputs} == dict(case.outputs)
    assert examined.row_wise is case.row_wise
    await installed(appliance, examined)
    answer = await appliance.serving.infer("flow-threat", case.asked)
    wanted = {key: np.asarray(value, answer.outputs[key].dtype) for key, value in case.wanted.items()}
    assert mismatch(wanted, answer.outputs, CLOSE) is None
    model = appliance.serving.active("flow-threat")
    assert model is not None
    assert model.stats.rows == (len(next(iter(case.asked.values()))) if case.row_wise else 1)
    await appliance.close()


@pytest.mark.parametrize("name", ["signal", "filter"])
async def test_requests_that_are_answered_whole_share_no_batch(name: str, tmp_path: Path) -> None:
    """Joined, the rows of one would change, or take the place of, those of another, and nobody would be told."""
    case, appliance = CASES[name], Appliance(tmp_path)
    await installed(appliance, examine(case.make().SerializeToString()))
    asked = [{key: np.concatenate([array] * n) for key, array in case.asked.items()} for n in range(1, 5)] * 8
    together = await asyncio.gather(*(appliance.serving.infer("flow-threat", each) for each in asked))
    for each, answer in zip(asked, together, strict=True):
        alone = await appliance.serving.infer("flow-threat", each)
        assert mismatch(alone.outputs, answer.outputs, Tolerance(0.0, 0.0)) is None
    await appliance.close()


async def test_a_build_that_answers_one_of_several_golden_requests_wrongly_is_not_installed(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path)
    examined = examine(CASES["signal"].make().SerializeToString())
    last = examined.golden.more[-1]
    wrong = replace(last, outputs={"level": last.outputs["level"] + np.float32(1)})
    golden = replace(examined.golden, more=(*examined.golden.more[:-1], wrong))
    with pytest.raises(InstallFailed, match="self-test"):
        await installed(appliance, replace(examined, golden=golden))
    await appliance.close()


async def test_what_registration_makes_of_a_model_of_strings_is_served(tmp_path: Path) -> None:
    appliance = Appliance(tmp_path)
    inputs = [
        TensorSpec("word", "bytes", (-1,)),
        TensorSpec("half", "float16", (-1, 2)),
        TensorSpec("n", "int8", (-1,)),
    ]
    await installed(appliance, examine(echo_model(inputs)))
    word = np.array([b"caf\xc3\xa9", b""], object)
    asked = {"word": word, "half": np.ones((2, 2), np.float16), "n": np.array([-1, 2], np.int8)}
    answer = await appliance.serving.infer("flow-threat", asked, outputs=("word_out", "n_out"))
    assert {name: array.tolist() for name, array in answer.outputs.items()} == {
        "word_out": word.tolist(),
        "n_out": [-1, 2],
    }
    await appliance.close()


def test_golden_samples_tell_the_classes_of_a_text_model_apart() -> None:
    """Words that the model does not know would all become the same."""
    golden = examine(CASES["words"].make().SerializeToString()).golden
    assert set(golden.outputs["label"].tolist()) == {0, 1}
    golden = examine(CASES["categories"].make().SerializeToString()).golden
    assert len(np.unique(np.concatenate([golden.inputs["protocol"], golden.inputs["zone"]], axis=1).astype(str))) > 4


def test_golden_samples_of_large_inputs_are_few() -> None:
    wide = [TensorSpec("picture", "float32", (-1, 3, 256, 256))]
    examined = examine(echo_model(wide))
    assert examined.row_wise
    assert len(examined.golden.inputs["picture"]) == 10
    assert len(examined.golden.to_bytes()) <= 17 << 20


@pytest.mark.parametrize(
    "specs_of",
    [
        [TensorSpec("a", "float32", (-1, -1, -1, -1))],
        [TensorSpec("a", "bytes", ()), TensorSpec("b", "bool", (3,))],
    ],
)
def test_shapes_of_any_openness_are_tried(specs_of: list[TensorSpec]) -> None:
    examined = examine(echo_model(specs_of))
    assert [port.shape for port in examined.outputs] == [spec.shape for spec in specs_of]


def test_a_model_that_answers_no_size_that_is_tried_says_the_shapes_and_what_to_do() -> None:
    from onnx import helper

    from tests.support.onnx_models import FLOATS, constant, model

    baked = model(
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        [("x", FLOATS, ["N", "T"])],
        [("y", FLOATS, [7, 7])],
        [constant("to", [7, 7], np.int64)],
    )
    with pytest.raises(ModelRefused, match=r"fails at x \[1, 5\].*must have its length in the export"):
        examine(baked.SerializeToString())
