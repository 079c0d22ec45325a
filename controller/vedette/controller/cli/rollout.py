"""Verbs on rollouts."""

from __future__ import annotations

from collections import Counter

import click

from vedette.controller.cli import complete
from vedette.controller.cli.frame import noun, verb
from vedette.controller.cli.output import Column
from vedette.controller.cli.problems import Exit, Usage
from vedette.controller.cli.progress import bar, fit, terminal_size
from vedette.controller.cli.session import Session, current
from vedette.controller.cli.words import ago, clean, count, seconds, when
from vedette.wire import views
from vedette.wire.views import MemberState, RolloutState

_MAX_S = 2**32 - 1
_ENDED = (RolloutState.SUCCEEDED, RolloutState.STOPPED, RolloutState.ABORTED)

rollout = noun(
    "rollout",
    "Move agents to a version in waves, and watch it.",
    "vedette rollout start flow-threat:2 --to site=paris --waves 1,25%,100%",
    "vedette rollout watch 7",
)


@verb(
    rollout,
    "start",
    "Move agents to MODEL:VERSION in waves. Returns at once; it stops by itself at the first failure.",
    "vedette rollout start flow-threat:2 --to site=paris",
    "vedette rollout start flow-threat:2 --to '' --waves 1,25%,100% --soak 10m",
)
@click.argument("version", metavar="MODEL:VERSION", shell_complete=complete.versions)
@click.option(
    "--to",
    "selector",
    required=True,
    metavar="SELECTOR",
    help="Which agents; '' is everyone.",
    shell_complete=complete.selectors,
)
@click.option(
    "--waves",
    default="1,25%,100%",
    show_default=True,
    metavar="LIST",
    help="How many agents each wave takes: counts or shares of everyone.",
)
@click.option(
    "--soak", default="30s", show_default=True, metavar="TIME", help="How long a wave must stay well before the next."
)
@click.option(
    "--timeout", default="10m", show_default=True, metavar="TIME", help="How long an agent may go without progress."
)
def start(version: str, selector: str, waves: str, soak: str, timeout: str) -> None:
    """Start a rollout."""
    from vedette.wire.convert import ROLLOUT
    from vedette.wire.v1 import admin_pb2

    session = current()
    request = admin_pb2.StartRolloutRequest(
        version=version,
        selector=selector,
        waves=[part.strip() for part in waves.split(",")],
        soak_s=_bounded(soak, "--soak"),
        timeout_s=_bounded(timeout, "--timeout"),
    )
    started = ROLLOUT.from_wire(session.client.ask("StartRollout", request))
    if session.output.is_json:
        session.output.json(started)
        return
    agents = sum(len(wave.members) for wave in started.waves)
    session.output.line(
        f"Rollout {started.rollout} started: {started.version} to {_whom(started)},"
        f" {count(agents, 'agent')} in {count(len(started.waves), 'wave')}."
    )
    session.output.line(f"Watch it: vedette rollout watch {started.rollout}")


def _bounded(text: str, what: str) -> int:
    length = seconds(text, what)
    if length > _MAX_S:
        raise Usage(f"{what} is {length} s", f"at most {_MAX_S} s", f"example: {what} 10m")
    return length


def _whom(item: views.Rollout) -> str:
    return item.selector or "everyone"


@verb(rollout, "ls", "List the newest rollouts.", "vedette rollout ls")
def ls() -> None:
    """List rollouts."""
    from vedette.wire.convert import ROLLOUT
    from vedette.wire.v1 import admin_pb2

    session = current()
    answer = session.client.ask("ListRollouts", admin_pb2.ListRolloutsRequest())
    items = [ROLLOUT.from_wire(item) for item in answer.rollouts]
    out = session.output
    if out.is_json:
        out.json(items)
    elif not items:
        out.line("No rollouts yet. Start one: vedette rollout start MODEL:VERSION --to SELECTOR")
    else:
        columns = (
            Column("ROLLOUT"), Column("VERSION"), Column("TO", 2, free=True), Column("STATE"),
            Column("MOVED", 1, right=True), Column("STARTED", 3), Column("BY", 5), Column("WHY", 4, free=True),
        )  # fmt: skip
        out.table(columns, [_row(item, session) for item in items])


