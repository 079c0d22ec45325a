"""Claims about a whole agent that reaches its controller through a proxy only."""

from __future__ import annotations

from pathlib import Path

from tests.support.connect_proxy import ConnectProxy
from tests.support.daemon import Daemon, active, enrolled, offer
from tests.support.fake_controller import FakeController


async def test_enrolment_status_and_models_go_through_the_proxy(tmp_path: Path, controller: FakeController) -> None:
    async with ConnectProxy(user="edge:p@ss").serving() as proxy:
        daemon = Daemon(tmp_path, extra=f'link.proxy = "http://edge:p%40ss@127.0.0.1:{proxy.port}"\n')
        await enrolled(daemon, controller)
        release = offer(controller, 1)
        controller.desired = controller.assign(1, release)
        await daemon.start()
        await daemon.until(lambda r: active(r) == 1)
        assert set(proxy.asked) == {controller.address, f"127.0.0.1:{controller.enrol_port}"}
        assert proxy.bytes_through > release.builds[0].blob.size
        proxy.refuse = 403
        proxy.die()
        refused = await daemon.until(lambda r: [c for c in r["conditions"] if c["code"] == "proxy-refused"])
        assert active(refused) == 1
        proxy.refuse = 0
        await daemon.until(lambda r: r["link"]["state"] == "connected")
        assert "proxy-refused" not in [condition["code"] for condition in daemon.report()["conditions"]]
        assert await daemon.stop() == 0
    assert "p@ss" not in daemon.log()
    assert "ZWRnZTpw" not in daemon.log()  # the same as the header has it
    assert "http_connect" not in daemon.log()  # nor is each try in the log by grpc's own hand
