"""The command line of ``vedette-agent``.

Rules: what a script reads goes to standard output and nothing else does; an error is three lines on standard error;
exit codes are 0 done, 1 failed, 2 usage, 3 not found, 4 refused, 5 unreachable. Heavy parts are imported by the command
that needs them: ``--help`` loads neither grpc nor numpy.
"""

from __future__ import annotations

import argparse
import difflib
import faulthandler
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from vedette.agent.domain.advice import EXIT_FAILED, EXIT_MISSING, EXIT_REFUSED, EXIT_USAGE, AdvisedError
from vedette.agent.domain.doctor import Check, Level, doctor_report, doctor_text, is_failed
from vedette.agent.domain.errors import AgentError
from vedette.agent.domain.report import Report, models_text, status_text
from vedette.agent.settings import DEFAULT_FILE, OPTIONS, Settings, default_settings, read_settings
from vedette.models.assignment import MAX_SLOTS
from vedette.models.errors import ModelsError
from vedette.models.toml_settings import SettingsError, describe_settings
from vedette.models.version import __version__
from vedette.wire.systemd import fields, is_journal, log_to_journal_or_stderr

if TYPE_CHECKING:
    from vedette.agent.adapters.fleet.bundle_import import Brought

logger = logging.getLogger(__name__)

_MAX_TOKEN_CHARACTERS = 8192
_START_LIMIT_S = 60.0
_OUTCOME_LIMIT_S = 600.0
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class FileMissing(AdvisedError):
    """The file that a command was to read is not there."""

    code = "file-missing"
    exit_code = EXIT_MISSING


