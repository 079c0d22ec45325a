"""The three programs' first step: an installation without a role's extra says which one is missing.

The scripts are always installed, whatever the extras; so this module may import nothing but the standard library.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

_BRINGS = {
    "agent": ("grpc", "onnxruntime"),
    "controller": ("grpc", "click", "rich", "pyarrow", "lightgbm", "onnx"),
}
"""Libraries that only an extra brings, by extra."""


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
    # Looked up, not tried: programs import late, so a missing library would show in the middle of the work.
    missing = [name for name in _BRINGS[extra] if find_spec(name) is None]
    if missing:
        print(
            f"{program} cannot start.\n"
            f"Not installed: {', '.join(missing)}. This installation lacks the extra {extra}.\n"
            f"Install it: pip install 'vedette[{extra}]'",
            file=sys.stderr,
        )
        return 1
    return int(importlib.import_module(module).main() or 0)
