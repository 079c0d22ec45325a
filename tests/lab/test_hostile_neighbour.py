"""One appliance gone bad, with a valid key: the controller refuses it by name and nobody else notices."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tests.lab.commands import wait_until
from tests.lab.lab import AGENT, AGENT_STATE, BRISK, CONTROLLER, Lab
from tests.lab.models import flow_model

_PROGRAM = Path(__file__).with_name("hostile.py")
_PYTHON = "/usr/lib/vedette-agent/bin/python3"
_ANSWER_S = 10.0  # of an admin's command meanwhile, on a machine that the attack shares
_GROWTH = 2.0


def test_a_hostile_agent_disturbs_neither_the_controller_nor_the_others(lab: Lab, record_property: Any) -> None:
    seconds = 120 if lab.is_soak else 15
    controller = lab.controller()
    good = lab.agent("edge-1", settings=BRISK)
    bad = lab.agent("edge-2", settings=BRISK)
    lab.roll_out(lab.register(flow_model()), to="name=edge-1")
    lab.traffic(good)
    wait_until("the controller counts", lambda: lab.rows_counted(good) > 0)
    bad.systemctl("stop", AGENT)
    bad.put(_PROGRAM, "/root/hostile.py")
    sessions = lab.metrics(good)["vedette_agent_link_sessions_total"]
    process, memory = controller.main_pid(CONTROLLER), lab.metrics(controller)["process_resident_memory_bytes"]
    words = [
        "/usr/lib/vedette-agent/bin/python3",
        "-I",
        "/root/hostile.py",
        "ctl",
        str(seconds),
        f"{AGENT_STATE}/enrolment",
    ]
    attack: list[Any] = []
    thread = threading.Thread(target=lambda: attack.append(bad.run(words, timeout=seconds + 60).data))
    thread.start()

    slowest = 0.0
    while thread.is_alive():
        counted = lab.rows_counted(good)
        slowest = max(slowest, lab.vedette("agent ls").took_s)
        wait_until("the good agent's rows are counted", lambda: lab.rows_counted(good) > counted)  # noqa: B023
    thread.join()
    record_property("slowest answer", f"{slowest:.1f} s")
    (ends,) = attack
    record_property("wrong calls", str(sum(ends.values())))
    refused = {name: count for name, count in ends.items() if "large" in name or " 1000 " in name}
    assert refused
    assert not [name for name in refused if name.endswith(" OK")], ends
    assert slowest < _ANSWER_S
    assert controller.main_pid(CONTROLLER) == process
    after = lab.metrics(controller)
    assert after["process_resident_memory_bytes"] < _GROWTH * memory
    told = {name for name in after if name.startswith("vedette_controller_calls_total") and "message-unread" in name}
    assert told
    assert lab.metrics(good)["vedette_agent_link_sessions_total"] == sessions
    assert lab.conditions(good) == {}
    assert lab.fleet()["edge-1"]["state"] == "healthy"
    bad.systemctl("start", AGENT)
    wait_until("the bad one is welcome once it behaves", lambda: lab.fleet()["edge-2"]["state"] == "healthy")
