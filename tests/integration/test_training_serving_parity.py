"""What a model was trained on is what it is asked on an appliance: flow by flow, at any pace, to the last bit.

One side is training's own: a capture imported to a part, extracted, scored in one call of onnxruntime. The other is an
agent's: datagrams through a real socket, collector, pipeline and worker process, to lines in the sink.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.appliance import Appliance
from tests.support.captures import capture_datagrams
from tests.support.clock import FakeClock
from tests.support.flow_models import flow_release, trained_release
from tests.support.flow_packets import SECONDS as PACKETS_S
from tests.support.flow_packets import v5, v5_record
from tests.support.tiny_models import Shelf, assigned
from vedette.agent.adapters.inference.serving import Answer, Serving
from vedette.agent.adapters.pipeline import FlowPipeline, Serves
from vedette.agent.adapters.sinks.fanout import Verdicts
from vedette.agent.adapters.sources.collector import Collector
from vedette.agent.domain.priority import Priority
from vedette.agent.domain.windows import Windows
from vedette.controller.conversion.parity import open_session
from vedette.controller.jobs import import_data
from vedette.controller.jobs.harness import Job
from vedette.controller.training.rows import Source, flow_rows
from vedette.models.flows.captures import write_capture
from vedette.models.flows.datagrams import Datagram
from vedette.models.recipes import TrainingData
from vedette.models.release import Release
from vedette.models.verdict import time_text

SECONDS = 160.0
"""Of a capture in which the exporter falls silent twice, for 5 s, and attacks begin."""
BURST = 60  # datagrams: what a default socket buffer takes at once
STEP_S = 0.1


class Watched:
    """The models of an appliance, and what they were asked and answered."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.asked: list[npt.NDArray[np.float32]] = []
        self.answered: list[Mapping[str, npt.NDArray[Any]]] = []

    @property
    def actives(self) -> Mapping[str, Serves]:
        return self._serving.actives

    async def infer(
        self,
        slot: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        is_counted: bool = True,
        priority: Priority = Priority.FLOW,
    ) -> Answer:
        answer = await self._serving.infer(slot, inputs, is_counted=is_counted)
        if is_counted:
            self.asked.append(inputs["features"].copy())
            self.answered.append({name: output.copy() for name, output in answer.outputs.items()})
        return answer

    def reference(self, slot: str) -> bytes | None:
        return self._serving.reference(slot)


class Taken:
    """A collector, and how many datagrams of it have been decoded."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._handed_out = 0
        self.decoded = 0

    @property
    def is_empty(self) -> bool:
        return self._collector.is_empty

    def take(self, most: int) -> list[Datagram]:
        self.decoded = self._handed_out  # whoever asks for more is done with what it had
        taken = self._collector.take(most)
        self._handed_out += len(taken)
        return taken


class Lines:
    """A sink in memory."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, verdicts: Verdicts) -> None:
        self.text += b"".join(verdicts.lines)

    def verdicts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@dataclass(frozen=True, slots=True)
class Served:
    """What an agent made of some datagrams."""

    features: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    verdicts: list[dict[str, Any]]
    batches: tuple[int, ...]
    silences: int


class Agent:
    """The parts of an agent between its flow port and its sink, with a worker process of its own."""

    def __init__(self, appliance: Appliance) -> None:
        loop, self._has_datagrams = asyncio.get_running_loop(), asyncio.Event()
        clock = self.clock = FakeClock()

        def ready() -> None:
            loop.call_soon_threadsafe(self._has_datagrams.set)

        self.collector = Collector(("127.0.0.1", 0), 4 * 2**20, 64 * 2**20, ready)
        self.taken = Taken(self.collector)
        self.watched, self.lines = Watched(appliance.serving), Lines()
        self.pipeline = FlowPipeline(
            self.watched, self.lines, Windows(clock), clock, host="edge-7", emit_all=True, evidence_per_s=50
        )
        self._tasks = [
            asyncio.create_task(self.pipeline.gather(self.taken, self._has_datagrams, 0.2)),
            asyncio.create_task(self.pipeline.score_forever()),
        ]

    async def take(self, datagrams: Sequence[Datagram]) -> None:
        """Send datagrams all at once and let time pass until they are decoded, and no longer."""
        count = self.taken.decoded + len(datagrams)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            for datagram in datagrams:
                exporter.sendto(datagram.payload, ("127.0.0.1", self.collector.port))
        while self.collector.counters.datagrams < count or not self._has_datagrams.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # the collector's thread is at work, on no clock of ours
        while self.taken.decoded < count:
            await self.clock.advance(STEP_S)

    async def served(self) -> Served:
        """Return what was made of the datagrams that came, which were all."""
        self.pipeline.flush()
        await self.pipeline.drained()
        answered = self.watched.answered
        return Served(
            np.concatenate(self.watched.asked),
            np.concatenate([outputs["score"] for outputs in answered]),
            np.concatenate([outputs["label"] for outputs in answered]),
            self.lines.verdicts(),
            tuple(map(len, self.watched.asked)),
            self.pipeline.extractor.counters.silences,
        )

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.collector.close()


