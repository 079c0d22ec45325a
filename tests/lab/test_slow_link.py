"""A slow, lossy line that also breaks: models arrive, once, and nothing else waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, CONTROLLER, SLOT, Lab
from tests.lab.models import flow_model

RATE, LOSS_PERCENT = "256kbit", 5
_BYTES_PER_S = 32_000
_PARTIAL = f"{AGENT_STATE}/blobs/partial"
_KEPT = f"{AGENT_STATE}/blobs/sha256"
_RECEIVED = "vedette_agent_download_bytes_total"
_REPEATED = "vedette_agent_download_repeated_bytes_total"
_MOST_TWICE = 0.05
_STATUS_S = 30
"""The controller's ``fleet.status_interval_s``: an agent is heard at least so often, whatever else the line carries."""


def _make_slow(host: Host) -> None:
    host.link.limit(RATE)
    host.link.loss(LOSS_PERCENT)


def _bytes_in(agent: Host, folder: str) -> int:
    said = agent.run(f"find {folder} -type f -printf '%s\\n'").out.split()
    return sum(map(int, said))


def _shown_share(lab: Lab, agent: Host) -> int:
    """Return how much of a download ``vedette agent ls`` shows, in percent; -1 is none."""
    line = next(line for line in lab.vedette("agent ls").out.splitlines() if line.startswith(agent.name))
    _, found, rest = line.partition("downloading ")
    return int(rest.split()[0]) if found else -1


@dataclass(slots=True)
class _Watch:
    """Looks at a download from both ends and remembers the worst it saw."""

    lab: Lab
    agent: Host
    verdicts: int = 0
    shown: int = -1
    longest_quiet_s: float = 0.0
    _heard: str = ""
    _heard_at: float = 0.0

    def until_received(self, size: int, timeout: float) -> None:
        """Wait until so many bytes lie in the partial file, and hear the agent meanwhile."""
        self._heard_at = time.monotonic()
        wait_until(f"{size} bytes are there", lambda: self._look() and _bytes_in(self.agent, _PARTIAL) >= size, timeout)

    def until(self, what: str, holds: Callable[[], Any], timeout: float) -> None:
        """Wait for something else in the same way."""
        self._heard_at = time.monotonic()
        wait_until(what, lambda: self._look() and holds(), timeout)

    def _look(self) -> bool:
        known, now = self.lab.fleet()[self.agent.name], time.monotonic()
        if known["seen"] != self._heard:
            self._heard, self._heard_at = known["seen"], now
        self.longest_quiet_s = max(self.longest_quiet_s, now - self._heard_at)
        if self.shown <= 0:
            self.shown = _shown_share(self.lab, self.agent)
        return True


def test_a_model_arrives_once_over_a_slow_lossy_line_that_breaks_three_times(lab: Lab, record_property: Any) -> None:
    size = (20 if lab.is_soak else 4) << 20
    patience = 3 * size / _BYTES_PER_S
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model(-5.0)))
    lab.traffic(edge, factor=2)
    lab.await_verdicts(edge)
    before = _bytes_in(edge, _KEPT)
    version = lab.register(flow_model(-4.0, size))
    _make_slow(controller)  # at its end, so that the exporter's datagrams do not share the line
    on_the_wire, begun = controller.link.counters().sent_bytes, time.monotonic()
    rollout = lab.start_rollout(version)
    watch = _Watch(lab, edge)

    watch.until_received(size // 5, patience)
    controller.link.down()
    wait_until("the agent knows", lambda: lab.status(edge)["link"]["state"] != "connected")
    lab.await_verdicts(edge)
    controller.link.up()

    watch.until_received(2 * size // 5, patience)
    repeated = lab.metrics(edge)[_REPEATED]
    edge.kill()
    edge.boot()
    kept = _bytes_in(edge, _PARTIAL) + _bytes_in(edge, _KEPT) - before
    lab.await_verdicts(edge)

    watch.until_received(3 * size // 5, patience)
    controller.systemctl("restart", CONTROLLER)
    lab.await_verdicts(edge)

    watch.until(f"{version} is active", lambda: lab.active(edge) == version, patience)
    took = time.monotonic() - begun
    measured = lab.metrics(edge)
    received = kept + repeated + measured[_RECEIVED]
    wanted = _bytes_in(edge, _KEPT) - before
    crossed = controller.link.counters().sent_bytes - on_the_wire
    record_property("arrived in", f"{took:.0f} s")
    record_property("accepted twice", f"{repeated + measured[_REPEATED]:.0f} of {wanted} bytes")
    record_property("on the wire", f"{crossed / wanted:.2f} times that")
    stops = [text for text in edge.told(AGENT) if text.startswith("download of") and "stopped" in text]
    record_property("begun again since the boot", f"{len(stops)} times")
    record_property("longest quiet", f"{watch.longest_quiet_s:.0f} s")

    assert wanted >= size
    assert received == wanted + repeated + measured[_REPEATED]
    assert repeated + measured[_REPEATED] <= _MOST_TWICE * wanted
    assert crossed < 1.25 * wanted
    assert watch.shown > 0
    assert watch.longest_quiet_s < _STATUS_S + 15
    assert lab.vedette(f"rollout watch {rollout}").ok
    assert edge.is_active(AGENT)
    lab.await_verdicts(edge)


def test_three_agents_on_slow_lines_all_get_their_model(lab: Lab) -> None:
    lab.controller()
    edges = [lab.agent(f"edge-{number}", settings=BRISK) for number in (1, 2, 3)]
    for edge in edges:
        _make_slow(edge)
    version = lab.register(flow_model(size_bytes=(2 << 20) if lab.is_soak else 512 << 10))
    lab.roll_out(version, timeout=180)
    assert {lab.active(edge) for edge in edges} == {f"{SLOT}:1"}
    assert all(lab.metrics(edge)[_REPEATED] == 0 for edge in edges)