class _Parser(argparse.ArgumentParser):
    """argparse that says a mistake in three lines and names the nearest word it knows."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{self.prog}: {message}", self._nearest(message), f"see: {self.prog} --help")
        raise SystemExit(EXIT_USAGE)

    def _nearest(self, message: str) -> str:
        known = [word for action in self._actions for word in (*action.option_strings, *(action.choices or ()))]
        for word in (piece.strip(":,()") for piece in message.replace("'", " ").replace("=", " ").split()):
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
            if close and close[0] != word:
                return f"did you mean {close[0]}?"
        return "the command was not run"


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        options = command_parser().parse_args(arguments)
    except SystemExit as exc:  # --help, --version, or a mistake that was told already
        return int(exc.code or 0)
    if options.verb is None:
        command_parser().print_help(sys.stderr)
        return EXIT_USAGE
    level = logging.DEBUG if options.verbose else logging.INFO if options.verb == "run" else logging.WARNING
    log_to_journal_or_stderr(level, "%(levelname)s %(name)s: %(message)s", "vedette-agent")
    return _guarded(options.command, options)


def _guarded(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return command(options)
    except (AgentError, ModelsError, OSError) as exc:
        if options.verbose:
            raise
        _tell(exc, options.verb)
        return _exit_code(exc)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _tell(exc: Exception, verb: str) -> None:
    lines = _three_lines(exc, verb)
    if is_journal():  # one entry with its level and code
        logger.error("%s: %s; %s", *lines, extra=fields(code=str(getattr(exc, "code", ""))))
    else:
        _complain(*lines)


def _three_lines(exc: Exception, verb: str) -> tuple[str, str, str]:
    if isinstance(exc, AdvisedError):
        return exc.what, exc.why, exc.remedy
    if isinstance(exc, SettingsError):
        return exc.what, exc.why or "nothing was started", exc.remedy or "every key: vedette-agent run --help"
    if isinstance(exc, PermissionError):
        return f"vedette-agent {verb} may not use {exc.filename}", str(exc.strerror), f"sudo vedette-agent {verb} …"
    return f"vedette-agent {verb} failed", str(exc), f"the whole trace: vedette-agent {verb} --verbose"


def _exit_code(exc: Exception) -> int:
    if isinstance(exc, AdvisedError):
        return exc.exit_code
    return EXIT_USAGE if isinstance(exc, SettingsError) else EXIT_FAILED


def _complain(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def command_parser() -> _Parser:
    """Return the parser of all commands; help, manual pages and completion are made from it."""
    parser = _Parser(
        prog="vedette-agent",
        description="Runs models on this appliance and tells a controller how they do; serves on without one.",
        epilog="examples:\n  vedette-agent enroll --token vdt1.…\n  vedette-agent status --output json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vedette-agent {__version__}")
    _common(parser, config=None, verbose=False)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)
    enroll = _verb(verbs, "enroll", _enroll, "Spend a one-time token on this appliance's identity.", _ENROLL_EXAMPLES)
    enroll.add_argument("--token", required=True, help='what `vedette token create` printed; "-" reads standard input')
    enroll.add_argument("--name", help="wished name; the controller makes it unique (default: the setting `name`)")
    _verb(verbs, "run", _run, "Run the agent until it is told to stop.", _RUN_EXAMPLES + _keys())
    _configuring(_verb(verbs, "configure", _configure, _CONFIGURE_SUMMARY, _CONFIGURE_EXAMPLES))
    status = _verb(verbs, "status", _status, "Show how this agent stands, running or not.", _STATUS_EXAMPLES)
    models = _verb(verbs, "models", _models, "Show what serves in each slot.", _MODELS_EXAMPLES)
    bring = _verb(verbs, "import", _import, "Apply an assignment that came in a file.", _IMPORT_EXAMPLES)
    bring.add_argument("file", metavar="FILE", help='a bundle that the controller exported; "-" reads standard input')
    away = _verb(
        verbs, "export-telemetry", _export, "Write what waits for the controller into a file.", _EXPORT_EXAMPLES
    )
    away.add_argument("file", metavar="FILE", help='where to, signed by this appliance; "-" is standard output')
    bring.add_argument("--no-wait", action="store_true", help="leave it to the running agent and return")
    doctor = _verb(verbs, "doctor", _doctor, _DOCTOR_SUMMARY, _DOCTOR_EXAMPLES)
    doctor.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colour the verdicts")
    for each in (status, models, doctor):
        each.add_argument("--output", choices=("table", "json"), default="table", help="form of the answer")
    return parser


_ENROLL_EXAMPLES = (
    "  vedette-agent enroll --token vdt1.…\n  ssh ctl vedette token create | vedette-agent enroll --token -"
)
_RUN_EXAMPLES = "  vedette-agent run\n  vedette-agent run --config /etc/vedette/agent.toml --verbose"
_CONFIGURE_SUMMARY = "Have the packaged service's limits follow the settings."
_CONFIGURE_EXAMPLES = "  vedette-agent configure --dry-run\n  vedette-agent configure --gpu --slots 2"
_STATUS_EXAMPLES = "  vedette-agent status\n  vedette-agent status --output json"
_MODELS_EXAMPLES = "  vedette-agent models\n  vedette-agent models --output json"
_IMPORT_EXAMPLES = (
    "  vedette-agent import /media/usb/flow-threat-2.bundle\n  ssh ctl cat edge-7.bundle | vedette-agent import -"
)
_EXPORT_EXAMPLES = (
    "  vedette-agent export-telemetry /media/usb/edge-7.telemetry\n"
    "  vedette-agent export-telemetry - | ssh ctl 'cat > edge-7.telemetry'"
)

_DOCTOR_SUMMARY = (
    "Look at this appliance from all sides; say what is wrong and what to do. Exit 1 when something fails."
)
_DOCTOR_EXAMPLES = "  sudo vedette-agent doctor\n  vedette-agent doctor --output json"


def _keys() -> str:
    return f"\n\nkeys of {DEFAULT_FILE} and their defaults:\n{describe_settings(OPTIONS)}"


def _configuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    parser.add_argument(
        "--slots", type=_slots, metavar="N", help=f"models to serve at once, 1 to {MAX_SLOTS} (as before, at first 1)"
    )
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--gpu", action=flag, help="let the service use NVIDIA devices, or no more (as before)")
    parser.add_argument(
        "--nftables",
        action=flag,
        help="start the helper that blocks addresses with the service, or no more (as before)",
    )
    parser.add_argument(
        "--worker-cgroups",
        action=flag,
        help="a control group with its own limit for each model, or no more (as before)",
    )


def _slots(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SLOTS:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 to {MAX_SLOTS}")
    return int(text)


def _verb(
    verbs: Any, name: str, command: Callable[[argparse.Namespace], int], summary: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Before the verb these set the value, after it they may replace it, so here they must not bring a default.
    _common(parser, config=argparse.SUPPRESS, verbose=argparse.SUPPRESS)
    parser.set_defaults(command=command)
    return parser


def _common(parser: argparse.ArgumentParser, *, config: Any, verbose: Any) -> None:
    parser.add_argument(
        "--config", type=Path, default=config, metavar="FILE", help=f"settings (default: {DEFAULT_FILE} if it exists)"
    )
    parser.add_argument("--verbose", action="store_true", default=verbose, help="log more; show traces of errors")


def _enroll(options: argparse.Namespace) -> int:
    from vedette.agent.adapters.host.service_user import check_permitted, packaged_user, run_as

    settings = read_settings(options.config)
    text = sys.stdin.read(_MAX_TOKEN_CHARACTERS + 1) if options.token == "-" else options.token  # noqa: S105 - stdin
    user = packaged_user(options.config)
    if user is None:
        _spend(text, options.name, settings)
        sys.stderr.write("A running agent takes it up by itself. Otherwise start one: vedette-agent run\n")
        return 0
    check_permitted(user, "enroll")
    spend = partial(_guarded, lambda _: _spend(text, options.name, settings), options)
    return run_as(user, settings, spend) or _bring_up(settings)


def _spend(token: str, name: str | None, settings: Settings) -> int:
    from vedette.agent.adapters.fleet.enrolment import enrol, read_token
    from vedette.agent.adapters.fleet.identity import IdentityStore
    from vedette.agent.adapters.host.facts import host_facts, runtime_versions

    wished = name or settings.name
    facts = host_facts(runtime_versions())
    store = IdentityStore(settings.enrolment_dir)
    identity = enrol(read_token(token), store, name=wished, facts=facts, ways=settings.link.ways)
    sys.stderr.write(f"Enrolled as {identity.name} with the controller at {', '.join(identity.addresses)}.\n")
    if identity.name != wished:
        sys.stderr.write(f"The controller knows this appliance by that name, not as {wished}.\n")
    return 0


def _bring_up(settings: Settings) -> int:
    from vedette.agent.adapters.host.unit import Systemctl, bring_up, systemd_runs

    if os.geteuid() != 0 or not systemd_runs():
        sys.stderr.write("Start the agent when this host's service manager runs: systemctl start vedette-agent\n")
        return 0
    bring_up(Systemctl(), partial(_answer, settings), _START_LIMIT_S, _say)
    _say("It serves and is connected to the controller.")
    if settings.netflow.listen is not None:
        _say(f"Next: have routers send NetFlow v5, v9 or IPFIX to this appliance, UDP {settings.netflow.listen[1]}.")
    _say("Look at it: vedette-agent status")
    return 0


def _answer(settings: Settings) -> Report | None:
    from vedette.agent.app import running_report

    try:
        return running_report(settings)
    except (AgentError, OSError) as exc:  # it starts, or loads a model: a later look will be answered
        logger.debug("no report yet: %s", exc)
        return None


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _configure(options: argparse.Namespace) -> int:
    from vedette.agent.adapters.host import configure
    from vedette.agent.adapters.host.service_user import NotPermitted, packaged_user
    from vedette.agent.adapters.host.unit import Systemctl, systemd_runs

    wanted = {"gpu": options.gpu, "worker-cgroups": options.worker_cgroups, "nftables": options.nftables}
    changes = configure.planned(
        read_settings(options.config),
        config=str(options.config or DEFAULT_FILE),
        slots=options.slots,
        optional={name: flag for name, flag in wanted.items() if flag is not None},
        folder=configure.FOLDER,
        shipped=configure.SHIPPED,
    )
    if options.dry_run:
        _say("\n".join(change.told() for change in changes) or "Nothing to change.")
        return 0
    if packaged_user(options.config) is None:
        why = f"the service reads {DEFAULT_FILE}" if options.config else "the package vedette-agent is not installed"
        raise configure.NotPackaged(
            "there is no packaged service with these settings", why, "add --dry-run to look only"
        )
    if os.geteuid() != 0:
        raise NotPermitted(
            "vedette-agent configure is for root", f"you are user {os.geteuid()}", "sudo vedette-agent configure …"
        )
    configure.apply(changes, Systemctl() if systemd_runs() else None, _say)
    if options.nftables:
        _say("Before it blocks anybody: /etc/vedette/nftables.toml (whom never), then sink.nftables in agent.toml.")
        if not Path("/usr/sbin/nft").exists():
            _say("The program nft is missing: apt install nftables")
    return 0


def _run(options: argparse.Namespace) -> int:
    from vedette.agent.adapters.host.restarts import StoppedEarly, paced_start

    faulthandler.enable()  # the watchdog's SIGABRT writes where every thread stood
    try:
        with paced_start():
            settings = _settings_as_service(options)
            from vedette.agent.app import run_agent

            return run_agent(settings)
    except StoppedEarly:
        return 0


def _settings_as_service(options: argparse.Namespace) -> Settings:
    """Return the settings, from where on a packaged host the agent's files are touched as its own user."""
    from vedette.agent.adapters.host.service_user import become, check_permitted, packaged_user

    settings = read_settings(options.config)
    if (user := packaged_user(options.config)) is not None:
        check_permitted(user, options.verb)
        become(user, settings)
    return settings


