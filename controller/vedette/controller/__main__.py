"""``vedette-controller``: makes a controller, serves it, examines it, backs it up and puts it back."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vedette.controller.domain.errors import (
    AlreadyThere,
    ControllerError,
    Forbidden,
    InvalidInput,
    NotFound,
    Refused,
    Unauthenticated,
)
from vedette.controller.settings import DEFAULT_CONFIG, DEFAULT_DATA_DIR, DEFAULT_LISTEN, OPTIONS, ControllerSettings
from vedette.models.toml_settings import SettingsError, describe_settings
from vedette.models.version import __version__
from vedette.wire.systemd import fields, is_journal, log_to_journal_or_stderr

_TEXT = """\
vedette-controller trains, signs and rolls out models, and keeps what agents report.

  vedette-controller init --data-dir /var/lib/vedette-controller --dns ctl.example
  vedette-controller serve --config /var/lib/vedette-controller/controller.toml
"""
_INIT = """\
Make the data directory of a new controller: signing keys, its own certificate authority, the database, the blob
store, settings, and a context file with the first admin's certificate. An existing controller is never touched.
Where the package is installed, no --data-dir is needed: run as root, it fills the service's own directory.

  vedette-controller init --dns ctl.example --dns 10.0.0.5
  vedette-controller init --data-dir ./ctl --listen 127.0.0.1:7443
"""
_SERVE = """\
Serve agents and admins until SIGTERM. A SIGKILL or a power cut loses nothing that was answered.

  vedette-controller serve --config ./ctl/controller.toml
  vedette-controller serve                                     reads /etc/vedette/controller.toml
"""
_CHECK = """\
Examine a controller: settings, keys and who can read them, certificates, the database, every blob's digest. Works
while it serves and changes nothing. Ends with 1 when something is wrong.

  vedette-controller check --config ./ctl/controller.toml
  vedette-controller check
"""
_BACKUP = """\
Write database, keys and the index of all blobs into one file, also while the controller serves. In a folder it
becomes one of several: blobs lie beside it, each once, and of the older ones backup.keep stay. It holds private keys.

  vedette-controller backup /mnt/nas/ctl.tar --with-blobs
  vedette-controller backup /var/backups/vedette-controller
"""
_RESTORE = """\
Put a backup back: verified first, then in one step; what was there is moved aside, never removed. The controller must
be stopped. Shows what it will do and asks. No agent is moved back: those that went on since keep what they run.

  vedette-controller restore /mnt/nas/ctl.tar
  vedette-controller restore vedette-2026-11-23T030000Z.tar --blobs-from /var/backups/vedette-controller/blobs
"""
_ADMIN = """\
Make the admin's certificate and context file anew, because they are lost or somebody else has them: the former ones are
worth nothing from then on. The controller must be stopped. Asks first.

  vedette-controller admin
  vedette-controller admin --config ./ctl/controller.toml --yes
"""


class _Parser(argparse.ArgumentParser):
    """argparse that says a mistake in lines of their own and names the nearest word it knows."""

    def error(self, message: str) -> NoReturn:
        lines = [f"{self.prog}: {message}", self._nearest(message), f"see: {self.prog} --help"]
        print("\n".join(line for line in lines if line), file=sys.stderr)
        raise SystemExit(2)

    def _nearest(self, message: str) -> str:
        known = [word for action in self._actions for word in (*action.option_strings, *(action.choices or ()))]
        for word in message.replace("'", " ").split():
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
            if close and close[0] != word:
                return f"did you mean {close[0]}?"
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code: 0 done, 1 failed, 2 usage, 3 not found, 4 refused."""
    parser = command_parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help(sys.stderr)
        return 2
    _configure_log(logging.DEBUG if options.verbose else options.log_level)
    try:
        return int(options.run(options))
    except (ControllerError, SettingsError) as exc:
        if options.verbose:
            logging.getLogger(__name__).exception("failed")
        _tell(exc)
        return exit_code_of(exc)


def _tell(exc: ControllerError | SettingsError) -> None:
    lines = [line for line in (exc.what, exc.why, exc.remedy) if line]
    if is_journal():  # one entry with its level and code
        logging.getLogger(__name__).error("%s", "; ".join(lines), extra=fields(code=str(getattr(exc, "code", ""))))
    else:
        print("\n".join(lines), file=sys.stderr)


