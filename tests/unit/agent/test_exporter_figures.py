"""What ``/metrics`` says of exporters: who, how much, what is missing, and never too many of them."""

from __future__ import annotations

from tests.support.captures import capture_datagrams
from tests.support.flow_packets import v5, v5_record
from tests.support.promlint import parse, problems
from vedette.agent.adapters.telling.exporter_figures import MOST_EXPORTERS, families_exporters
from vedette.agent.domain.metrics import render
from vedette.models.flows.netflow import FlowDecoder


def values(decoder: FlowDecoder, name: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and values of one family."""
    page = render(families_exporters(decoder)).decode()
    assert problems(page) == []
    metric = parse(page).get(f"vedette_agent_{name}")
    return [] if metric is None else [(dict(labels), value) for _, labels, value in metric.series]


def test_an_exporter_is_shown_with_its_records_and_what_is_missing() -> None:
    decoder = FlowDecoder()
    datagrams = capture_datagrams("base/softflowd-ipfix")
    decoder.decode_many(datagrams[:500] + datagrams[510:])
    labels = {"exporter": datagrams[0].source, "version": "10", "domain": "0"}
    assert values(decoder, "exporter_records_total") == [(labels, decoder.counters.records)]
    assert values(decoder, "exporter_sequence_gaps_total") == [(labels, 1)]
    whole = FlowDecoder()
    missing = len(whole.decode_many(datagrams)) - decoder.counters.records
    assert values(decoder, "exporter_lost_total") == [(labels | {"unit": "records"}, missing)]
    assert values(decoder, "exporter_sequence_credible") == [(labels, 1)]


def test_numbers_that_tell_nothing_are_said_to_and_claim_no_loss() -> None:
    decoder = FlowDecoder()
    for _ in range(20):
        decoder.decode(v5(v5_record(), sequence=0), "192.0.2.1", 0)
    assert [value for _, value in values(decoder, "exporter_sequence_credible")] == [0]
    assert values(decoder, "exporter_lost_total") == []


def test_ports_of_one_exporter_are_one_and_domains_are_not() -> None:
    decoder = FlowDecoder()
    for port in (1, 2, 3):
        for engine in (0, 1):
            decoder.decode(v5(v5_record(), sequence=0, engine=(0, engine), sampling=engine * 100), "::1", 5, port)
    assert values(decoder, "exporters") == [({}, 2)]
    assert [value for _, value in values(decoder, "exporter_datagrams_total")] == [3, 3]
    assert [value for _, value in values(decoder, "exporter_sampling_ratio")] == [1, 100]


def test_a_flood_of_exporters_neither_grows_the_page_nor_hides_the_first() -> None:
    decoder = FlowDecoder()
    for number in range(3 * MOST_EXPORTERS):
        decoder.decode(v5(v5_record()), f"10.0.{number >> 8}.{number & 255}", number)
    shown = values(decoder, "exporter_records_total")
    assert [labels["exporter"] for labels, _ in shown] == [f"10.0.0.{number}" for number in range(MOST_EXPORTERS)]
    assert values(decoder, "exporters") == [({}, 3 * MOST_EXPORTERS)]
