"""Whether an appliance judges its own metrics, by its settings."""

from __future__ import annotations

from functools import partial

from vedette.agent.adapters.pipeline import Scorer, VerdictSink
from vedette.agent.adapters.sources.host_metrics import HostSource
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.windows import Windows
from vedette.agent.settings import Settings


def build_host_source(
    settings: Settings, scorer: Scorer, sink: VerdictSink | None, windows: Windows, clock: Clock
) -> HostSource | None:
    """Return the source of host metrics; None when it is off."""
    if settings.host_interval_s == 0:
        return None
    # psutil costs a megabyte of memory: only those have it who ask for it.
    from vedette.agent.adapters.sources.host_reading import read_host

    read, interval_s = partial(read_host, settings.state_dir), float(settings.host_interval_s)
    return HostSource(read, scorer, sink, windows, clock, host=settings.name, interval_s=interval_s)
