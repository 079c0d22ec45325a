"""Which log files an appliance takes flows from, by its settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vedette.agent.adapters.pipeline import FlowPipeline
from vedette.agent.adapters.sources.logs import LogSource, LogSources
from vedette.agent.domain.clock import Clock
from vedette.agent.domain.conditions import Conditions
from vedette.agent.settings import Settings
from vedette.models.flows.eve import EveParser
from vedette.models.flows.log_lines import LogParser
from vedette.models.flows.zeek import ZeekParser


def build_log_sources(settings: Settings, pipeline: FlowPipeline, conditions: Conditions, clock: Clock) -> LogSources:
    """Return all log files that are followed, each an exporter of its own."""
    made = LogSources(settings.state_dir / "positions.json", conditions, clock)
    for name, path, parser in _wanted(settings):
        exporter = pipeline.add_exporter(str(path))
        stored = made.stored(name)
        source = LogSource(name, path, parser, exporter=exporter, flows=pipeline, clock=clock, stored=stored)
        made.sources.append(source)
    return made


def _wanted(settings: Settings) -> Iterator[tuple[str, Path, LogParser]]:
    if settings.logs.eve is not None:
        yield "eve", settings.logs.eve, EveParser(settings.logs.eve_link_bytes)
    if settings.logs.zeek is not None:
        yield "zeek", settings.logs.zeek, ZeekParser()