def _row(item: views.Rollout, session: Session) -> list[str]:
    states = [member.state for wave in item.waves for member in wave.members]
    moved = f"{states.count(MemberState.MOVED)}/{len(states)}" if states else "–"
    started = ago(item.started, session.now())
    return [item.rollout, item.version, _whom(item), str(item.state), moved, started, item.started_by, item.reason]


@verb(
    rollout,
    "show",
    "Show a rollout: its waves, every agent that has not simply moved, and what happened.",
    "vedette rollout show 7",
)
@click.argument("rollout_id", metavar="ID", shell_complete=complete.rollouts)
def show(rollout_id: str) -> None:
    """Show a rollout."""
    session = current()
    item = _ask(session, "GetRollout", rollout_id)
    out = session.output
    if out.is_json:
        out.json(item)
        return
    for line in screen(item):
        out.line(line)
    members = [(place, member) for place, wave in enumerate(item.waves, 1) for member in wave.members]
    told = [
        [str(place), member.agent, str(member.state), member.reason] for place, member in members if _is_news(member)
    ]
    if told:
        out.line()
        out.table((Column("WAVE"), Column("AGENT"), Column("STATE"), Column("WHY", 1, free=True)), told[:_MOST_TOLD])
    if len(told) > _MOST_TOLD:
        out.note(f"{len(told) - _MOST_TOLD:,} more agents; --output json has all.")
    out.line()
    for event in item.events:
        out.line(f"{when(event.at)}   {clean(event.text)}")


_MOST_TOLD = 50


def _is_news(member: views.Member) -> bool:
    return member.state not in (MemberState.MOVED, MemberState.WAITING) or bool(member.reason)


def screen(item: views.Rollout) -> list[str]:
    """Return a rollout as lines: head, a bar a wave, counts, reason."""
    agents = sum(len(wave.members) for wave in item.waves)
    head = f"Rollout {item.rollout}   {item.version} to {_whom(item)} ({count(agents, 'agent')})"
    lines = [f"{head}   {item.state}, started {when(item.started)} by {item.started_by}"]
    lines += [_wave_line(place, wave) for place, wave in enumerate(item.waves, 1)]
    states = Counter(member.state for wave in item.waves for member in wave.members)
    named = (MemberState.UNREACHABLE, MemberState.FAILED, MemberState.REFUSED)
    lines.append(" " + " · ".join(f"{state} {states[state]}" for state in named))
    if item.reason:
        lines.append(f" {clean(item.reason)}")
    return lines


def _wave_line(place: int, wave: views.Wave) -> str:
    states = Counter(member.state for member in wave.members)
    moved, total = states[MemberState.MOVED], len(wave.members)
    soak = f" until {when(wave.soak_until)}" if wave.state == "soaking" else ""
    doing = Counter(member.reason for member in wave.members if member.state is MemberState.ASSIGNED and member.reason)
    busy = " · ".join(f"{n} {clean(reason)}" for reason, n in doing.most_common(2))
    return (
        f" wave {place}  {bar(moved / total if total else 1.0)}  {moved}/{total}   {wave.state}{soak}   {busy}".rstrip()
    )


