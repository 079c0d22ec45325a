"""How a running agent's parts stand, as plain JSON values: what ``status`` prints and ``doctor`` judges.

Everything is relative to now, in seconds on the monotonic clock or the receiver's own: who reads it may have another
time of day.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vedette.agent.adapters.host.pressure import PressureWatch
from vedette.agent.adapters.host.usage import proportional_bytes
from vedette.agent.adapters.inference.serving import ActiveModel, Serving
from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sources.collector import Collector
from vedette.agent.adapters.storage.spool import Spool
from vedette.agent.domain.clock import TrustedClock
from vedette.agent.settings import Settings
from vedette.models.flows.netflow import ExporterStatus

_MOST_EXPORTERS = 64
_STARTED_S = time.monotonic()


def process_standing(clock: TrustedClock) -> dict[str, Any]:
    """Return who the agent is to this host, and its clock against the controller's word (None before there was one)."""
    ahead = clock.ahead()
    return {
        "pid": os.getpid(),
        "up_s": round(time.monotonic() - _STARTED_S, 1),
        "clock_ahead_s": None if ahead is None else round(ahead.total_seconds(), 3),
    }


def flow_standing(settings: Settings, collector: Collector | None, pipeline: FlowPipeline) -> dict[str, Any]:
    """Return what is heard on the flow port; ``listen`` None is off."""
    if collector is None or settings.netflow.listen is None:
        return {"listen": None, "exporters": []}
    host, port = settings.netflow.listen
    known = sorted(pipeline.decoder.status(), key=lambda status: -status.heard_ms)
    now_ms = time.time_ns() // 1_000_000
    return {
        "listen": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "buffer_asked_bytes": settings.netflow.receive_buffer_bytes,
        "buffer_granted_bytes": collector.buffer_bytes,
        "dropped_kernel": collector.counters.dropped_kernel,
        "dropped_queue": collector.counters.dropped_queue,
        "exporters_known": len(known),
        "exporters": [_exporter(status, now_ms) for status in known[:_MOST_EXPORTERS]],
    }


def _exporter(status: ExporterStatus, now_ms: int) -> dict[str, Any]:
    return {
        "address": status.exporter.address,
        "version": status.exporter.version,
        "domain": status.exporter.domain,
        "heard_s_ago": max(0.0, round((now_ms - status.heard_ms) / 1000, 1)) if status.heard_ms else None,
        "datagrams": status.datagrams,
        "records": status.records,
        "sequence_gaps": status.sequence_gaps,
        "clock_ahead_s": round(status.clock_ahead_ms / 1000, 1),
        "sampling": status.sampling,
        "templates": status.templates,
        "templates_missing": list(status.missing),
    }


def model_standing(serving: Serving, clock: TrustedClock, budget_bytes: int) -> dict[str, dict[str, Any]]:
    """Return what each slot's active build costs and when it was tested, by slot."""
    return {slot: _model(model, clock.monotonic(), budget_bytes) for slot, model in serving.actives.items()}


def _model(model: ActiveModel, now_s: float, budget_bytes: int) -> dict[str, Any]:
    return {
        "workers": [{"pid": pid, "memory_bytes": proportional_bytes(pid)} for pid in model.runner.pids],
        "memory_budget_bytes": budget_bytes,
        "requests": model.stats.requests,
        "errors": model.stats.errors,
        "self_test_s_ago": None if model.tested_s is None else round(now_s - model.tested_s, 1),
    }


def pressure_standing(watch: PressureWatch) -> dict[str, Any]:
    """Return what is given up under pressure."""
    return {"level": watch.pressure.level.name.lower(), "flow_share": watch.pressure.share}


def spool_standing(spool: Spool, clock: TrustedClock, budget_bytes: int) -> dict[str, Any]:
    """Return what telemetry waits; ``oldest_s_ago`` None when nothing does or nobody knows."""
    waiting = spool.waiting()
    age = None if waiting.oldest is None else (clock.now() - waiting.oldest).total_seconds()
    return {
        "waiting_bytes": spool.bytes_waiting,
        "budget_bytes": budget_bytes,
        "batches": waiting.batches,
        "oldest_s_ago": None if age is None else max(0.0, round(age, 1)),
        "batches_dropped": spool.batches_dropped,
    }
