"""What the agent refuses is told with value and limit, counted, and what runs goes on."""

from __future__ import annotations

from dataclasses import replace

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.flow_models import flow_onnx
from vedette.wire.limits import MAX_MESSAGE_BYTES
from vedette.wire.values import DesiredState, GenerationResult, Outcome


async def serving(daemon: Daemon, controller: FakeController) -> None:
    await enrolled(daemon, controller)
    controller.desired = controller.assign(1, offer(controller, 1))
    await daemon.start()
    await daemon.until(lambda r: active(r) == 1)


async def answer_to(controller: FakeController, sequence: int) -> GenerationResult:
    return (await controller.until(lambda c: [r for r in c.results if r.sequence == sequence]))[0]


async def still_scores(daemon: Daemon) -> None:
    report = daemon.report()
    assert report["slots"]["flow-threat"]["active"]["version"] == 1
    before = report["counters"]["rows_scored"]
    daemon.send(capture_datagrams(CAPTURE))
    await daemon.until(lambda r: r["counters"]["rows_scored"] > before)


async def test_assignments_that_are_refused_or_fail_are_counted_by_their_code(
    daemon: Daemon, controller: FakeController
) -> None:
    await serving(daemon, controller)
    release = offer(controller, 2, bias=-6.0)
    wrong_byte = offer(controller, 3, bias=-7.0)
    controller.blobs[wrong_byte.builds[0].digest] = flow_onnx(-7.5)
    misfit = replace(release, version=4, inputs=(replace(release.inputs[0], shape=(-1, 3)),))

    controller.push(controller.assign(2, wrong_byte))
    result = await answer_to(controller, 2)
    assert f"{wrong_byte.builds[0].blob.size} bytes" in result.reason
    controller.push(controller.assign(3, misfit))
    assert "3" in (await answer_to(controller, 3)).reason
    controller.push(controller.assign(2, release))
    await controller.until(lambda c: [r for r in c.results if r.code == "old-sequence"])
    signing, controller.release_key = controller.release_key, controller.assignment_key
    controller.push(controller.assign(4, release))
    await answer_to(controller, 4)
    controller.release_key = signing
    controller.push(controller.assign(5, release, agent_id="agent-2"))
    await answer_to(controller, 5)

    counted = daemon.metrics()
    for outcome, code in (
        (Outcome.FAILED, "digest-mismatch"),
        (Outcome.FAILED, "model-refused"),
        (Outcome.REFUSED, "old-sequence"),
        (Outcome.REFUSED, "signature-invalid"),
        (Outcome.REFUSED, "wrong-agent"),
    ):
        assert counted[f'vedette_agent_assignments_total{{outcome="{outcome}",code="{code}"}}'] >= 1, (code, counted)
    assert counted["vedette_agent_downloads_damaged_total"] >= 2
    await still_scores(daemon)


async def test_a_controller_of_another_authority_is_refused_and_counted(
    daemon: Daemon, controller: FakeController
) -> None:
    await serving(daemon, controller)
    ports = (controller.port, controller.enrol_port)
    await controller.stop()
    stranger = FakeController()
    await stranger.start(*ports)
    try:
        report = await daemon.until(lambda r: "controller-certificate-wrong" in [c["code"] for c in r["conditions"]])
        assert stranger.hellos == []
    finally:
        await stranger.stop()
    (text,) = [c["text"] for c in report["conditions"] if c["code"] == "controller-certificate-wrong"]
    assert controller.address in text
    assert daemon.metrics()['vedette_agent_link_failures_total{code="controller-certificate-wrong"}'] >= 1
    await still_scores(daemon)


async def test_a_message_over_the_limit_ends_the_session_and_is_counted(
    daemon: Daemon, controller: FakeController
) -> None:
    await serving(daemon, controller)
    sent = controller.desired
    controller.push(DesiredState(assignment=b"x" * (MAX_MESSAGE_BYTES + 1), releases=()))
    report = await daemon.until(lambda r: "message-too-large" in [c["code"] for c in r["conditions"]])
    (text,) = [c["text"] for c in report["conditions"] if c["code"] == "message-too-large"]
    assert str(MAX_MESSAGE_BYTES) in text
    assert daemon.metrics()['vedette_agent_link_failures_total{code="message-too-large"}'] >= 1
    await still_scores(daemon)
    controller.desired = sent
    await daemon.until(lambda r: r["link"]["state"] == "connected")
