import dataclasses
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given

from tests.support.wire_values import values_of
from vedette.wire import convert, values, views
from vedette.wire.errors import WireError
from vedette.wire.v1 import admin_pb2, enrolment_pb2, fleet_pb2, telemetry_pb2

PAIRS = {name: pair for name, pair in vars(convert).items() if isinstance(pair, convert.Pair)}


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_every_field_of_a_message_has_its_place_in_the_value(name):
    pair = PAIRS[name]
    fields = {field.name for field in dataclasses.fields(pair._value_type)}
    assert fields == set(pair._message_type.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_what_goes_over_the_wire_comes_back(name):
    pair = PAIRS[name]

    @given(values_of(pair._value_type))
    def comes_back(value):
        sent = pair.to_wire(value).SerializeToString()
        assert pair.from_wire(pair._message_type.FromString(sent)) == value

    comes_back()


@given(values_of(values.Hello | values.Status | values.GenerationResult))
def test_an_agents_word_comes_back(word):
    assert convert.agent_word_from_wire(convert.agent_word_to_wire(word)) == word


@given(values_of(values.DesiredState | values.Welcome))
def test_a_controllers_word_comes_back(word):
    assert convert.controller_word_from_wire(convert.controller_word_to_wire(word)) == word


@pytest.mark.parametrize("read", [convert.agent_word_from_wire, convert.controller_word_from_wire])
def test_an_empty_word_is_refused(read):
    empty = fleet_pb2.AgentMessage() if read is convert.agent_word_from_wire else fleet_pb2.ControllerMessage()
    with pytest.raises(WireError, match="empty or of a kind"):
        read(empty)


def windows(count: int) -> telemetry_pb2.TelemetryBatch:
    return telemetry_pb2.TelemetryBatch(windows=[telemetry_pb2.Window()] * count)


def spoiled_facts() -> fleet_pb2.Facts:
    return fleet_pb2.Facts(hostname="x" * 129)


@pytest.mark.parametrize(
    ("pair", "message", "said"),
    [
        (convert.FACTS, spoiled_facts(), "Facts.hostname is 129 characters, limit 128"),
        (convert.FACTS, fleet_pb2.Facts(cpu_features=["a"] * 257), "cpu_features has 257 entries, limit 256"),
        (convert.FACTS, fleet_pb2.Facts(cpu_features=["a" * 5000]), r"cpu_features\[0\] is 5000 characters"),
        (convert.FACTS, fleet_pb2.Facts(runtimes={"a": "b" * 5000}), r"runtimes\[a\] is 5000 characters"),
        (convert.STATUS, fleet_pb2.Status(slots=[fleet_pb2.SlotStatus(slot="a")]), r"slots\[0\].state is 0"),
        (convert.STATUS, fleet_pb2.Status(slots=[fleet_pb2.SlotStatus(state=99)]), r"slots\[0\].state is 99"),
        (convert.HELLO, fleet_pb2.Hello(), "Hello.facts is absent"),
        (
            convert.BATCH,
            telemetry_pb2.TelemetryBatch(windows=[telemetry_pb2.Window()]),
            r"windows\[0\].start is absent",
        ),
        (
            convert.BATCH,
            telemetry_pb2.TelemetryBatch(windows=[telemetry_pb2.Window()] * 65),
            "has 65 entries, limit 64",
        ),
        (convert.ENROL_REQUEST, enrolment_pb2.EnrolRequest(certificate_request=b"x" * 5000), "5000 bytes, limit 4096"),
        (convert.AGENT, admin_pb2.Agent(), "Agent.state is 0"),
    ],
)
def test_a_broken_limit_is_named_with_value_and_limit(pair, message, said):
    with pytest.raises(WireError, match=said):
        pair.from_wire(message)


def test_a_time_outside_the_calendar_is_refused():
    message = fleet_pb2.Welcome()
    message.time.seconds = 2**62
    with pytest.raises(WireError, match="outside the years"):
        convert.WELCOME.from_wire(message)


def test_a_time_without_a_zone_never_travels():
    with pytest.raises(ValueError, match="has no zone"):
        convert.WELCOME.to_wire(values.Welcome(time=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_a_time_of_another_zone_arrives_in_utc():
    at = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    arrived = convert.WELCOME.from_wire(convert.WELCOME.to_wire(values.Welcome(time=at))).time
    assert arrived == at
    assert arrived.tzinfo is UTC


def test_an_empty_nested_value_is_present():
    agent = views.Agent(state=views.AgentState.HEALTHY, facts=values.Facts())
    assert convert.AGENT.from_wire(convert.AGENT.to_wire(agent)).facts == values.Facts()


def test_fields_of_a_newer_peer_do_no_harm():
    newer = convert.WELCOME.to_wire(values.Welcome(time=datetime(2026, 1, 1, tzinfo=UTC))).SerializeToString()
    assert convert.WELCOME.from_wire(fleet_pb2.Welcome.FromString(newer + b"\xfa\x01\x03new")).status_interval_s == 0
