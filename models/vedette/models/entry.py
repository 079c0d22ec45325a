"""The three programs' first step: an installation without a role's extra says which one is missing.

The scripts are always installed, whatever the extras; so this module may import nothing but the standard library.
"""

from __future__ import annotations

import importlib
import sys


def vedette() -> int:
    """Run the admin CLI."""
    return _run("vedette", "vedette.controller.cli", "controller")


def vedette_controller() -> int:
    """Run the controller."""
    return _run("vedette-controller", "vedette.controller.__main__", "controller")


def vedette_agent() -> int:
    """Run the agent."""
    return _run("vedette-agent", "vedette.agent.__main__", "agent")


def _run(program: str, module: str, extra: str) -> int:
    try:
        main = importlib.import_module(module).main
        return int(main() or 0)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] == "vedette":
            raise
        print(
            f"{program} cannot start.\n"
            f"Its library {exc.name} is not installed: this installation lacks the extra {extra}.\n"
            f"Install it: pip install 'vedette[{extra}]'",
            file=sys.stderr,
        )
        return 1
