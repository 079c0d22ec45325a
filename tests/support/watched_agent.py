"""The agent program, saying on standard error what it imports: ``python -m tests.support.watched_agent``."""

from __future__ import annotations

import os
import sys

PREFIX = "imported "


def _tell(event: str, arguments: tuple[object, ...]) -> None:
    if event == "import":
        os.write(2, f"{PREFIX}{arguments[0]}\n".encode())


if __name__ == "__main__":
    sys.addaudithook(_tell)
    from vedette.agent.__main__ import main

    sys.exit(main())
