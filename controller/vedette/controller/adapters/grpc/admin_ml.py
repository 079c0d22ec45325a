"""The verbs of data, runs, versions and drift in the Admin service: convert, call, convert, return."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

from grpc import aio

from vedette.controller.adapters.grpc.uploads import upload
from vedette.controller.services.datasets import DatasetService
from vedette.controller.services.drift import DriftService
from vedette.controller.services.registry import RegistryService
from vedette.controller.services.runs import RunService
from vedette.wire import convert
from vedette.wire.systemd import fields
from vedette.wire.v1 import admin_pb2

logger = logging.getLogger(__name__)

Context = aio.ServicerContext[Any, Any]


class AdminMl:
    """A part of the Admin service.

    Args:
        data: Keeps datasets.
        runs: Trains.
        versions: Keeps what was trained or uploaded.
        drift: Compares.
        caller: Tells the name of the admin behind a call.
    """

    def __init__(
        self,
        data: DatasetService,
        runs: RunService,
        versions: RegistryService,
        drift: DriftService,
        caller: Callable[[Context], str],
    ) -> None:
        self._data = data
        self._runs = runs
        self._versions = versions
        self._drift = drift
        self._caller = caller

    async def ImportData(  # noqa: N802
        self, requests: AsyncIterator[admin_pb2.ImportDataRequest], context: Context
    ) -> admin_pb2.DataImport:
        """Add a file to a dataset."""
        head, pieces = await upload(requests)
        done = await self._data.import_data(head.dataset, head.format, head.file_name, head.total_bytes, pieces)
        return convert.DATA_IMPORT.to_wire(done)

    async def ImportLabels(  # noqa: N802
        self, requests: AsyncIterator[admin_pb2.ImportLabelsRequest], context: Context
    ) -> admin_pb2.LabelImport:
        """Add a file of label windows to a dataset."""
        head, pieces = await upload(requests)
        done = await self._data.import_labels(head.dataset, head.file_name, head.total_bytes, pieces)
        return convert.LABEL_IMPORT.to_wire(done)

    async def ListDatasets(  # noqa: N802
        self, request: admin_pb2.ListDatasetsRequest, context: Context
    ) -> admin_pb2.DatasetList:
        """Return all datasets in short."""
        found = await self._data.datasets()
        return admin_pb2.DatasetList(datasets=[convert.DATASET.to_wire(item) for item in found])

    async def GetDataset(self, request: admin_pb2.GetDatasetRequest, context: Context) -> admin_pb2.Dataset:  # noqa: N802
        """Return one dataset, whole."""
        return convert.DATASET.to_wire(await self._data.dataset(request.name))

    async def CreateSnapshot(  # noqa: N802
        self, request: admin_pb2.CreateSnapshotRequest, context: Context
    ) -> admin_pb2.Snapshot:
        """Fix what a dataset holds now."""
        return convert.SNAPSHOT.to_wire(await self._data.create_snapshot(request.dataset))

    async def GetSnapshot(self, request: admin_pb2.GetSnapshotRequest, context: Context) -> admin_pb2.Snapshot:  # noqa: N802
        """Return one snapshot."""
        snapshot, _ = await self._data.snapshot(request.name)
        return convert.SNAPSHOT.to_wire(snapshot)

    async def StartRun(self, request: admin_pb2.StartRunRequest, context: Context) -> admin_pb2.Run:  # noqa: N802
        """Queue a training run and return it at once."""
        started = await self._runs.start(request.recipe, request.snapshot, dict(request.parameters), request.model)
        told = self._caller(context), started.run, request.recipe, request.snapshot
        logger.info("%s started run %s: %s on %s", *told, extra=fields(run=started.run))
        return convert.RUN.to_wire(started)

    async def ListRuns(self, request: admin_pb2.ListRunsRequest, context: Context) -> admin_pb2.RunList:  # noqa: N802
        """Return the newest runs, newest first."""
        return admin_pb2.RunList(runs=[convert.RUN.to_wire(item) for item in await self._runs.all()])

    async def GetRun(self, request: admin_pb2.GetRunRequest, context: Context) -> admin_pb2.Run:  # noqa: N802
        """Return one run."""
        return convert.RUN.to_wire(await self._runs.get(request.run))

    async def WatchRun(self, request: admin_pb2.GetRunRequest, context: Context) -> AsyncIterator[admin_pb2.Run]:  # noqa: N802
        """Send a run now and at every change, until it has ended."""
        async for item in self._runs.watch(request.run):
            yield convert.RUN.to_wire(item)

    async def RegisterModel(  # noqa: N802
        self, requests: AsyncIterator[admin_pb2.RegisterModelRequest], context: Context
    ) -> admin_pb2.Version:
        """Make an uploaded file the next version of a model."""
        head, pieces = await upload(requests)
        version = await self._versions.register(
            head.model, head.file_name, head.total_bytes, pieces, schema=head.schema
        )
        logger.info("%s uploaded %s", self._caller(context), version.version, extra=fields(model=version.version))
        return convert.VERSION.to_wire(version)

    async def ListVersions(self, request: admin_pb2.ListVersionsRequest, context: Context) -> admin_pb2.VersionList:  # noqa: N802
        """Return the versions of a model, or of all, newest first within each."""
        found = await self._versions.versions(request.model)
        return admin_pb2.VersionList(versions=[convert.VERSION.to_wire(item) for item in found])

    async def GetVersion(self, request: admin_pb2.GetVersionRequest, context: Context) -> admin_pb2.Version:  # noqa: N802
        """Return one version."""
        return convert.VERSION.to_wire(await self._versions.version(request.version))

    async def GetDrift(self, request: admin_pb2.GetDriftRequest, context: Context) -> admin_pb2.DriftReport:  # noqa: N802
        """Return how far live data is from what a model's versions were trained on."""
        report = await self._drift.report(request.model, timedelta(seconds=request.window_s))
        return convert.DRIFT.to_wire(report)
