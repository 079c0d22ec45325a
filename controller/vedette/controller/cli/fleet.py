"""Verbs on the fleet: its state, agents, tokens, telemetry, drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from vedette.controller.cli import complete
from vedette.controller.cli.data import existing_file, uploaded
from vedette.controller.cli.frame import YES, Command, Group, confirm, noun, verb
from vedette.controller.cli.output import Column
from vedette.controller.cli.problems import Usage
from vedette.controller.cli.session import Session, current
from vedette.controller.cli.words import ago, clean, count, pairs, seconds, share, size, three, when
from vedette.wire import views

MAX_EXPIRY_S = 2**32 - 1


def show_overview() -> None:
    """Show the state of the fleet and the next sensible step."""
    from vedette.wire.convert import OVERVIEW
    from vedette.wire.v1 import admin_pb2

    session = current()
    fleet = OVERVIEW.from_wire(session.client.ask("GetOverview", admin_pb2.GetOverviewRequest()))
    if session.output.is_json:
        session.output.json(fleet)
        return
    out = session.output
    out.line(
        f"Fleet  {fleet.controller_id}   {count(fleet.agents, 'agent')} · {fleet.online} online"
        f" · {fleet.need_attention} need you"
    )
    for model in fleet.models:
        out.line(_model_line(model, fleet.agents))
    _say_next(session, fleet)


def _model_line(model: views.ModelOverview, agents: int) -> str:
    active = " · ".join(f"{_full(model.model, name)} on {n}/{agents}" for name, n in sorted(model.active.items()))
    where = active or f"{model.model}:{model.newest_version} registered, on no agent"
    if not model.rows_per_hour:
        return f"{where}   no traffic in the last hour"
    rate = _rate(model.rows_per_hour)
    return f"{where}   {rate} · flagged {share(model.flagged_share)} · p99 {three(model.latency_p99_ms)} ms"


def _rate(per_hour: float) -> str:
    return f"{three(per_hour / 1000)} k rows/h" if per_hour >= 1000 else f"{three(per_hour)} rows/h"


def _full(model: str, version: str) -> str:
    return version if ":" in version else f"{model}:{version}"


def _say_next(session: Session, fleet: views.Overview) -> None:
    if fleet.next_steps:
        session.output.line("Next: " + " · ".join(fleet.next_steps))
        return
    look = ["vedette agent ls", *(f"vedette drift {model.model}" for model in fleet.models[:1]), "vedette rollout ls"]
    session.output.line("Nothing to do. Look closer: " + " · ".join(look))


status = Command(
    "status",
    callback=show_overview,
    help="Show the state of the fleet and the next sensible step.",
    short_help="Show the state of the fleet and the next sensible step",
    examples=("vedette status", "vedette status --output json"),
)

agent = noun("agent", "Look at and change agents.", "vedette agent ls", "vedette agent show edge-7")

_AGENT_COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("MODELS", 1),
    Column("LABELS", 6, free=True),
    Column("HARDWARE", 7),
    Column("FLOWS/S", 4, right=True),
    Column("P99", 5, right=True),
    Column("SEEN", 3),
    Column("NOW", 2, free=True),
)


@verb(
    agent,
    "ls",
    "List agents. A selector picks some of them.",
    "vedette agent ls",
    "vedette agent ls --selector 'site=paris,!lab'",
)
@click.option(
    "--selector",
    default="",
    metavar="E",
    help="site=s1, site in (a,b), !lab; terms joined by commas must all hold.",
    shell_complete=complete.selectors,
)
def agent_ls(selector: str) -> None:
    """List agents."""
    from vedette.wire.convert import AGENT
    from vedette.wire.v1 import admin_pb2

    session = current()
    answer = session.client.ask("ListAgents", admin_pb2.ListAgentsRequest(selector=selector))
    agents = [AGENT.from_wire(item) for item in answer.agents]
    out = session.output
    if out.is_json:
        out.json(agents)
    elif not agents and selector:
        out.line(f"No agent matches {selector!r}. All of them: vedette agent ls")
    elif not agents:
        out.line("No agents yet. Invite one: vedette token create")
    else:
        out.table(_AGENT_COLUMNS, [_agent_row(item, session) for item in agents])
        online = sum(item.state in _ONLINE for item in agents)
        out.line(f"{count(len(agents), 'agent')} · {online} online")


_ONLINE = (views.AgentState.HEALTHY, views.AgentState.BEHIND, views.AgentState.DEGRADED)


def _agent_row(item: views.Agent, session: Session) -> list[str]:
    return [
        item.name,
        str(item.state),
        " ".join(_slot_text(slot) for slot in item.slots.values()) or "–",
        _labels_text(item),
        _hardware(item),
        three(item.flows_per_s) if item.flows_per_s else "–",
        f"{three(item.latency_p99_ms)} ms" if item.latency_p99_ms else "–",
        ago(item.seen, session.now()),
        _now_text(item),
    ]


def _slot_text(slot: views.AgentSlot) -> str:
    if slot.desired and slot.desired != slot.active:
        return f"{slot.active or 'nothing'} → {slot.desired}"
    return slot.active or "–"


def _labels_text(item: views.Agent) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(item.labels.items()))


def _hardware(item: views.Agent) -> str:
    facts = item.facts
    if facts is None or not facts.cpu_cores:
        return "–"
    newest = next((name for name in ("avx512f", "avx2", "asimd") if name in facts.cpu_features), facts.architecture)
    return f"{count(facts.cpu_cores, 'core')} {newest}" + (f" {facts.gpus[0].name}" if facts.gpus else "")


def _now_text(item: views.Agent) -> str:
    for slot in item.slots.values():
        if slot.candidate and slot.candidate_bytes_total and slot.candidate_bytes_done < slot.candidate_bytes_total:
            return f"downloading {100 * slot.candidate_bytes_done // slot.candidate_bytes_total} %"
        if slot.reason:
            return slot.reason
    return next((condition.text for condition in item.conditions), "")


@verb(agent, "show", "Show one agent: what it is, what it runs, what is wrong with it.", "vedette agent show edge-7")
@click.argument("name", shell_complete=complete.agents)
def agent_show(name: str) -> None:
    """Show one agent."""
    session = current()
    item = _agent(session, name)
    out = session.output
    if out.is_json:
        out.json(item)
        return
    out.facts(_agent_facts(item, session))
    for slot_name, slot in item.slots.items():
        out.line()
        out.facts([("slot", slot_name), *_slot_facts(slot)])
    for condition in item.conditions:
        out.line(f"{condition.severity}: {condition.text} ({condition.code}, since {when(condition.since)})")


def _agent(session: Session, name: str) -> views.Agent:
    from vedette.wire.convert import AGENT
    from vedette.wire.v1 import admin_pb2

    return AGENT.from_wire(session.client.ask("GetAgent", admin_pb2.GetAgentRequest(name=name)))


def _agent_facts(item: views.Agent, session: Session) -> list[tuple[str, str]]:
    facts = item.facts
    return [
        ("name", item.name),
        ("state", str(item.state)),
        ("labels", _labels_text(item)),
        ("id", item.id),
        ("address", item.address),
        ("enrolled", when(item.enrolled)),
        ("seen", f"{when(item.seen)} ({ago(item.seen, session.now())})" if item.seen else "never"),
        ("hardware", _hardware(item)),
        ("memory", size(facts.memory_bytes) if facts and facts.memory_bytes else ""),
        ("system", f"{facts.os}, kernel {facts.kernel}" if facts and facts.os else ""),
        ("runtimes", ", ".join(f"{key} {value}" for key, value in sorted(facts.runtimes.items())) if facts else ""),
        ("assignment", f"{item.running_sequence} of {item.desired_sequence} runs" if item.desired_sequence else "none"),
        ("rows", f"{item.rows:,}, {item.flagged:,} flagged" if item.rows else ""),
        ("latency", _latency(item)),
    ]  # fmt: skip


def _latency(item: views.Agent) -> str:
    if not item.latency_p99_ms:
        return ""
    return f"p50 {three(item.latency_p50_ms)} ms, p99 {three(item.latency_p99_ms)} ms"


def _slot_facts(slot: views.AgentSlot) -> list[tuple[str, str]]:
    return [
        ("state", str(slot.state)),
        ("active", slot.active),
        ("desired", slot.desired),
        ("candidate", slot.candidate),
        ("previous", slot.previous),
        ("build", slot.build),
        ("reason", slot.reason),
    ]


@verb(
    agent,
    "label",
    "Set labels of an agent; KEY- removes one.",
    "vedette agent label edge-7 site=paris",
    "vedette agent label edge-7 lab-",
)
@click.argument("name", shell_complete=complete.agents)
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...", shell_complete=complete.labels)
def agent_label(name: str, labels: Sequence[str]) -> None:
    """Set and remove labels of an agent."""
    from vedette.wire.convert import AGENT
    from vedette.wire.v1 import admin_pb2

    session = current()
    remove = [text[:-1] for text in labels if text.endswith("-") and "=" not in text]
    wanted = pairs((text for text in labels if not text.endswith("-") or "=" in text), "label")
    request = admin_pb2.LabelAgentRequest(name=name, set=wanted, remove=remove)
    item = AGENT.from_wire(session.client.ask("LabelAgent", request))
    _told(session, item, f"{item.name}: {_labels_text(item) or 'no labels'}")


@verb(
    agent,
    "revoke",
    "Cut an agent off at once; it can never come back with its present key. Asks first.",
    "vedette agent revoke edge-7",
    "vedette agent revoke edge-7 --yes",
)
@click.argument("name", shell_complete=complete.agents)
@YES
def agent_revoke(name: str, yes: bool) -> None:
    """Cut an agent off."""
    _dangerous(
        "RevokeAgent", "RevokeAgentRequest", name, "Revoke", "is revoked; it serves on with what it has", yes=yes
    )


@verb(
    agent,
    "rm",
    "Forget an agent and all that is known of it. Asks first.",
    "vedette agent rm edge-7",
    "vedette agent rm edge-7 --yes",
)
@click.argument("name", shell_complete=complete.agents)
@YES
def agent_rm(name: str, yes: bool) -> None:
    """Forget an agent."""
    _dangerous("RemoveAgent", "RemoveAgentRequest", name, "Remove", "is removed", yes=yes)


def _dangerous(method: str, request: str, name: str, word: str, done: str, *, yes: bool) -> None:
    from vedette.wire.convert import AGENT
    from vedette.wire.v1 import admin_pb2

    session = current()
    item = _agent(session, name)
    runs = ", ".join(slot.active for slot in item.slots.values() if slot.active) or "nothing"
    confirm(f"{word} 1 agent: {item.name} ({_labels_text(item) or 'no labels'}; {item.state}; runs {runs})?", yes=yes)
    answer = AGENT.from_wire(session.client.ask(method, getattr(admin_pb2, request)(name=name)))
    _told(session, answer, f"{answer.name} {done}.")


def _told(session: Session, value: Any, text: str) -> None:
    if session.output.is_json:
        session.output.json(value)
    else:
        session.output.line(text)


token = noun(
    "token",
    "Invite appliances: a token enrols one or several.",
    "vedette token create --label site=paris",
    "vedette token ls",
)


@verb(
    token,
    "create",
    "Make a token that enrols appliances. It is shown once.",
    "vedette token create",
    "vedette token create --label site=paris --uses 20 --expires 7d",
)
@click.option(
    "--label", "labels", multiple=True, metavar="K=V", help="Label of every agent it enrols; may be repeated."
)
@click.option(
    "--uses",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="How many appliances it enrols.",
)
@click.option("--expires", default="24h", show_default=True, metavar="TIME", help="How long it is good: 10m, 24h, 30d.")
def token_create(labels: Sequence[str], uses: int, expires: str) -> None:
    """Make a token."""
    from vedette.wire.convert import TOKEN
    from vedette.wire.v1 import admin_pb2

    session = current()
    expires_s = seconds(expires, "--expires")
    if not 0 < expires_s <= MAX_EXPIRY_S:
        raise Usage(f"--expires is {expires_s} s", f"1 to {MAX_EXPIRY_S} s", "example: --expires 7d")
    request = admin_pb2.CreateTokenRequest(labels=pairs(labels, "--label"), uses=uses, expires_s=expires_s)
    made = TOKEN.from_wire(session.client.ask("CreateToken", request))
    if session.output.is_json:
        session.output.json(made)
        return
    session.output.line(made.token)
    session.output.note(
        f"Enrols {count(made.uses, 'appliance')} until {when(made.expires)}. It is not shown again.\n"
        f"On the appliance: vedette-agent enroll --token TOKEN"
    )


@verb(token, "ls", "List tokens: how often used, until when good.", "vedette token ls")
def token_ls() -> None:
    """List tokens."""
    from vedette.wire.convert import TOKEN
    from vedette.wire.v1 import admin_pb2

    session = current()
    tokens = [TOKEN.from_wire(item) for item in session.client.ask("ListTokens", admin_pb2.ListTokensRequest()).tokens]
    out = session.output
    if out.is_json:
        out.json(tokens)
    elif not tokens:
        out.line("No tokens yet. Make one: vedette token create")
    else:
        columns = (
            Column("ID"),
            Column("USED", 0, right=True),
            Column("LABELS", 2, free=True),
            Column("EXPIRES"),
            Column("CREATED", 3),
        )
        out.table(columns, [_token_row(item, session) for item in tokens])


def _token_row(item: views.Token, session: Session) -> list[str]:
    now = session.now()
    is_over = item.expires is not None and item.expires <= now
    expires = "revoked" if item.revoked else ("expired " if is_over else "") + ago(item.expires, now)
    labels = " ".join(f"{key}={value}" for key, value in sorted(item.labels.items()))
    return [item.id, f"{item.used}/{item.uses}", labels, expires, ago(item.created, now)]


@verb(token, "revoke", "Make a token worthless; agents that used it stay.", "vedette token revoke 5f3a90")
@click.argument("token_id", metavar="ID", shell_complete=complete.tokens)
def token_revoke(token_id: str) -> None:
    """Make a token worthless."""
    from vedette.wire.convert import TOKEN
    from vedette.wire.v1 import admin_pb2

    session = current()
    item = TOKEN.from_wire(session.client.ask("RevokeToken", admin_pb2.RevokeTokenRequest(id=token_id)))
    _told(session, item, f"Token {item.id} is revoked; it enrolled {count(item.used, 'agent')}, which stay.")


def _telemetry_alone() -> None:
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        _show_telemetry("", "1h")


telemetry = Group(
    "telemetry",
    callback=_telemetry_alone,
    help="Show what agents report of their models. Alone it shows the last hour.",
    short_help="Show what agents report of their models",
    examples=("vedette telemetry", "vedette telemetry query --model flow-threat --last 10m"),
)

_TELEMETRY_COLUMNS = (
    Column("AGENT"),
    Column("VERSION"),
    Column("ROWS", 1, right=True),
    Column("ROWS/S", 2, right=True),
    Column("FLAGGED", 1, right=True),
    Column("P50", 3, right=True),
    Column("P99", 1, right=True),
    Column("CPU", 4, right=True),
    Column("MEMORY", 4, right=True),
    Column("ERRORS", 5, right=True),
)


@verb(
    telemetry,
    "query",
    "Show rows, verdicts, latency and cost of each agent over a time.",
    "vedette telemetry query --last 10m",
    "vedette telemetry query --model flow-threat --output json",
)
@click.option("--model", default="", metavar="N", help="Of this model only.", shell_complete=complete.models)
@click.option("--last", default="1h", show_default=True, metavar="TIME", help="How far back: 10m, 24h, 7d.")
def telemetry_query(model: str, last: str) -> None:
    """Show telemetry."""
    _show_telemetry(model, last)


@verb(
    telemetry,
    "import",
    "Count what an appliance without a link wrote into a file. What was counted already is not counted again.",
    "vedette telemetry import edge-7.telemetry",
    "vedette telemetry import edge-7.telemetry --output json",
)
@click.argument("path", metavar="FILE", type=click.Path())
def telemetry_import(path: str) -> None:
    """Import telemetry."""
    from vedette.wire.convert import TELEMETRY_IMPORT
    from vedette.wire.v1 import admin_pb2

    session, file = current(), existing_file(path)
    head = admin_pb2.ImportTelemetryRequest.Header(file_name=file.name, total_bytes=file.stat().st_size)
    first = admin_pb2.ImportTelemetryRequest(header=head)
    answer = uploaded(
        session, "ImportTelemetry", first, file, lambda piece: admin_pb2.ImportTelemetryRequest(data=piece)
    )
    item = TELEMETRY_IMPORT.from_wire(answer)
    if session.output.is_json:
        session.output.json(item)
        return
    for line in _telemetry_lines(item):
        session.output.line(clean(line))


def _telemetry_lines(item: views.TelemetryImport) -> Iterator[str]:
    repeated = item.batches - item.counted - item.refused
    batches, rows = count(item.batches, "batch", "batches"), count(item.rows, "row")
    yield f"{item.agent}: {item.counted:,} of {batches} counted, {rows}, {item.flagged:,} flagged"
    if repeated:
        yield f"{repeated:,} were counted before"
    if item.gaps:
        yield f"{count(item.gaps, 'gap')} told: {count(item.rows_lost, 'row')} of which the appliance kept no count"
    if item.refused:
        yield f"{item.refused:,} refused: a number in them is outside its limits"
    yield f"Written when the appliance's clock said {when(item.exported)}"


def _show_telemetry(model: str, last: str) -> None:
    from vedette.wire.convert import AGENT_TELEMETRY
    from vedette.wire.v1 import admin_pb2

    session = current()
    request = admin_pb2.GetFleetTelemetryRequest(model=model, window_s=window_s(last, "--last"))
    rows = [AGENT_TELEMETRY.from_wire(item) for item in session.client.ask("GetFleetTelemetry", request).agents]
    out = session.output
    if out.is_json:
        out.json(rows)
    elif not rows:
        out.line(f"No telemetry in the last {last}. Who is there: vedette agent ls")
    else:
        out.table(_TELEMETRY_COLUMNS, [_telemetry_row(item) for item in rows])
        out.line(f"{sum(item.rows for item in rows):,} rows, {sum(item.flagged for item in rows):,} flagged in {last}")


def _telemetry_row(item: views.AgentTelemetry) -> list[str]:
    return [
        item.agent,
        item.version,
        f"{item.rows:,}",
        three(item.rows_per_s),
        share(item.flagged / item.rows) if item.rows else "–",
        f"{three(item.latency_p50_ms)} ms",
        f"{three(item.latency_p99_ms)} ms",
        f"{three(item.cpu_percent)} %",
        size(item.memory_bytes),
        f"{item.errors:,}",
    ]


def window_s(text: str, what: str) -> int:
    """Return the seconds of a window of time.

    Raises:
        Usage: It is no time, nothing, or over ten years.
    """
    length = seconds(text, what)
    if not 0 < length <= 315_360_000:
        raise Usage(f"{what} is {length} s", "1 s to 3650d", f"example: {what} 24h")
    return length


@click.argument("model", shell_complete=complete.models)
@click.option("--window", default="24h", show_default=True, metavar="TIME", help="How far back: 10m, 24h, 7d.")
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(1, 1000), metavar="N", help="How many features to show."
)
def _drift(model: str, window: str, top: int) -> None:
    from vedette.wire.convert import DRIFT
    from vedette.wire.v1 import admin_pb2

    session = current()
    request = admin_pb2.GetDriftRequest(model=model, window_s=window_s(window, "--window"))
    report = DRIFT.from_wire(session.client.ask("GetDrift", request))
    out = session.output
    if out.is_json:
        out.json(report)
    elif not report.versions:
        out.line(f"No version of {model} can be compared: those trained here bring a profile, uploaded ones do not.")
        out.line("Train one: vedette train RECIPE --data DATASET@N")
    else:
        for version in report.versions:
            _show_version_drift(session, version, window, top)


def _show_version_drift(session: Session, item: views.VersionDrift, window: str, top: int) -> None:
    out = session.output
    verdict = out.styled(item.verdict, {"quiet": "32", "shifted": "31"}.get(item.verdict, ""))
    out.line(f"{item.version}   last {window} against training: {verdict}   {item.rows:,} rows")
    if item.rows_needed:
        out.line(f"  {count(item.rows_needed, 'more row')} that are not flagged are needed to judge")
    out.line(f"  flagged {share(item.flagged_share)}, of the reference rows {share(item.reference_flagged_share)}")
    columns = (
        Column("FEATURE"),
        Column("PSI", 0, right=True),
        Column("JS BITS", 1, right=True),
        Column("MOST AT", 2, free=True),
    )
    rows = [[f.feature, three(f.psi), three(f.js_bits), _most_at(f)] for f in item.features[:top]]
    if rows:
        out.table(columns, rows)


def _most_at(item: views.FeatureDrift) -> str:
    worst = sorted(item.agents, key=lambda agent: -agent.psi)[:2]
    return ", ".join(f"{agent.agent} {three(agent.psi)}" for agent in worst)


def drift_command(group: click.Group) -> None:
    """Add ``drift`` to a group."""
    verb(
        group,
        "drift",
        "Show how far the live data of a model is from what it was trained on.",
        "vedette drift flow-threat",
        "vedette drift flow-threat --window 1h --top 20",
    )(_drift)