@asynccontextmanager
async def agent(folder: Path, shelf: Shelf, release: Release) -> AsyncIterator[Agent]:
    """Give an agent that serves a release."""
    appliance = Appliance(folder)
    await appliance.serving.install(assigned(release), release, lambda blob: shelf.fetch_to(appliance.blobs, blob))
    made = Agent(appliance)
    made.collector.start()
    try:
        yield made
    finally:
        await made.stop()
        await appliance.close()


async def send_one_by_one(to: Agent, datagrams: Sequence[Datagram]) -> None:
    """Send each datagram when the one before it was decoded, and no sooner after it than it was recorded."""
    for place, datagram in enumerate(datagrams):
        if place:
            due = to.clock.monotonic() + (datagram.at_ns - datagrams[place - 1].at_ns) / 1e9
            while to.clock.monotonic() < due:
                await to.clock.advance(STEP_S)
        await to.take([datagram])


async def send_in_bursts(to: Agent, datagrams: Sequence[Datagram]) -> None:
    """Send as many datagrams as a socket buffer holds, and the next as soon as those were decoded."""
    for begin in range(0, len(datagrams), BURST):
        await to.take(datagrams[begin : begin + BURST])


def rows_of_training(folder: Path, datagrams: Sequence[Datagram]) -> TrainingData:
    """Return the rows that a recipe gets of an imported capture."""
    with (folder / "cut.pcap").open("wb") as file:
        write_capture(file, datagrams)
    arguments = {"file": str(folder / "cut.pcap"), "format": "flows", "file_name": "cut.pcap", "kind": None}
    import_data.main(Job(folder, arguments | {"columns": None, "max_bytes": 1 << 30}, io.StringIO()))
    return flow_rows([Source(str(folder / import_data.PART_FILE), "cut.pcap")], [], lambda *_: None)


def scored_by_training(shelf: Shelf, release: Release, rows: TrainingData) -> tuple[Any, Any]:
    """Return the scores and labels of all rows, in one call."""
    session = open_session(shelf.blobs[release.builds[0].digest])
    scores, labels = session.run(["score", "label"], {"features": rows.features})
    return scores, labels


def assert_same_verdicts(served: Served, rows: TrainingData, scores: Any, labels: Any, release: Release) -> None:
    """Fail unless both sides have the same flows in the same order, each with the same features, score and label."""
    assert served.features.tobytes() == rows.features.tobytes()
    assert served.scores.tobytes() == scores.tobytes()
    assert served.labels.tobytes() == labels.tobytes()
    assert rows.flows is not None
    flows = zip(rows.flows.tolist(), scores.tolist(), labels.tolist(), strict=True)
    for line, (values, score, label) in zip(served.verdicts, flows, strict=True):
        flow, said = dict(zip(rows.flows.dtype.names or (), values, strict=True)), line["vedette"]
        assert (line["src_port"], line["dest_port"]) == (flow["src_port"], flow["dst_port"])
        assert (line["flow"]["start"], line["flow"]["end"]) == (time_text(flow["start_ms"]), time_text(flow["end_ms"]))
        assert (said["verdict"], said["flagged"]) == (release.labels[label], score >= release.threshold)
        assert said["score"] == round(score, 6)


@pytest.mark.slow
async def test_any_pace_gives_the_verdicts_that_training_would_bit_for_bit(tmp_path: Path) -> None:
    shelf = Shelf()
    release = trained_release(shelf, "base2/softflowd-v9")
    capture = capture_datagrams("shifted/pmacct-v9")
    cut = [datagram for datagram in capture if datagram.at_ns - capture[0].at_ns < SECONDS * 1e9]
    rows = rows_of_training(tmp_path, cut)
    scores, labels = scored_by_training(shelf, release, rows)
    assert 0 < np.count_nonzero(labels) < len(labels)  # some are flagged, some are not
    paces = [tmp_path / "recorded", tmp_path / "bursts"]
    for folder in paces:
        folder.mkdir()
    async with agent(paces[0], shelf, release) as slow:
        await send_one_by_one(slow, cut)
        recorded = await slow.served()
    async with agent(paces[1], shelf, release) as fast:
        await send_in_bursts(fast, cut)
        hurried = await fast.served()
    assert recorded.silences >= 2 > hurried.silences == 0
    assert len(recorded.batches) > 2 * len(hurried.batches)
    assert_same_verdicts(recorded, rows, scores, labels, release)
    assert_same_verdicts(hurried, rows, scores, labels, release)


async def test_a_flow_that_ends_before_it_starts_is_a_row_of_training_as_it_is_a_verdict(tmp_path: Path) -> None:
    shelf, backward, forward = Shelf(), v5_record(first=2000, last=1000), v5_record(ports=(1235, 80))
    datagrams = [Datagram(PACKETS_S * 10**9, "192.0.2.1", 2055, v5(backward, forward))]
    rows = rows_of_training(tmp_path, datagrams)
    async with agent(tmp_path, shelf, flow_release(shelf)) as one:
        await send_in_bursts(one, datagrams)
        served = await one.served()
    assert [line["src_port"] for line in served.verdicts] == [1234, 1235]
    assert served.features.tobytes() == rows.features.tobytes()
    assert rows.features[:, rows.schema.index("duration")].tolist() == [0.0, 1.0]
