"""One run of the program: what was asked for globally, where the controller is, how to write.

The context file comes from ``--context``, else ``VEDETTE_CONTEXT``, else ``context`` of the settings file, else the
last ``vedette login``. Settings and login live in ``$XDG_CONFIG_HOME/vedette`` (``~/.config/vedette``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vedette.controller.cli.output import Output
from vedette.controller.cli.problems import Failed, Missing, Unreachable, Usage
from vedette.controller.context import AdminContext
from vedette.models import toml_settings as toml
from vedette.models.toml_settings import SettingsError

if TYPE_CHECKING:
    from vedette.controller.cli.client import AdminClient

T = TypeVar("T")

_PATIENCE_S = 120.0

OPTIONS = (
    toml.Option("context", toml.text(), "", "Context file to use when neither --context nor VEDETTE_CONTEXT names one"),
    toml.Option("output", toml.choice("table", "json"), "table", "How results are printed"),
    toml.Option("color", toml.choice("auto", "always", "never"), "auto", "When to colour"),
)


def _connect(context: AdminContext) -> AdminClient:
    from vedette.controller.cli.client import connect

    return connect(context)


@dataclass
class Session:
    """What one run knows. Flags may come before or after the verb; the last one counts.

    Args:
        connect: Makes the client of a context.
        now: The time.
        monotonic: Seconds that never go back.
        sleep: Waits so many seconds.
    """

    connect: Callable[[AdminContext], AdminClient] = _connect
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    flags: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings file's values, the defaults when there is none.

        Raises:
            Usage: The file was named and cannot be read, or is wrong.
        """
        named = self.flags.get("config")
        path = Path(named) if named else config_folder() / "config.toml"
        if not named and not path.exists():
            return {option.key: option.default for option in OPTIONS}
        return _loaded(lambda: toml.load_settings(path, OPTIONS))

    @property
    def output(self) -> Output:
        """Return where results and notes go."""
        return Output(self._choice("output"), self._choice("color"))

    @property
    def is_verbose(self) -> bool:
        """Tell whether stack traces are wanted."""
        return bool(self.flags.get("verbose"))

    def _choice(self, key: str) -> str:
        return str(self.flags.get(key) or self.settings[key])

    @cached_property
    def context(self) -> AdminContext:
        """Return where the controller is and who we are.

        Raises:
            Usage: No context is known, or the file is not one.
            Missing: The file does not exist.
            Failed: The file is not for this user.
        """
        return read_context(self._context_path())

    def _context_path(self) -> Path:
        named = self.flags.get("context") or os.environ.get("VEDETTE_CONTEXT") or self.settings["context"]
        if named:
            return Path(str(named)).expanduser()
        path = login_file()
        if not path.exists():
            raise Usage(
                "which controller? no context is known",
                "neither --context nor VEDETTE_CONTEXT is given, and nobody has logged in here",
                "vedette login DATA_DIR/admin.toml   (vedette-controller init writes that file)",
            )
        return path

    @cached_property
    def client(self) -> AdminClient:
        """Return the connection to the controller."""
        return self.connect(self.context)

    def follow(self, method: str, request: Any) -> Iterator[Any]:
        """Yield what a verb tells until it has ended, also across a restart of the controller.

        Raises:
            Unreachable: It did not answer at all, or was away for longer than two minutes.
            CliError: It refused.
        """
        is_known, lost_at = False, None
        while True:
            try:
                for message in self.client.follow(method, request):
                    is_known, lost_at = True, None
                    yield message
                return
            except Unreachable as exc:
                if not is_known or (lost_at is not None and self.monotonic() - lost_at > _PATIENCE_S):
                    raise
                if lost_at is None:
                    lost_at = self.monotonic()
                    self.output.note(f"Lost the controller ({exc.what}); what it does goes on. Waiting for it …")
            self.sleep(1.0)

    def close(self) -> None:
        """Close the connection if there is one."""
        if "client" in self.__dict__:
            self.client.close()


def _loaded(load: Callable[[], T]) -> T:
    try:
        return load()
    except SettingsError as exc:
        raise Usage(exc.what, exc.why, exc.remedy) from exc


def read_context(path: Path) -> AdminContext:
    """Return the context of a file.

    Raises:
        Usage: The file is no context.
        Missing: It does not exist.
        Failed: It is not for this user.
    """
    try:
        is_there = path.is_file()
    except PermissionError as exc:  # of its folder
        why = f"{exc.strerror}, you are user {os.geteuid()}"
        remedy = f"take a copy of your own, then log in with it: sudo install -o $USER -m 600 {path} ~/admin.toml"
        raise Failed(f"context file {path} cannot be read", why, remedy) from exc
    if not is_there:
        raise Missing(f"context file {path} does not exist", "", "vedette-controller init writes DATA_DIR/admin.toml")
    return _loaded(lambda: AdminContext.load(path))


def config_folder() -> Path:
    """Return the folder of this user's settings and login."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "vedette"


def login_file() -> Path:
    """Return where the last login is kept."""
    return config_folder() / "context.toml"


def current() -> Session:
    """Return the session of the command that runs."""
    found = click.get_current_context().find_object(Session)
    if found is None:
        raise RuntimeError("a command ran outside of a session")
    return found
