"""Speed from records to verdicts on one core: stitching, features, and the cascade that the recipe trains.

Measured in CPU seconds of this process, all of it single-threaded: what else the machine does matters less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tests.support.captures import capture_datagrams
from tests.support.flow_training import capture_flows, capture_records, capture_training, flow_threat
from tests.support.flows import cut
from vedette.controller.conversion.models import cascade_to_onnx
from vedette.controller.conversion.parity import open_session
from vedette.models.flows.extract import FlowExtractor
from vedette.models.flows.netflow import FlowDecoder
from vedette.models.flows.records import FlowRecords
from vedette.models.flows.stitch import stitch

_CAPTURE = "base/softflowd-v9"
_REPEATS = 5


def run() -> dict[str, float]:
    """Return records, flows and rows per CPU second, each the best of five."""
    records = capture_records(_CAPTURE)
    dense = _ticks_of(records, 1024)
    figures = {"stitching at 1,024 records/s": len(records) / _best(lambda: [stitch(p) for p in cut(records, 1024)])}
    for size in (256, 1024, 4096):
        packed = _ticks_of(records, size)
        seconds = _best(lambda packed=packed, size=size: _extract(packed, size))
        figures[f"features at ticks of {size} records/s"] = len(records) / seconds
    figures["features at the recorded pace records/s"] = len(records) / _best(lambda: _extract(records, 1024))
    flows = len(capture_flows(_CAPTURE))
    figures["features at ticks of 1024 biflows/s"] = flows / _best(lambda: _extract(dense, 1024))
    return figures | _cascade()


def _cascade() -> dict[str, float]:
    recipe, data = flow_threat(), capture_training(_CAPTURE)
    begin = time.process_time()
    trained = recipe.train(data, recipe.spec.resolve({}), lambda *_: None)
    figures = {"training on one capture s": time.process_time() - begin}
    session = open_session(cascade_to_onnx(trained.fitted))
    benign = data.features[data.labels == 0]
    for what, rows in (("all kinds", data.features), ("benign", np.resize(benign, (16_384, benign.shape[1])))):
        for size in (256, 1024):
            batches = [np.ascontiguousarray(rows[at : at + size]) for at in range(0, len(rows) - size, size)]
            seconds = _best(lambda batches=batches: [session.run(None, {"features": batch}) for batch in batches])
            figures[f"cascade, {what}, batches of {size} rows/s"] = len(batches) * size / seconds
    datagrams = capture_datagrams(_CAPTURE)

    def datagram_to_verdict() -> None:
        decoder, extractor = FlowDecoder(), FlowExtractor()
        for at in range(0, len(datagrams), 64):
            decoded = decoder.decode_many(datagrams[at : at + 64])
            batch = extractor.push(_ticks_of(decoded, 1024, first=at), now_ms=0)
            if batch is not None:
                session.run(None, {"features": batch.features})

    figures["datagram to verdict records/s"] = len(capture_records(_CAPTURE)) / _best(datagram_to_verdict)
    figures["datagram to verdict biflows/s"] = len(capture_flows(_CAPTURE)) / _best(datagram_to_verdict)
    return figures


def _ticks_of(records: FlowRecords, size: int, *, first: int = 0) -> FlowRecords:
    """Return the records with export times that put ``size`` of them into each second: a busy exporter."""
    packed = records.copy()
    packed["export_ms"] = records["export_ms"][0] + (first + np.arange(len(records)) // size) * 1000
    return packed


def _extract(records: FlowRecords, size: int) -> None:
    extractor = FlowExtractor()
    for piece in cut(records, size):
        extractor.push(piece, now_ms=0)
    extractor.flush()


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)
