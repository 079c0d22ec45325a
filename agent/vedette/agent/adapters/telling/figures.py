"""Every figure of a running agent in one place: counters for telemetry windows, families for ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

from vedette.agent.adapters.fleet.artifacts import Downloads
from vedette.agent.adapters.fleet.link import Link, LinkState
from vedette.agent.adapters.fleet.reconciler import Reconciler
from vedette.agent.adapters.fleet.telemetry import Reporter
from vedette.agent.adapters.host.pressure import PressureWatch
from vedette.agent.adapters.host.usage import UsageMeter
from vedette.agent.adapters.inference.serving import Serving
from vedette.agent.adapters.oip.counts import RequestCounts
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sinks.fanout import Fanout, families_sinks
from vedette.agent.adapters.sources.collector import Collector
from vedette.agent.adapters.sources.host_metrics import HostSource
from vedette.agent.adapters.sources.logs import LogSources, families_log_sources
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.adapters.telling.exporter_figures import families_exporters
from vedette.agent.adapters.telling.process_figures import families_process
from vedette.agent.domain.conditions import Conditions
from vedette.agent.domain.metrics import Family, Sample, histogram, single
from vedette.models.profile import LATENCY_EDGES_MS
from vedette.models.version import __version__


class Figures:
    """Reads the parts; those that are off are None."""

    def __init__(
        self,
        *,
        serving: Serving,
        pipeline: FlowPipeline,
        collector: Collector | None,
        logs: LogSources,
        host: HostSource | None,
        sinks: Fanout,
        spool: Spool,
        conditions: Conditions,
        usage: UsageMeter,
        pressure: PressureWatch,
        requests: RequestCounts,
    ) -> None:
        self._serving = serving
        self._pipeline = pipeline
        self._collector = collector
        self._logs = logs
        self._host = host
        self._sinks = sinks
        self._spool = spool
        self._conditions = conditions
        self._usage = usage
        self._pressure = pressure
        self._requests = requests
        self.link: Link | None = None
        self.downloads: Downloads | None = None
        self.reporter: Reporter | None = None
        self.reconciler: Reconciler | None = None

    def restarts(self) -> dict[str, int]:
        """Return how often each slot's worker was replaced."""
        return {slot: model.restarts for slot, model in self._serving.actives.items()}

    def counters(self) -> dict[str, int]:
        """Return what only grows, by plain names; they travel in telemetry windows and in ``status``."""
        flows, decoded, made = (
            self._pipeline.counters,
            self._pipeline.decoder.counters,
            self._pipeline.extractor.counters,
        )
        found = {
            "records": decoded.records,
            "records_without_template": decoded.unknown_template_sets,
            "datagrams_malformed": sum(decoded.malformed.values()),
            "sequence_gaps": decoded.sequence_gaps,
            "flows": flows.flows,
            "flows_unscored": flows.flows_unscored,
            "flows_shed": flows.flows_shed,
            "flows_dropped": flows.flows_dropped,
            "batches_failed": flows.batches_failed,
            "flows_old": made.old,
            "flows_future": made.future,
            "rows_scored": flows.rows_scored,
            "rows_flagged": flows.rows_flagged,
            "rows_failed": flows.rows_failed,
            "rows_invalid": flows.rows_invalid,
            "verdicts_without_evidence": flows.verdicts_without_evidence,
            "requests_answered": self._requests.answered,
            "requests_refused": self._requests.refused,
            "telemetry_batches_merged": self._spool.batches_merged,
            "telemetry_batches_dropped": self._spool.batches_dropped,
        }
        if self._collector is not None:
            collected = self._collector.counters
            found |= {
                "datagrams": collected.datagrams,
                "datagrams_dropped": collected.dropped_queue + collected.dropped_kernel,
            }
        if self._host is not None:
            done = self._host.counters
            found |= {"host_rows": done.rows, "host_rows_scored": done.scored}
            found |= {"host_rows_flagged": done.flagged, "host_rows_failed": done.failed}
        return found | self._logs.counters() | self._sinks.counters()

    def families(self) -> Iterator[Family]:
        """Return everything for ``/metrics``."""
        yield Family("vedette_agent_build_info", "gauge", "Version.", (Sample(1, {"version": __version__}),))
        for name, value in self.counters().items():
            if name in COUNTERS:  # the others are told with labels
                yield single(f"vedette_agent_{name}_total", "counter", COUNTERS[name], value)
        yield from self._collected()
        yield from self._served()
        yield from self._pressure.families()
        yield from self._requests.families()
        yield from self._linked()
        yield from self._process()

    def _collected(self) -> Iterator[Family]:
        malformed = self._pipeline.decoder.counters.malformed
        reasons = [Sample(count, {"reason": str(reason)}) for reason, count in sorted(malformed.items())]
        yield Family("vedette_agent_datagrams_malformed_total", "counter", "Faults in datagrams.", reasons)
        yield from families_exporters(self._pipeline.decoder)
        if self._collector is not None:
            where = {"queue": self._collector.counters.dropped_queue, "kernel": self._collector.counters.dropped_kernel}
            dropped = [Sample(count, {"where": place}) for place, count in where.items()]
            yield Family("vedette_agent_datagrams_dropped_total", "counter", "Datagrams lost.", dropped)
            granted = self._collector.buffer_bytes
            yield single("vedette_agent_receive_buffer_bytes", "gauge", "Socket buffer the kernel granted.", granted)
        yield from families_log_sources(self._logs)
        yield from families_sinks(self._sinks)

    def _served(self) -> Iterator[Family]:
        actives = self._serving.actives
        info = [
            Sample(1, {"slot": slot, "model": m.ref.model, "version": str(m.ref.version), "build": m.ref.build})
            for slot, m in actives.items()
        ]
        yield Family("vedette_agent_model_info", "gauge", "What is active in each slot.", info)
        rows = [Sample(model.stats.rows, {"slot": slot}) for slot, model in actives.items()]
        yield Family("vedette_agent_model_rows_total", "counter", "Rows the active build answered.", rows)
        errors = [Sample(model.stats.errors, {"slot": slot}) for slot, model in actives.items()]
        yield Family("vedette_agent_model_errors_total", "counter", "Requests it did not answer.", errors)
        restarts = [Sample(count, {"slot": slot}) for slot, count in self.restarts().items()]
        yield Family("vedette_agent_worker_restarts_total", "counter", "Workers replaced.", restarts)
        text = "Active builds whose file was damaged on the disk."
        yield single("vedette_agent_models_damaged_total", "counter", text, self._serving.models_damaged)
        series = {slot: model.stats.latency_counts.tolist() for slot, model in actives.items()}
        sums = {slot: model.stats.waited_s for slot, model in actives.items()}
        edges = [edge / 1000 for edge in LATENCY_EDGES_MS.tolist()]
        yield histogram(
            "vedette_agent_inference_latency_seconds", "Time a row waited for its answer.", edges, series, sums
        )

    def _linked(self) -> Iterator[Family]:
        conditions = [
            Sample(1, {"code": held.code, "severity": held.severity.value}) for held in self._conditions.current()
        ]
        yield Family("vedette_agent_condition", "gauge", "Conditions that hold.", conditions)
        yield single("vedette_agent_spool_bytes", "gauge", "Telemetry that waits.", self._spool.bytes_waiting)
        yield from self._spooled()
        damaged = self._spool.times_damaged
        yield single(
            "vedette_agent_spool_damaged_total", "counter", "Spools begun anew, their telemetry lost.", damaged
        )
        if self.reconciler is not None:
            ends = [
                Sample(count, {"outcome": outcome.value, "code": code})
                for (outcome, code), count in sorted(self.reconciler.outcomes.items())
            ]
            yield Family("vedette_agent_assignments_total", "counter", "Assignments by what became of them.", ends)
        if self.link is not None:
            is_up = self.link.status.state is LinkState.CONNECTED
            yield single("vedette_agent_link_connected", "gauge", "1 while the controller is reached.", int(is_up))
            yield single("vedette_agent_link_sessions_total", "counter", "Sessions begun.", self.link.sessions)
            why = [Sample(count, {"code": code}) for code, count in sorted(self.link.failures.items())]
            yield Family("vedette_agent_link_failures_total", "counter", "Sessions ended or refused, and why.", why)
        if self.downloads is not None:
            received = self.downloads.bytes_received
            yield single("vedette_agent_download_bytes_total", "counter", "Bytes of models received.", received)
            text, repeated = "Bytes of models received that had been received before.", self.downloads.bytes_repeated
            yield single("vedette_agent_download_repeated_bytes_total", "counter", text, repeated)
            text = "Bytes of models a second, of the last ten seconds."
            yield single("vedette_agent_download_bytes_per_second", "gauge", text, self.downloads.bytes_per_s)
            damaged = self.downloads.damaged
            yield single("vedette_agent_downloads_damaged_total", "counter", "Downloads with a wrong byte.", damaged)
        if self.reporter is not None:
            sent = self.reporter.bytes_sent
            yield single("vedette_agent_telemetry_sent_bytes_total", "counter", "Bytes of telemetry sent.", sent)

    def _spooled(self) -> Iterator[Family]:
        waiting = self._spool.waiting()
        yield single("vedette_agent_spool_batches", "gauge", "Batches that wait.", waiting.batches)
        text = "Batches that became part of one that waits."
        yield single("vedette_agent_spool_merged_batches", "gauge", text, waiting.merged)
        if waiting.oldest is not None:
            oldest = waiting.oldest.timestamp()
            yield single("vedette_agent_spool_oldest_timestamp_seconds", "gauge", "Start of its oldest window.", oldest)

    def _process(self) -> Iterator[Family]:
        yield from families_process()
        workers = len(self._serving.worker_pids)
        yield single("vedette_agent_workers", "gauge", "Worker processes.", workers)
        text = "CPU of all processes, as of the last telemetry window."
        yield single("vedette_agent_cpu_seconds_total", "counter", text, self._usage.cpu_seconds_total)


