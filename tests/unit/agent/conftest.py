"""What the agent's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vedette.agent.adapters.fleet.identity import IdentityStore


@pytest.fixture(scope="session")
def agent_key(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A private key, PEM."""
    folder: Path = tmp_path_factory.mktemp("key")
    return IdentityStore(folder).key()
