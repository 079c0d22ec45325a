"""A server with real workers, and a process for clients of others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.appliance import Appliance
from tests.support.oip import NUMBERS, Client, ClientProcess, client_of, echo_release, install, served
from vedette.agent.adapters.oip.server import InferenceServer


@pytest.fixture
async def appliance(tmp_path: Path) -> AsyncIterator[Appliance]:
    made = Appliance(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def server(appliance: Appliance, tmp_path: Path) -> AsyncIterator[InferenceServer]:
    """A server with a model of every datatype, ``echo``, and one of flows, ``flow-threat``."""
    await install(appliance, echo_release(appliance.shelf, NUMBERS))
    await install(appliance, appliance.shelf.flow_release(1))
    async with served(appliance, tmp_path) as running:
        yield running


@pytest.fixture
async def client(server: InferenceServer) -> AsyncIterator[Client]:
    async with client_of(server) as made:
        yield made


@pytest.fixture(scope="session")
def triton() -> Iterator[ClientProcess]:
    made = ClientProcess()
    yield made
    made.close()
