"""Files become signed versions, or are refused for a reason; through the service, a real child and real stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from tests.support import onnx_models as made
from tests.support.learning import KEY, DataRoom, data_room
from tests.support.onnx_models import FLOATS
from vedette.controller.adapters.sqlite.registry import RegistryStore
from vedette.controller.domain.errors import InvalidInput, NotFound, Refused
from vedette.controller.jobs import examine
from vedette.models.flows.features import FLOW_SCHEMA
from vedette.models.golden import Golden, mismatch
from vedette.models.release import RELEASE_TYPE, Release
from vedette.models.signing import SigningKey, unseal

PLAIN = made.linear().SerializeToString()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[DataRoom]:
    with data_room(tmp_path) as opened:
        yield opened


def flow_model(width: int = len(FLOW_SCHEMA), **notes: str) -> bytes:
    """Return a model with the tensors of a flow model: the score is the mean of the features."""
    nodes = [
        helper.make_node("ReduceMean", ["features"], ["score"], axes=[1], keepdims=0),
        helper.make_node("Cast", ["score"], ["label"], to=TensorProto.INT64),
        helper.make_node("Slice", ["features", "zero", "two", "one"], ["probabilities"]),
    ]
    model = made.model(
        nodes,
        [("features", FLOATS, ["N", width])],
        [("score", FLOATS, ["N"]), ("label", TensorProto.INT64, ["N"]), ("probabilities", FLOATS, ["N", 2])],
        [made.constant(name, [value], np.int64) for name, value in (("zero", 0), ("two", 2), ("one", 1))],
    )
    claim = {"vedette.kind": "flow", "vedette.labels": '["benign", "bad"]', "vedette.threshold": "0.5"} | notes
    helper.set_model_props(model, {key: value for key, value in claim.items() if value})
    return model.SerializeToString()


async def test_bare_onnx_becomes_a_signed_version_with_golden_rows(room: DataRoom) -> None:
    version = await room.model("plain", PLAIN)
    assert (version.version, version.kind, version.signed_by) == ("plain:1", "tensor", (KEY.key_id,))
    envelope = room.versions.envelope(version.digest)
    assert envelope is not None
    release = Release.from_bytes(unseal(envelope, RELEASE_TYPE, (KEY.public,)))
    assert release.digest == version.digest
    assert room.blobs.read(release.builds[0].digest, limit=1 << 20) == PLAIN
    assert release.schema is not None
    assert release.schema.names == ("x[0]", "x[1]", "x[2]", "x[3]")
    golden = Golden.from_bytes(room.blobs.read(release.golden.digest, limit=1 << 20))
    weights = np.arange(8, dtype=np.float32).reshape(4, 2) / 10
    by_hand = {"y": golden.inputs["x"] @ weights + 1}
    assert mismatch(golden.outputs, by_hand, release.builds[0].tolerance) is None


async def test_numbers_grow_and_the_same_file_is_the_version_it_became(room: DataRoom) -> None:
    first = await room.model("plain", PLAIN)
    second = await room.model("plain", made.linear(outputs=3).SerializeToString())
    assert (first.version, second.version) == ("plain:1", "plain:2")
    assert await room.model("plain", PLAIN) == first
    assert (await room.model("other", PLAIN)).version == "other:1"
    assert [v.version for v in await room.registry.versions("plain")] == ["plain:2", "plain:1"]
    assert room.versions.newest() == {"other": 1, "plain": 2}


async def test_same_file_gives_the_same_golden_rows_everywhere(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        with data_room(tmp_path / name) as room:
            await room.model("plain", PLAIN)
            digests.add(room.versions.release("plain:1").golden.digest)
    assert len(digests) == 1


async def test_versions_are_there_after_a_restart(tmp_path: Path) -> None:
    with data_room(tmp_path) as room:
        before = await room.model("plain", PLAIN)
    with data_room(tmp_path) as room:
        assert await room.registry.version("plain:1") == before
        assert (await room.model("plain", made.tree_model().SerializeToString())).version == "plain:2"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"\x00" * 100, "model-not-onnx", id="zeros"),
        pytest.param(b"not a model", "model-not-onnx", id="text"),
        pytest.param(PLAIN[:-20], "model-not-onnx", id="cut"),
        pytest.param(made.tree_model(**made.chain(30_000)).SerializeToString(), "model-tree-depth", id="deep tree"),
    ],
)
async def test_file_that_the_gate_refuses_registers_nothing(room: DataRoom, content: bytes, code: str) -> None:
    with pytest.raises(Refused) as caught:
        await room.model("plain", content)
    assert caught.value.code == code
    assert await room.registry.versions() == ()
    assert room.leftovers() == []


def answering(nodes: list[object], outputs: list[made.Spec], *constants: TensorProto) -> bytes:
    return made.model(nodes, [("x", FLOATS, ["N", 4])], outputs, list(constants)).SerializeToString()  # type: ignore[arg-type]


MISBEHAVING = [
    pytest.param(
        answering(
            [helper.make_node("Gather", ["x", "i"], ["y"], axis=1)], [("y", FLOATS, ["N", 1])],
            made.constant("i", [9], np.int64),
        ),
        "model-run", id="looks outside its table",
    ),
    pytest.param(
        answering([helper.make_node("Reshape", ["x", "one"], ["y"])], [("y", FLOATS, ["N", 4])],
                  made.constant("one", [1, 4], np.int64)),
        "model-run", id="a batch of one baked into open rows",
    ),
    pytest.param(
        answering([helper.make_node("Shape", ["x"], ["y"])], [("y", TensorProto.INT64, [3])]),
        "model-shapes", id="a fixed length that lies",
    ),
    pytest.param(
        answering([helper.make_node("Flatten", ["x"], ["y"])], [("y", FLOATS, ["N"])]),
        "model-", id="axes that lie",
    ),
    pytest.param(
        answering([helper.make_node("Relu", ["x"], ["y"])], [("y", FLOATS, ["N", 5])]),
        "model-shapes", id="columns that lie",
    ),
    pytest.param(
        answering([helper.make_node("MatMul", ["x", "w"], ["y"])], [("y", FLOATS, ["N", 1])],
                  made.constant("w", [[1.0]] * 3)),
        "model-load", id="shapes that contradict",
    ),
    pytest.param(
        answering([helper.make_node("Relu", ["x"], ["y"], alpha=1.0)], [("y", FLOATS, ["N", 4])]),
        "model-load", id="an attribute the operator does not know",
    ),
    pytest.param(
        answering(
            [helper.make_node("ConstantOfShape", ["s"], ["huge"]), helper.make_node("ReduceSum", ["huge"], ["one"]),
             helper.make_node("Add", ["x", "one"], ["y"])],
            [("y", FLOATS, ["N", 4])], made.constant("s", [1 << 32], np.int64),
        ),
        "model-", id="16 GiB from a small file",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "code"), MISBEHAVING)
async def test_model_that_misbehaves_when_tried_is_refused(room: DataRoom, content: bytes, code: str) -> None:
    with pytest.raises(Refused) as caught:
        await room.model("plain", content)
    assert caught.value.code.startswith(code)
    assert await room.registry.versions() == ()


async def test_output_declared_for_one_row_is_repaired_and_said(room: DataRoom) -> None:
    one_row = answering([helper.make_node("Relu", ["x"], ["y"])], [("y", FLOATS, [1, 4])])
    version = await room.model("plain", one_row)
    assert version.lineage["repaired_outputs"] == "y"
    release = room.versions.release("plain:1")
    assert release.outputs[0].shape == (-1, 4)
    session = examine.open_session(room.blobs.read(release.builds[0].digest, limit=1 << 20))
    assert session.get_outputs()[0].shape == ["answered_0", 4]


@pytest.mark.parametrize("how", ["running sum", "mean of the batch"])
async def test_a_flow_model_whose_rows_are_not_answered_each_for_itself_is_refused(room: DataRoom, how: str) -> None:
    model = ModelProto.FromString(flow_model())
    score = next(node for node in model.graph.node if "score" in node.output)
    score.output[list(score.output).index("score")] = "alone"
    label = next(node for node in model.graph.node if "score" in node.input)
    label.input[0] = "alone"
    if how == "running sum":
        model.graph.node.append(helper.make_node("CumSum", ["alone", "first"], ["score"]))
        model.graph.initializer.append(made.constant("first", 0, np.int64))
    else:
        model.graph.node.append(helper.make_node("ReduceMean", ["alone"], ["mean"], keepdims=1))
        model.graph.node.append(helper.make_node("Sub", ["alone", "mean"], ["score"]))
    with pytest.raises(Refused, match="model") as caught:
        await room.model("flows", model.SerializeToString())
    assert caught.value.code == "model-rows"
    assert "output 'score' of a row changes with the rows beside it" in caught.value.why


async def test_flow_model_that_fits_is_taken_as_one(room: DataRoom) -> None:
    version = await room.model("flows", flow_model())
    assert (version.kind, version.labels, version.threshold) == ("flow", ("benign", "bad"), 0.5)
    assert version.schema_digest == FLOW_SCHEMA.digest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (flow_model(width=40), f"input 'features' is float32[-1, 40], expected float32[-1, {len(FLOW_SCHEMA)}]"),
        (flow_model(**{"vedette.labels": '["benign", "a", "b"]'}), "output 'probabilities' is float32[-1, 2]"),
        (flow_model(**{"vedette.labels": '["benign"]'}), "2 to 1024"),
        (flow_model(**{"vedette.labels": "{"}), "vedette.labels"),
        (flow_model(**{"vedette.threshold": ""}), "vedette.threshold"),
        (flow_model(**{"vedette.threshold": "7"}), "allowed 0 to 1"),
        (flow_model(**{"vedette.kind": "packets"}), "'packets'"),
    ],
)
async def test_flow_model_that_does_not_fit_the_schema_is_refused(room: DataRoom, content: bytes, says: str) -> None:
    with pytest.raises(Refused) as caught:
        await room.model("flows", content)
    assert caught.value.code == "model-does-not-fit"
    assert says in caught.value.why


async def test_a_line_of_models_keeps_its_kind(room: DataRoom) -> None:
    await room.model("plain", PLAIN)
    with pytest.raises(Refused) as caught:
        await room.model("plain", flow_model())
    assert "plain:1 is a tensor model, this is a flow model" in caught.value.why


async def test_unknown_names_lead_to_the_nearest(room: DataRoom) -> None:
    await room.model("flow-threat", PLAIN)
    with pytest.raises(NotFound) as caught:
        await room.registry.version("flow-thret:1")
    assert caught.value.why == "did you mean flow-threat?"
    with pytest.raises(NotFound) as caught:
        await room.registry.version("flow-threat:2")
    assert caught.value.why == "the newest is flow-threat:1"
    with pytest.raises(InvalidInput):
        await room.registry.version("flow-threat")
    with pytest.raises(InvalidInput):
        await room.model("Flow Threat", PLAIN)


async def test_release_of_another_key_is_not_trusted(room: DataRoom) -> None:
    await room.model("plain", PLAIN)
    other = RegistryStore(room.database, SigningKey.generate())
    with pytest.raises(Refused) as caught:
        other.release("plain:1")
    assert caught.value.code == "release-unsigned"


SCHEMA = '{"kind": "flow", "labels": ["fine", "odd"], "threshold": 0.7}'
BARE = {"vedette.kind": "", "vedette.labels": "", "vedette.threshold": ""}


async def test_what_is_said_beside_a_file_counts_for_more_than_its_metadata(room: DataRoom) -> None:
    tensor = await room.model("flows", flow_model(**BARE), schema='{"kind": "tensor"}')
    beside = await room.model("other", flow_model(**BARE), schema=SCHEMA)
    over = await room.model("third", flow_model(), schema=SCHEMA)
    assert tensor.kind == "tensor"
    for version in (beside, over):
        assert (version.kind, tuple(version.labels), version.threshold) == ("flow", ("fine", "odd"), 0.7)
        assert version.schema_digest == FLOW_SCHEMA.digest


async def test_the_same_file_with_another_schema_is_another_version(room: DataRoom) -> None:
    first = await room.model("flows", flow_model(), schema=SCHEMA)
    assert await room.model("flows", flow_model(), schema=SCHEMA) == first
    assert (await room.model("flows", flow_model(), schema=SCHEMA.replace("0.7", "0.8"))).version == "flows:2"


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ("flow", "bad-schema"),
        ("[]", "bad-schema"),
        ("{}", "bad-schema"),
        ("[" * 100_000, "bad-schema"),
        ('{"kind": "flow", "more": 1}', "bad-schema"),
        ('{"kind": 1}', "bad-schema"),
        (f'{{"kind": "{"x" * (1 << 18)}"}}', "bad-schema"),
        ('{"kind": "cat"}', "model-does-not-fit"),
        ('{"kind": "host", "labels": ["a", "b"], "threshold": 0.5}', "model-does-not-fit"),
        ('{"kind": "flow", "labels": ["a"], "threshold": 0.5}', "model-does-not-fit"),
        ('{"kind": "flow", "labels": ["a", "b"], "threshold": "x"}', "model-does-not-fit"),
    ],
)
async def test_a_schema_that_is_none_or_does_not_fit_registers_nothing(room: DataRoom, schema: str, code: str) -> None:
    with pytest.raises((InvalidInput, Refused)) as caught:
        await room.model("flows", flow_model(**BARE), schema=schema)
    assert caught.value.code == code
    assert await room.registry.versions() == ()
    assert room.leftovers() == []