def exit_code_of(exc: ControllerError | SettingsError) -> int:
    """Return the exit code that tells a script who must act."""
    match exc:
        case InvalidInput() | SettingsError():
            return 2
        case NotFound():
            return 3
        case Refused() | AlreadyThere() | Forbidden() | Unauthenticated():
            return 4
    return 1


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; help, manual pages and completion are made from it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("vedette-controller", description=_TEXT, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"vedette-controller {__version__}")
    parser.set_defaults(run=None, log_level=logging.INFO)
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    settings = f"settings, all optional:\n{describe_settings(OPTIONS)}"

    init = verbs.add_parser("init", help="make a new controller", description=_INIT, formatter_class=raw)
    init.add_argument("--data-dir", type=Path, help=f"an empty or new directory ({DEFAULT_DATA_DIR})")
    init.add_argument("--listen", metavar="HOST:PORT", help=f"for agents and admins ({DEFAULT_LISTEN})")
    init.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address agents reach it by; may be repeated",
    )
    init.set_defaults(run=_init, log_level=logging.WARNING)  # what it made is printed, not logged

    serve = verbs.add_parser(
        "serve", help="serve agents and admins", description=_SERVE, epilog=settings, formatter_class=raw
    )
    serve.set_defaults(run=_serve)
    check = verbs.add_parser("check", help="examine a controller", description=_CHECK, formatter_class=raw)
    check.set_defaults(run=_check)
    backup = verbs.add_parser("backup", help="write a backup", description=_BACKUP, formatter_class=raw)
    backup.add_argument("file", type=Path, metavar="FILE", help="the file to write, or a folder of backups")
    backup.add_argument("--with-blobs", action="store_true", help="put the contents of all blobs into the file")
    backup.set_defaults(run=_backup)

    restore = verbs.add_parser("restore", help="put a backup back", description=_RESTORE, formatter_class=raw)
    restore.add_argument("file", type=Path, metavar="FILE", help="a backup")
    restore.add_argument("--data-dir", type=Path, help=f"where to ({DEFAULT_DATA_DIR})")
    restore.add_argument("--blobs-from", type=Path, metavar="FOLDER", help="where blobs lie that the backup only names")
    restore.add_argument("--yes", action="store_true", help="do not ask")
    restore.set_defaults(run=_restore)
    admin = verbs.add_parser("admin", help="make the admin's context anew", description=_ADMIN, formatter_class=raw)
    admin.add_argument("--yes", action="store_true", help="do not ask")
    admin.set_defaults(run=_admin)
    for verb in (serve, check, backup, admin):
        verb.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="TOML file (%(default)s)")
    for verb in (init, serve, check, backup, restore, admin):
        verb.add_argument("--verbose", action="store_true", help="say more, with stack traces")
    return parser


def _configure_log(level: int) -> None:
    log_to_journal_or_stderr(level, "%(asctime)s %(levelname)s %(name)s: %(message)s", "vedette-controller")


def _init(options: argparse.Namespace) -> int:
    from vedette.controller.first_use import Wish, make_controller

    wish = Wish(data_dir=options.data_dir, listen=options.listen, names=tuple(dict.fromkeys(options.dns)))
    print(make_controller(wish))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from vedette.controller.adapters.service_user import become_owner
    from vedette.controller.app import serve

    settings = ControllerSettings.load(options.config)
    become_owner(settings.data_dir)  # root would leave files that the service cannot write
    serve(settings)
    return 0


def _backup(options: argparse.Namespace) -> int:
    from vedette.controller.recovery import run_backup

    print(run_backup(ControllerSettings.load(options.config), options.file, with_blobs=options.with_blobs))
    return 0


def _restore(options: argparse.Namespace) -> int:
    from vedette.controller.recovery import run_restore

    for words in run_restore(options.file, options.data_dir, options.blobs_from, is_sure=options.yes):
        print(words, flush=True)
    return 0


def _admin(options: argparse.Namespace) -> int:
    from vedette.controller.admin_access import renew_admin

    for words in renew_admin(ControllerSettings.load(options.config), is_sure=options.yes):
        print(words, flush=True)
    return 0


def _check(options: argparse.Namespace) -> int:
    from vedette.controller.adapters.examine import examine
    from vedette.controller.rooms import MIGRATIONS

    is_good = True
    for finding in examine(ControllerSettings.load(options.config), MIGRATIONS):
        is_good = is_good and finding.is_good
        print(f"{'ok  ' if finding.is_good else 'FAIL'}  {finding.text}", flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
