"""``vedette``: the admin's command line.

``frame`` says how commands are made, ``session`` where the controller is, ``client`` speaks to it, ``output`` and
``progress`` write; the verbs stand in ``fleet``, ``data``, ``rollout`` and ``local``. gRPC and protobuf are imported
only when a verb calls the controller, so that ``--help`` and a typo answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from vedette.controller.cli import data, fleet, local, rollout
from vedette.controller.cli.frame import PROGRAM, Group
from vedette.controller.cli.output import Output
from vedette.controller.cli.problems import CliError, Exit, Failed, Missing, Usage
from vedette.controller.cli.session import Session
from vedette.models.version import __version__


def _alone() -> None:
    if click.get_current_context().invoked_subcommand is None:
        fleet.show_overview()


def _root() -> Group:
    group = Group(
        PROGRAM,
        callback=_alone,
        help="Train models, roll them out to appliances, see how they do. Alone it shows the state of the fleet.",
        examples=(
            "vedette",
            "vedette train flow-threat --data lab@1",
            "vedette rollout start flow-threat:2 --to site=paris",
        ),
    )
    for command in (
        fleet.status,
        fleet.agent,
        fleet.token,
        fleet.telemetry,
        data.data,
        data.label,
        data.run,
        data.model,
    ):
        group.add_command(command)
    group.add_command(rollout.rollout)
    fleet.drift_command(group)
    data.train_command(group)
    local.add_to(group)
    click.version_option(__version__, message=f"{PROGRAM} %(version)s", help="Print the version.")(group)
    return group


root = _root()


def run(arguments: Sequence[str], session: Session) -> int:
    """Run one command line and return its exit code; errors are told in three lines, once, here."""
    try:
        result = root.main(list(arguments), prog_name=PROGRAM, obj=session, standalone_mode=False)
        return int(result or Exit.DONE)
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except CliError as exc:
        return _told(session, exc)
    except click.UsageError as exc:
        return _told(session, _usage(exc))
    except click.FileError as exc:
        return _told(session, Missing(f"{exc.ui_filename} cannot be opened", exc.message))
    except Exception as exc:  # the last net: a person never sees a stack trace that did not ask for one
        if session.is_verbose:
            raise
        why = f"{type(exc).__name__}: {exc}"
        return _told(session, Failed("vedette itself failed", why, "--verbose shows where; please report it"))
    finally:
        session.close()


def _told(session: Session, error: CliError) -> int:
    try:
        out = session.output
    except CliError:  # the settings file is what is wrong
        out = Output()
    out.error(error)
    if session.is_verbose:
        raise error
    return error.exit_code


def _usage(error: click.UsageError) -> Usage:
    path = error.ctx.command_path if error.ctx else PROGRAM
    what = error.format_message().rstrip(".")
    what = what[0].lower() + what[1:]
    if isinstance(error, click.NoSuchOption):
        close = [*(error.possibilities or [])]
        why = f"did you mean {' or '.join(close)}?" if close else ""
        return Usage(f"{path} has no option {error.option_name}", why, f"see: {path} --help")
    return Usage(what, "", f"see: {path} --help")


def main() -> None:
    """Run the program."""
    sys.exit(run(sys.argv[1:], Session()))