COUNTERS = {
    "records": "Flow records decoded.",
    "records_without_template": "Sets of records whose template was not known yet.",
    "sequence_gaps": "Gaps in exporters' sequence numbers: suspected loss.",
    "flows": "Biflows made of records.",
    "flows_unscored": "Flows that came while no flow model was active.",
    "flows_shed": "Flows not scored because under pressure only a share of the conversations is.",
    "flows_dropped": "Flows given up because inference was too slow.",
    "batches_failed": "Batches of datagrams lost to a fault of the agent's own; please report it.",
    "flows_old": "Records that ended over an hour before their export.",
    "flows_future": "Records that ended over a minute after their export.",
    "rows_scored": "Answers about flows; a flow counts once a slot.",
    "rows_flagged": "Flows at or above the threshold.",
    "rows_failed": "Flows that a model failed to answer.",
    "rows_invalid": "Answers that were no number or no class of the model.",
    "verdicts_without_evidence": "Flagged flows that were not explained.",
    "requests_answered": "Requests of programs that got an answer.",
    "requests_refused": "Requests of programs that got an error, whoever's it was.",
    "telemetry_batches_merged": "Batches that became part of a longer one, with no count lost.",
    "telemetry_batches_dropped": "Telemetry given up before it was sent.",
    "datagrams": "Datagrams received.",
    "host_rows": "Rows of host metrics.",
    "host_rows_scored": "Answers about them; a row counts once a slot.",
    "host_rows_flagged": "Rows of host metrics at or above the threshold.",
    "host_rows_failed": "Rows of host metrics that a model failed to answer.",
}
"""What is said of each counter that is told by its plain name."""
