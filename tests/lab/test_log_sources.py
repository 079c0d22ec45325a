"""Suricata's log on an appliance: read by its group under the packaged unit, across logrotate and a reboot."""

from __future__ import annotations

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, VERDICTS, Lab
from tests.lab.models import flow_model
from tests.support.captures import capture_datagrams
from tests.support.flow_logs import eve_lines
from vedette.models.flows.netflow import FlowDecoder

_LOG = "/var/log/suricata/eve.json"
_EVE = f'{BRISK}\n[source.netflow]\nlisten = ""\n[source.eve]\npath = "{_LOG}"\n'
_ROTATION = "/var/log/suricata/*.json {\n rotate 3\n compress\n delaycompress\n create 0640 suricata suricata\n}\n"


def _records(lab: Lab, edge: Host) -> int:
    (source,) = lab.status(edge)["sources"]
    assert (source["bad"], source["gaps"]) == ({}, 0)
    return int(source["records"])


def test_suricata_s_log_is_read_by_its_group_across_logrotate_and_a_reboot(lab: Lab) -> None:
    lab.controller()
    edge = lab.agent("edge-1", settings=_EVE)
    lab.roll_out(lab.register(flow_model()))
    edge.run("useradd --system --user-group suricata && install -d -o suricata -g suricata -m 750 /var/log/suricata")
    edge.put(_ROTATION, "/etc/logrotate.d/suricata")
    lines = [
        line.rstrip(b"\n") + b"\n"
        for line in eve_lines(FlowDecoder().decode_many(capture_datagrams("base/softflowd-ipfix-biflow"))[:800])
    ]

    def log(first: int, last: int) -> None:
        edge.run(f"umask 027; cat >> {_LOG}", user="suricata", stdin=b"".join(lines[first:last]))

    def rotate() -> None:
        edge.run("logrotate --force /etc/logrotate.d/suricata")

    log(0, 300)
    text = wait_until("it says that it may not", lambda: lab.conditions(edge).get("source-failed"))
    assert "usermod -aG GROUP vedette-agent" in text
    edge.run(f"usermod -aG suricata {AGENT}")
    edge.systemctl("restart", AGENT)
    wait_until("what was written is read", lambda: _records(lab, edge) == 300)
    assert lab.conditions(edge) == {}

    for first in (300, 400):  # the first is rotated away before anybody may have looked at it
        rotate()
        log(first, first + 100)
    wait_until("both were read", lambda: _records(lab, edge) == 500)
    edge.reboot()
    rotate()
    log(500, 800)
    wait_until("the rest is read, and nothing again", lambda: _records(lab, edge) == 300)
    wait_until("each flow has a verdict", lambda: lab.verdict_count(edge) == 800, 60)
    exporters = edge.run(f'grep -c \'"exporter":"{_LOG}"\' {VERDICTS}').out.strip()
    assert exporters == "800"
