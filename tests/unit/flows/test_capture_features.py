"""The features of real captures: the same however the datagrams arrive, and alike whoever exported them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.captures import capture_datagrams
from tests.support.flow_training import capture_flows, capture_labels, capture_records
from tests.support.flows import assert_same, cut, feed, joined
from vedette.models.flows.extract import FLOW_SCHEMA, FlowExtractor
from vedette.models.flows.netflow import FlowDecoder

_FORMS = ("softflowd-v5", "softflowd-v9", "softflowd-ipfix", "softflowd-ipfix-biflow", "pmacct-v9")


@pytest.mark.parametrize("name", ["shifted/softflowd-v9", "shifted/pmacct-v9"])
def test_datagram_by_datagram_at_the_recorded_pace_gives_what_training_saw(name: str) -> None:
    decoder, extractor, batches = FlowDecoder(), FlowExtractor(), []
    for at_ns, source, _, payload in capture_datagrams(name):
        now_ms = at_ns // 1_000_000
        batches.append(extractor.advance(now_ms=now_ms))
        batches.append(extractor.push(decoder.decode(payload, source, now_ms), now_ms=now_ms))
    batches.append(extractor.flush())
    assert_same(joined([batch for batch in batches if batch is not None]), capture_flows(name))
    assert extractor.counters.reunited == 0


@pytest.mark.parametrize("size", [100, 1024])
def test_batches_of_records_give_what_training_saw(size: int) -> None:
    name = "base/softflowd-v9"
    assert_same(joined(feed(FlowExtractor(), cut(capture_records(name), size))), capture_flows(name))


def test_all_exporters_of_one_network_report_the_same_flows() -> None:
    counts = {form: len(capture_flows(f"base/{form}")) for form in _FORMS}
    assert max(counts.values()) - min(counts.values()) < 0.001 * min(counts.values()), counts


def test_clients_and_servers_are_found_whoever_exports() -> None:
    for form in _FORMS:
        flows = capture_flows(f"base/{form}").flows
        served = np.isin(flows["dst_lo"] & np.uint64(0xFF), (10, 11, 12))  # the three servers of the captures
        assert served.mean() > 0.9, form


def test_features_of_two_exporters_agree_but_for_their_clocks() -> None:
    one, other = (capture_flows(f"base/{form}") for form in ("softflowd-ipfix-biflow", "softflowd-v5"))
    column = FLOW_SCHEMA.index("source_flows_60s")
    quantiles = np.linspace(0.05, 0.95, 10)
    got = [np.quantile(batch.features[:, column], quantiles) for batch in (one, other)]
    np.testing.assert_allclose(got[0], got[1], rtol=0.15, atol=1.0)


def test_a_scan_stands_out_in_the_fan_out_of_its_source() -> None:
    batch = capture_flows("base/softflowd-v9")
    labels = np.array(capture_labels("base/softflowd-v9", batch.flows))
    ports = batch.features[:, FLOW_SCHEMA.index("source_ports")]
    assert np.median(ports[labels == "scan_syn"]) > 20 * np.median(ports[labels == "benign"])
