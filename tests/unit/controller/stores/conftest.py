from collections.abc import Iterator
from pathlib import Path

import pytest

from vedette.controller.adapters.sqlite import agents, telemetry, tokens
from vedette.controller.adapters.sqlite.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "controller.db")
    made.migrate((*agents.MIGRATIONS, *tokens.MIGRATIONS, *telemetry.MIGRATIONS))
    yield made
    made.close()
