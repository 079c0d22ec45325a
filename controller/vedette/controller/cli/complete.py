"""Live words for the shell: agents, models, versions, rollouts, datasets. Silence when nobody answers.

Whoever presses TAB wants words or nothing: whatever goes wrong here, from a settings file that is not TOML to a
controller that never answers, is an empty list within a second. click's own scripts serve fish and, but for
one line, zsh; bash has one here, because click's takes the words as bash cuts them: at the ``:`` of a version and the
``=`` of a label.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, split_arg_string

from vedette.controller.cli.session import Session, current

_PATIENCE_S = 0.6
"""A person waits at a TAB; words that come later are worth nothing. Starting takes 0.3 s besides."""

_BASH = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} word typed= kind value
    # bash ends words at these too, unless COMP_WORDBREAKS was changed, and replaces only what stands behind the last.
    local breaks=${COMP_WORDBREAKS//[^:=@]/}
    word=${line##*[[:space:]]}
    if [[ -n $breaks && $word == *[$breaks]* ]]; then
        typed=${word%%"${word##*[$breaks]}"}
    fi
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("${value#"$typed"}") ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
        esac
    done < <(env COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    """Completion for bash that reads the whole line and not the words that bash cut it into."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Skip click's question to the bash of this machine: the script may be meant for another."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is being typed, and that one."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        return (words, "") if not words or line[-1:].isspace() else (words[:-1], words[-1])


class _Zsh(ZshComplete):
    """Completion for zsh that works each time; click's, installed as a file, does nothing at every second call."""

    source_template = ZshComplete.source_template.replace(
        "$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _%(prog_name)s"
    )


add_completion_class(_Bash)
add_completion_class(_Zsh)

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _live(words: Callable[[Session], list[tuple[str, str]]]) -> Complete:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        with context.scope(cleanup=False):
            try:
                found = words(current())
            except Exception:  # a stack trace between two words of a command line helps nobody
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


def _labels(session: Session) -> list[tuple[str, str]]:
    found = _ask(session, "ListAgents", "ListAgentsRequest").agents
    labels = sorted({(key, value) for agent in found for key, value in agent.labels.items()})
    return [(f"{key}={value}" if value else key, "") for key, value in labels]


def _selectors(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the last term of a selector: the terms before it stay as they are."""
    before, comma, term = incomplete.rpartition(",")
    sign = term[: len(term) - len(term.lstrip("! "))]
    found = labels(context, parameter, term.removeprefix(sign))
    return [CompletionItem(f"{before}{comma}{sign}{item.value}", help=item.help) for item in found]


agents = _live(_agents)
models = _live(_models)
versions = _live(_versions)
rollouts = _live(_rollouts)
datasets = _live(_datasets)
snapshots = _live(_snapshots)
runs = _live(_runs)
tokens = _live(_tokens)
labels = _live(_labels)
selectors = _selectors
