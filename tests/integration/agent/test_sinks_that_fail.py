"""The whole agent while its receivers are away, hang, and come back."""

from __future__ import annotations

from pathlib import Path

from tests.support.captures import capture_datagrams
from tests.support.daemon import CAPTURE, Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController
from tests.support.receivers import StreamReceiver, hanging_receiver, unused_port
from vedette.agent.domain.report import status_text


async def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, controller: FakeController) -> None:
    port = unused_port()
    with hanging_receiver() as hanging:
        extra = f"""
            sink.syslog.address = "tcp://127.0.0.1:{port}"
            sink.syslog.retry_cap_s = 0.1
            sink.webhook.url = "http://127.0.0.1:{hanging}/"
            sink.webhook.batch_age_s = 0
            sink.webhook.timeout_s = 0.2
        """
        daemon = Daemon(tmp_path, extra=extra)
        await enrolled(daemon, controller)
        controller.desired = controller.assign(1, offer(controller, 1))
        await daemon.start()
        await daemon.until(lambda r: active(r) == 1)
        daemon.send(capture_datagrams(CAPTURE))

        def failing(report: dict) -> list[str]:
            texts = [c["text"] for c in report["conditions"] if c["code"] == "sink-failed"]
            return [name for name in ("json", "syslog", "webhook") if any(f"sink {name}: " in text for text in texts)]

        report = await daemon.until(lambda r: failing(r) == ["syslog", "webhook"])
        assert {each["sink"]: bool(each["problem"]) for each in report["sinks"]} == {
            "json": False, "syslog": True, "webhook": True,
        }  # fmt: skip
        assert "syslog FAILED" in status_text(report)
        metrics = daemon.metrics()
        assert metrics['vedette_agent_sink_failed{sink="json"}'] == 0
        assert metrics['vedette_agent_sink_failed{sink="webhook"}'] == 1

        receiver = StreamReceiver(port)
        assert b" edge-7 vedette-agent " in receiver.message()
        report = await daemon.until(lambda r: failing(r) == ["webhook"])
        written = next(each["written"] for each in report["sinks"] if each["sink"] == "syslog")
        assert 0 < written <= len(daemon.lines())
        assert await daemon.stop() == 0
        receiver.close()
    assert "sink syslog: works again" in daemon.log()