@verb(
    rollout,
    "watch",
    "Follow a rollout until it has ended. Exit code 0 when it succeeded, 1 when it was stopped or aborted.",
    "vedette rollout watch 7",
)
@click.argument("rollout_id", metavar="ID", shell_complete=complete.rollouts)
def watch(rollout_id: str) -> int:
    """Follow a rollout."""
    from vedette.wire.convert import ROLLOUT
    from vedette.wire.v1 import admin_pb2

    session = current()
    view = _Follower(session)
    last: views.Rollout | None = None
    try:
        for message in session.follow("WatchRollout", admin_pb2.GetRolloutRequest(rollout=rollout_id)):
            last = ROLLOUT.from_wire(message)
            view.show(last)
    except KeyboardInterrupt:
        session.output.note(
            f"\nThe rollout goes on. vedette rollout watch {rollout_id} · pause {rollout_id} · abort {rollout_id}"
        )
        return Exit.INTERRUPTED
    if last is None or last.state not in _ENDED:
        last = _ask(session, "GetRollout", rollout_id)
    return _ended(session, last)


def _ended(session: Session, last: views.Rollout) -> int:
    if session.output.is_json:
        session.output.json(last)
    else:
        for line in screen(last):
            session.output.line(line)
    return Exit.DONE if last.state is RolloutState.SUCCEEDED else Exit.FAILED


class _Follower:
    """Shows a rollout that moves: redrawn in place on a terminal, else one line for each thing that happened."""

    def __init__(self, session: Session) -> None:
        import sys

        self._stream = sys.stderr
        self._session = session
        self._lines = 0
        self._told = 0

    def show(self, item: views.Rollout) -> None:
        """Show the rollout as it is now."""
        if not self._stream.isatty():
            for event in item.events[self._told :]:
                self._session.output.note(f"{when(event.at)}   {clean(event.text)}")
            self._told = len(item.events)
            return
        self._erase()
        if item.state in _ENDED:
            return
        note = f"Leave with Ctrl-C: the rollout goes on. vedette rollout pause {item.rollout} · abort {item.rollout}"
        lines = self._cut([*screen(item), note])
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._lines = len(lines)

    def _cut(self, lines: list[str]) -> list[str]:
        """Return lines that take one row each: a wrapped one could not be erased."""
        columns, rows = terminal_size(self._stream)
        return [fit(line, columns) for line in lines[: rows - 1]]

    def _erase(self) -> None:
        self._stream.write(f"\x1b[{self._lines}F\x1b[J" if self._lines else "")
        self._stream.flush()
        self._lines = 0


@verb(
    rollout,
    "pause",
    "Pause a rollout; agents that were assigned and have not moved keep what they had.",
    "vedette rollout pause 7",
)
@click.argument("rollout_id", metavar="ID", shell_complete=complete.rollouts)
def pause(rollout_id: str) -> None:
    """Pause a rollout."""
    _command("PauseRollout", rollout_id, f"Go on: vedette rollout resume {rollout_id}")


@verb(rollout, "resume", "Let a paused rollout go on.", "vedette rollout resume 7")
@click.argument("rollout_id", metavar="ID", shell_complete=complete.rollouts)
def resume(rollout_id: str) -> None:
    """Let a paused rollout go on."""
    _command("ResumeRollout", rollout_id, f"Watch it: vedette rollout watch {rollout_id}")


@verb(rollout, "abort", "End a rollout; agents that have moved keep the version.", "vedette rollout abort 7")
@click.argument("rollout_id", metavar="ID", shell_complete=complete.rollouts)
def abort(rollout_id: str) -> None:
    """End a rollout."""
    _command("AbortRollout", rollout_id, f"What became of it: vedette rollout show {rollout_id}")


def _command(method: str, rollout_id: str, then: str) -> None:
    session = current()
    item = _ask(session, method, rollout_id)
    if session.output.is_json:
        session.output.json(item)
        return
    states = Counter(member.state for wave in item.waves for member in wave.members)
    session.output.line(
        f"Rollout {item.rollout} is {item.state}: {states[MemberState.MOVED]} of {states.total()} moved."
    )
    session.output.line(then)


def _ask(session: Session, method: str, rollout_id: str) -> views.Rollout:
    from vedette.wire.convert import ROLLOUT
    from vedette.wire.v1 import admin_pb2

    return ROLLOUT.from_wire(session.client.ask(method, admin_pb2.GetRolloutRequest(rollout=rollout_id)))