def _status(options: argparse.Namespace) -> int:
    return _show(options, status_text)


def _models(options: argparse.Namespace) -> int:
    return _show(options, models_text, only="slots")


def _show(options: argparse.Namespace, as_text: Callable[[Report, int], str], only: str | None = None) -> int:
    settings = _settings_as_service(options)
    from vedette.agent.app import current_report

    report = current_report(settings)
    if options.output == "json":
        sys.stdout.write(json.dumps(report if only is None else report[only], indent=1) + "\n")
    else:
        sys.stdout.write(as_text(report, _columns()))
    return 0


def _import(options: argparse.Namespace) -> int:
    # Opened before root is given up: a stick that root mounted is root's to read.
    with _opened(options.file) as source:
        settings = _settings_as_service(options)
        from vedette.agent.adapters.fleet.bundle_import import bring_in, current_standing
        from vedette.agent.adapters.telling.progress import Meter

        standing = current_standing(settings)
        before = _serving_now(settings)
        meter = Meter(f"reading {Path(options.file).name}")
        try:
            brought = bring_in(source, settings, standing, meter.update)
        finally:
            meter.close()
    if not brought.place:
        _say(f"Nothing to do: assignment {brought.assignment.sequence} runs already.")
        return 0
    if not standing.is_running:
        _say(
            f"Assignment {brought.assignment.sequence} is stored. The agent does not run and applies it when it starts:"
        )
        _say("systemctl start vedette-agent (or by hand: vedette-agent run)")
        return 0
    if options.no_wait:
        _say(f"Assignment {brought.assignment.sequence} is with the running agent. See: vedette-agent status")
        return 0
    return _await_outcome(settings, brought, before)


