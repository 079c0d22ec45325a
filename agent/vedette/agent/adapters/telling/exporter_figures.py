"""What ``/metrics`` says of flow exporters: each of the first :data:`MOST_EXPORTERS` by name, all of them in sum.

An exporter is an address, a version and an observation domain; its source ports are added up, as they change whenever
it starts. The oldest that are still known are shown, so that a flood of made-up ones hides none that was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice

from vedette.agent.domain.metrics import Family, Sample, single
from vedette.models.flows.netflow import Exporter, ExporterStatus, FlowDecoder
from vedette.models.flows.sequence import Counting

MOST_EXPORTERS = 64

_Ports = list[ExporterStatus]


def families_exporters(decoder: FlowDecoder) -> Iterator[Family]:
    """Return what a decoder knows of its exporters."""
    known = sorted(decoder.status(), key=lambda status: status.index)
    exporters = [(name, list(ports)) for name, ports in groupby(known, key=lambda status: status.exporter)]
    yield single("vedette_agent_exporters", "gauge", "Exporters known now.", len(exporters))
    counters = decoder.counters
    text = "Exporters forgotten because there were too many."
    yield single("vedette_agent_exporters_forgotten_total", "counter", text, counters.exporters_evicted)
    text = "Templates forgotten because there were too many."
    yield single("vedette_agent_templates_forgotten_total", "counter", text, counters.templates_evicted)
    text = "Templates replaced by another definition of the same id."
    yield single("vedette_agent_templates_redefined_total", "counter", text, counters.templates_redefined)
    shown = dict(islice(exporters, MOST_EXPORTERS))
    yield from _counted(shown)
    yield from _sequences(shown)
    text = "Packets of which one was seen, as last told; 1 is all."
    yield _gauge("vedette_agent_exporter_sampling_ratio", text, shown, lambda ports: _newest(ports).sampling)
    text = "Unix time of the last datagram."
    yield _gauge(
        "vedette_agent_exporter_heard_timestamp_seconds", text, shown, lambda ports: _newest(ports).heard_ms / 1000
    )
    text = "How far its clock was ahead of ours in the last datagram."
    yield _gauge(
        "vedette_agent_exporter_clock_ahead_seconds", text, shown, lambda ports: _newest(ports).clock_ahead_ms / 1000
    )


def _counted(shown: dict[Exporter, _Ports]) -> Iterator[Family]:
    for name, text, field in (
        ("vedette_agent_exporter_datagrams_total", "Datagrams.", "datagrams"),
        ("vedette_agent_exporter_records_total", "Flow records.", "records"),
        ("vedette_agent_exporter_sequence_gaps_total", "Gaps in its sequence numbers.", "sequence_gaps"),
        ("vedette_agent_exporter_datagrams_late_total", "Datagrams that came late or twice.", "sequence_late"),
    ):
        samples = [Sample(sum(getattr(port, field) for port in ports), _labels(by)) for by, ports in shown.items()]
        yield Family(name, "counter", text, samples)


def _sequences(shown: dict[Exporter, _Ports]) -> Iterator[Family]:
    lost = [
        Sample(sum(port.sequence_lost for port in ports), {**_labels(name), "unit": _unit(_newest(ports).counting)})
        for name, ports in shown.items()
        if _newest(ports).counting is not None
    ]
    text = "What its sequence numbers say is missing: suspected loss."
    yield Family("vedette_agent_exporter_lost_total", "counter", text, lost)
    credible = [
        Sample(int(bool(_newest(ports).is_credible)), _labels(name))
        for name, ports in shown.items()
        if _newest(ports).is_credible is not None
    ]
    text = "1 where sequence numbers count something, 0 where they tell nothing of loss."
    yield Family("vedette_agent_exporter_sequence_credible", "gauge", text, credible)


def _gauge(name: str, text: str, shown: dict[Exporter, _Ports], value: Callable[[_Ports], float]) -> Family:
    return Family(name, "gauge", text, [Sample(value(ports), _labels(exporter)) for exporter, ports in shown.items()])


def _labels(exporter: Exporter) -> dict[str, str]:
    return {"exporter": exporter.address, "version": str(exporter.version), "domain": str(exporter.domain)}


def _newest(ports: _Ports) -> ExporterStatus:
    return max(ports, key=lambda port: port.heard_ms)


def _unit(counting: Counting | None) -> str:
    return "datagrams" if counting is Counting.DATAGRAMS else "records"
