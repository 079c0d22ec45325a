"""Fixtures of the serving tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.appliance import Appliance


@pytest.fixture
async def appliance(tmp_path: Path) -> AsyncIterator[Appliance]:
    made = Appliance(tmp_path)
    yield made
    await made.close()
