"""A feature schema is what its canonical bytes say, and nothing else is read."""

from __future__ import annotations

import json

import pytest

from vedette.models.documents import DocumentError
from vedette.models.flows.extract import FLOW_SCHEMA
from vedette.models.schema import MAX_FEATURES, MAX_SCHEMA_BYTES, Feature, FeatureSchema, SchemaError

_ONE = FeatureSchema("s", (Feature("a", "s", "seconds – von früher"), Feature("b", "", "", "int64")))


@pytest.mark.parametrize("schema", [_ONE, FLOW_SCHEMA])
def test_schema_reads_back_from_its_bytes(schema: FeatureSchema) -> None:
    assert FeatureSchema.from_bytes(schema.to_bytes()) == schema
    assert FeatureSchema.from_bytes(schema.to_bytes()).digest == schema.digest


def test_digest_follows_order_and_every_word() -> None:
    a, b = _ONE.features
    others = [
        FeatureSchema("s", (b, a)),
        FeatureSchema("t", (a, b)),
        FeatureSchema("s", (a, b), "flow"),
        FeatureSchema("s", (Feature("a", "ms", a.description), b)),
        FeatureSchema("s", (Feature("a", "s", a.description, "float64"), b)),
    ]
    assert len({_ONE.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert _ONE.digest.startswith("sha256:")


def test_flow_schema_names_no_address_port_number_or_clock() -> None:
    assert FLOW_SCHEMA.kind == "flow"
    assert len(set(FLOW_SCHEMA.names)) == len(FLOW_SCHEMA) > 60
    assert not {"src_ip", "dst_ip", "src_port", "dst_port", "start", "end", "hour"} & set(FLOW_SCHEMA.names)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[" * 10_000, id="deep"),
        pytest.param(b"[]", id="no object"),
        pytest.param(_ONE.to_bytes() + b" ", id="trailing space"),
        pytest.param(json.dumps(json.loads(_ONE.to_bytes())).encode(), id="spaces"),
        pytest.param(_ONE.to_bytes().replace(b'"kind":"tensor"', b'"kind":"text"'), id="unknown kind"),
        pytest.param(_ONE.to_bytes().replace(b"int64", b"int65"), id="unknown dtype"),
        pytest.param(_ONE.to_bytes().replace(b'"name":"b"', b'"name":"a"'), id="a name twice"),
        pytest.param(_ONE.to_bytes().replace(b'"name":"b"', b'"name":7'), id="a name that is a number"),
        pytest.param(_ONE.to_bytes().replace(b'"name":"b"', b'"name":"\\ud800"'), id="half a character"),
        pytest.param(_ONE.to_bytes().replace(b'"kind"', b'"also":1,"kind"'), id="a member more"),
        pytest.param(b" " * (MAX_SCHEMA_BYTES + 1), id="too long"),
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(DocumentError):
        FeatureSchema.from_bytes(raw)


def test_too_many_features_are_refused_with_value_and_limit() -> None:
    with pytest.raises(SchemaError, match=f"{MAX_FEATURES + 1} features, allowed 1 to {MAX_FEATURES}"):
        FeatureSchema("s", tuple(Feature(str(i), "", "") for i in range(MAX_FEATURES + 1)))


def test_an_unknown_feature_is_named() -> None:
    assert _ONE.index("b") == 1
    with pytest.raises(SchemaError, match="'c'"):
        _ONE.index("c")