def _opened(name: str) -> AbstractContextManager[BinaryIO]:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except FileNotFoundError as exc:
        raise FileMissing(f"there is no file {name}", "nothing was imported", "vedette-agent import FILE") from exc
    except IsADirectoryError as exc:
        raise FileMissing(f"{name} is a folder", "nothing was imported", "name the file in it") from exc


def _serving_now(settings: Settings) -> dict[str, str]:
    """Return MODEL:VERSION by slot."""
    from vedette.agent.app import current_report

    slots = current_report(settings)["slots"]
    return {
        name: f"{slot['active']['model']}:{slot['active']['version']}" for name, slot in slots.items() if slot["active"]
    }


def _await_outcome(settings: Settings, brought: Brought, before: Mapping[str, str]) -> int:
    """Return the exit code of what the running agent makes of an import, told when it is known."""
    from vedette.agent.adapters.fleet.bundle_import import awaited_outcome

    assignment = brought.assignment
    outcome = awaited_outcome(settings, brought, _OUTCOME_LIMIT_S)
    if outcome is None:
        _complain(
            f"assignment {assignment.sequence} is not applied yet",
            f"the agent has had it for {_OUTCOME_LIMIT_S:.0f} s and goes on with it",
            "see how far it is: vedette-agent status",
        )
        return EXIT_FAILED
    if outcome["outcome"] != "applied":
        _complain(
            f"assignment {assignment.sequence} {outcome['outcome']}: {outcome['code']}",
            outcome["reason"],
            "what served before serves on; vedette-agent status shows it",
        )
        return EXIT_REFUSED if outcome["outcome"] == "refused" else EXIT_FAILED
    wanted = {slot.slot: f"{slot.model}:{slot.version}" for slot in assignment.slots}
    for slot in sorted({*wanted, *before}):
        old, new = before.get(slot, "nothing"), wanted.get(slot, "nothing")
        _say(f"{slot}: {new}, as before" if old == new else f"{slot}: {old} → {new}")
    _say(f"Assignment {assignment.sequence} is applied.")
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write as who typed it, read as the service user: neither need be allowed what the other is."""
    from vedette.agent.adapters.fleet.telemetry_export import replacing
    from vedette.agent.adapters.host.service_user import check_permitted, packaged_user, run_as

    settings = read_settings(options.config)
    user = packaged_user(options.config)
    if user is not None:
        check_permitted(user, "export-telemetry")
    with nullcontext(sys.stdout.buffer) if options.file == "-" else replacing(Path(options.file)) as target:
        if user is None:
            return _write_telemetry(target, options.file, settings)
        work = partial(_guarded, lambda _: _write_telemetry(target, options.file, settings), options)
        if code := run_as(user, settings, work):
            raise SystemExit(code)  # told there; what stood in the file's place stays
    return 0


def _write_telemetry(target: BinaryIO, name: str, settings: Settings) -> int:
    from vedette.agent.adapters.clock import SystemClock
    from vedette.agent.adapters.fleet.telemetry_export import export_telemetry
    from vedette.agent.adapters.telling.progress import Meter

    meter = Meter(f"writing {Path(name).name}")
    try:
        exported = export_telemetry(target, settings, SystemClock().now(), meter.update)
    finally:
        meter.close()
    _say(f"{exported.batches:,} batches, {exported.size:,} bytes. All of it still waits here, too: a link that comes")
    _say(
        "back sends it again, and the controller counts it once. Next, at the controller: vedette telemetry import FILE"
    )
    return 0


def _doctor(options: argparse.Namespace) -> int:
    unread: list[Check] = []
    try:
        settings = read_settings(options.config)
    except SettingsError as exc:
        if not isinstance(exc.__cause__, PermissionError):
            checks = [Check("settings", Level.FAIL, f"{exc.what}: {exc.why}", exc.remedy)]
            return _tell_checks(checks, options)
        unread = [
            Check("settings", Level.WARN, f"{exc.what}; taken as by default", "sudo vedette-agent doctor sees it all")
        ]
        settings = default_settings()
    checks = [*unread, *_examined(settings, options.config)]
    return _tell_checks(checks, options)


def _examined(settings: Settings, config: Path | None) -> Sequence[Check]:
    from vedette.agent.adapters.host.service_user import act_as, packaged_user

    user = packaged_user(config)
    if user is not None and os.geteuid() == 0:
        act_as(user)  # what root may do says nothing of what the agent may
    from vedette.agent.adapters.telling.doctor import Patient, examine
    from vedette.agent.app import seen

    start = "systemctl start vedette-agent" if user is not None else "vedette-agent run"
    file = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    return examine(Patient(settings, file, seen(settings, start), is_packaged=user is not None))


def _tell_checks(checks: Sequence[Check], options: argparse.Namespace) -> int:
    if options.output == "json":
        sys.stdout.write(json.dumps(doctor_report(checks), indent=1) + "\n")
    else:
        sys.stdout.write(doctor_text(checks, _columns(), is_coloured=_is_coloured(options.color)))
    return EXIT_FAILED if is_failed(checks) else 0


def _columns() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _is_coloured(wish: str) -> bool:
    if wish != "auto":
        return wish == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
