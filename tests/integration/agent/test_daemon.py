"""Claims about the whole agent: the real program, its workers, a real link, real packets."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.flow_models import flow_onnx
from vedette.wire.values import Outcome


async def test_a_token_a_model_and_packets_become_verdicts_and_telemetry(
    daemon: Daemon, controller: FakeController
) -> None:
    await daemon.start()
    assert (await daemon.until(lambda r: r["conditions"]))["conditions"][0]["code"] == "not-enrolled"
    await enrolled(daemon, controller)  # while it runs: it takes the identity up by itself
    await controller.until(lambda c: c.hellos)
    controller.chunk_bytes = 4096
    controller.push(controller.assign(1, offer(controller, 1)))
    await controller.until(lambda c: [r for r in c.results if r.sequence == 1 and r.outcome is Outcome.APPLIED])
    daemon.send(capture_datagrams(CAPTURE))
    report = await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    assert report["counters"]["rows_scored"] > 0
    windows = await controller.until(
        lambda c: [w for b in c.committed.values() for w in b.windows if w.slot == "flow-threat" and w.flagged]
    )
    assert windows[0].version == 1
    assert windows[0].profile
    assert await daemon.stop() == 0
    lines = daemon.lines()
    assert {line["host"] for line in lines} == {"edge-7"}
    assert all(line["vedette"]["flagged"] for line in lines)
    assert not daemon.report()["running"]


async def test_the_last_good_model_serves_after_a_kill_with_no_controller(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    await daemon.stop(signal.SIGKILL)
    await controller.stop()
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_flagged"] > 50)
    await daemon.until(lambda r: "controller-unreachable" in [c["code"] for c in r["conditions"]])


async def test_a_new_version_takes_over_and_a_bad_one_does_not(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    controller.push(controller.assign(2, offer(controller, 2, bias=-6.0)))
    await daemon.until(lambda r: active(r) == 2)
    bad = offer(controller, 3, bias=-7.0)
    other = flow_onnx(-7.5)  # another model, as long, under the signed digest
    assert len(other) == bad.builds[0].blob.size
    controller.blobs[bad.builds[0].digest] = other
    controller.push(controller.assign(3, bad))
    failed = await controller.until(lambda c: [r for r in c.results if r.sequence == 3])
    assert (failed[0].outcome, failed[0].code) == (Outcome.FAILED, "digest-mismatch")
    report = await daemon.until(lambda r: r["sequences"]["failed"] == 3)
    assert report["slots"]["flow-threat"]["active"]["version"] == 2
    assert report["sequences"]["running"] == 2


async def test_an_unsigned_release_and_an_older_sequence_are_refused(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    first, second = offer(controller, 1), offer(controller, 2, bias=-6.0)
    controller.desired = controller.assign(5, first)
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    controller.push(controller.assign(4, second))
    refused = await controller.until(lambda c: [r for r in c.results if r.sequence == 4])
    assert (refused[0].outcome, refused[0].code) == (Outcome.REFUSED, "old-sequence")
    controller.release_key = controller.assignment_key  # one key for both is not enough
    controller.push(controller.assign(6, second))
    unsigned = await controller.until(lambda c: [r for r in c.results if r.sequence == 6])
    assert (unsigned[0].outcome, unsigned[0].code) == (Outcome.REFUSED, "signature-invalid")
    assert active(daemon.report()) == 1


async def test_a_slot_that_is_wanted_no_more_is_emptied(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    controller.push(controller.assign(2))
    await daemon.until(lambda r: "flow-threat" not in r["slots"])
    await controller.until(lambda c: [r for r in c.results if r.sequence == 2 and r.outcome is Outcome.APPLIED])


async def test_a_killed_agent_goes_on_with_the_assignment_it_was_applying(
    daemon: Daemon, controller: FakeController
) -> None:
    await enrolled(daemon, controller)
    controller.stall_after_bytes = 4000
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await controller.stalled.wait()
    await daemon.stop(signal.SIGKILL)
    controller.stall_after_bytes = None
    controller.desired = None  # it has to remember by itself
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)


async def test_flows_are_taken_as_soon_as_their_port_is_free(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", daemon.port))
        await daemon.start()
        await daemon.until(lambda r: "collector-address" in [c["code"] for c in r["conditions"]])
    await daemon.until(lambda r: "collector-address" not in [c["code"] for c in r["conditions"]])
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["flows"] > 0)


async def test_rotating_the_verdict_file_loses_no_line(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    datagrams = capture_datagrams(CAPTURE)
    daemon.send(datagrams[: len(datagrams) // 2])
    before = await daemon.until(lambda r: r["counters"]["verdicts_written"] > 20)
    rotated = daemon.verdicts.with_suffix(".1")
    daemon.verdicts.rename(rotated)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    daemon.send(datagrams[len(datagrams) // 2 :])
    report = await daemon.until(
        lambda r: (
            r["counters"]["verdicts_written"] > before["counters"]["verdicts_written"] + 20 and daemon.verdicts.exists()
        )
    )
    assert await daemon.stop() == 0
    total = len(daemon.lines()) + len(rotated.read_text().splitlines())
    assert total >= report["counters"]["verdicts_written"]


async def test_two_agents_do_not_share_a_state_folder(daemon: Daemon) -> None:
    await daemon.start()
    assert await daemon.command("run") == 4
    assert (await daemon.until(lambda r: True))["running"]


async def test_the_main_process_never_loads_a_runtime(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)
    assert daemon.process is not None
    mapped = await asyncio.to_thread(Path(f"/proc/{daemon.process.pid}/maps").read_text)
    assert "onnxruntime" not in mapped
