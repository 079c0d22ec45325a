"""A controller that kills itself when a store is asked for one thing: CONFIG STORE.METHOD before|after the commit."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from vedette.controller.__main__ import main
from vedette.controller.adapters.sqlite.agents import AgentStore
from vedette.controller.adapters.sqlite.datasets import DatasetStore
from vedette.controller.adapters.sqlite.registry import RegistryStore
from vedette.controller.adapters.sqlite.tokens import TokenStore

STORES = {store.__name__: store for store in (AgentStore, DatasetStore, RegistryStore, TokenStore)}


def doom(store: type, method: str, *, before: bool) -> None:
    """Replace a store's method by one that the process does not outlive."""
    store_it = getattr(store, method)

    def stored_no_more(*arguments: Any, **named: Any) -> None:
        if not before:
            store_it(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(store, method, stored_no_more)


if __name__ == "__main__":
    name, _, method = sys.argv[2].partition(".")
    doom(STORES[name], method, before=sys.argv[3] == "before")
    sys.exit(main(["serve", "--config", sys.argv[1]]))
