"""The agent, which looks at its disk and tries again in tenths of a second instead of seconds."""

from __future__ import annotations

import sys

from vedette.agent import app
from vedette.agent.cli import run_command

if __name__ == "__main__":
    app._RETRY_BASE_S = 0.2
    app._DISK_CHECK_S = 0.2
    sys.exit(run_command(sys.argv[1:]))
