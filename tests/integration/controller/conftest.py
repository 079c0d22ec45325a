from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.controller import Running, prepare, running


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(prepare(tmp_path / "data")) as made:
        yield made
