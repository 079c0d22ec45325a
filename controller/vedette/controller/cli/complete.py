"""Live words for the shell: agents, models, versions, rollouts, datasets. Silence when nobody answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from vedette.controller.cli.problems import CliError
from vedette.controller.cli.session import Session, current

_PATIENCE_S = 2.0
"""A person waits at a TAB; words that come later are worth nothing."""

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _live(words: Callable[[Session], list[tuple[str, str]]]) -> Complete:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        with context.scope(cleanup=False):
            try:
                found = words(current())
            except CliError:
                return []
        return [CompletionItem(word, help=text) for word, text in found if word.startswith(incomplete)]

    return complete


def _ask(session: Session, method: str, request: str, **fields: Any) -> Any:
    from vedette.wire.v1 import admin_pb2

    return session.client.ask(method, getattr(admin_pb2, request)(**fields), timeout_s=_PATIENCE_S)


def _agents(session: Session) -> list[tuple[str, str]]:
    found = _ask(session, "ListAgents", "ListAgentsRequest").agents
    return [(agent.name, " ".join(f"{key}={value}" for key, value in sorted(agent.labels.items()))) for agent in found]


def _versions(session: Session) -> list[tuple[str, str]]:
    return [(item.version, item.kind) for item in _ask(session, "ListVersions", "ListVersionsRequest").versions]


def _models(session: Session) -> list[tuple[str, str]]:
    return [(name, "") for name in dict.fromkeys(word.partition(":")[0] for word, _ in _versions(session))]


def _rollouts(session: Session) -> list[tuple[str, str]]:
    found = _ask(session, "ListRollouts", "ListRolloutsRequest").rollouts
    return [(item.rollout, f"{item.version} to {item.selector or 'everyone'}") for item in found]


def _datasets(session: Session) -> list[tuple[str, str]]:
    return [(item.name, f"{item.rows} rows") for item in _ask(session, "ListDatasets", "ListDatasetsRequest").datasets]


def _snapshots(session: Session) -> list[tuple[str, str]]:
    found = _ask(session, "ListDatasets", "ListDatasetsRequest").datasets
    return [(item.snapshot, f"{item.rows} rows") for dataset in found for item in dataset.snapshots]


def _runs(session: Session) -> list[tuple[str, str]]:
    return [(item.run, item.recipe) for item in _ask(session, "ListRuns", "ListRunsRequest").runs]


def _tokens(session: Session) -> list[tuple[str, str]]:
    return [
        (item.id, f"used {item.used} of {item.uses}")
        for item in _ask(session, "ListTokens", "ListTokensRequest").tokens
    ]


def _label_keys(session: Session) -> list[tuple[str, str]]:
    found = _ask(session, "ListAgents", "ListAgentsRequest").agents
    labels = sorted({(key, value) for agent in found for key, value in agent.labels.items()})
    return [(f"{key}={value}", "") for key, value in labels]


agents = _live(_agents)
models = _live(_models)
versions = _live(_versions)
rollouts = _live(_rollouts)
datasets = _live(_datasets)
snapshots = _live(_snapshots)
runs = _live(_runs)
tokens = _live(_tokens)
labels = _live(_label_keys)
