"""A controller that commits telemetry and then never answers: ``python -m tests.support.stuck_controller CONFIG``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from vedette.controller import app
from vedette.controller.adapters.grpc.servicers import TelemetryServicer
from vedette.controller.settings import ControllerSettings


class Stuck(TelemetryServicer):
    """Says on standard output that a batch is committed; its acknowledgement never comes."""

    async def Report(self, request: Any, context: Any) -> Any:  # noqa: N802
        await super().Report(request, context)
        print("committed", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    app.TelemetryServicer = Stuck  # type: ignore[misc]
    app.serve(ControllerSettings.load(Path(sys.argv[1])))
