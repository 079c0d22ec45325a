"""What a newcomer reads: each step prints the next one, and a step that cannot be done says what to do instead."""

from __future__ import annotations

import gzip
import re

import pytest

from tests.lab.host import Host
from tests.lab.lab import ADMIN, AGENT, CONTROLLER, Lab

_MANUALS = {
    CONTROLLER: ("man1/vedette.1", "man8/vedette-controller.8", "man5/vedette-controller.toml.5"),
    AGENT: ("man8/vedette-agent.8", "man5/vedette-agent.toml.5"),
}
_COMPLETED = {
    AGENT: (("vedette-agent en", {"enroll"}), ("vedette-agent status --out", {"--output"})),
    CONTROLLER: (("vedette-controller ba", {"backup"}), ("vedette rollout sta", {"start"})),
}


def test_from_an_empty_host_to_an_enrolled_one_each_step_prints_the_next(lab: Lab) -> None:
    controller, edge = lab.bare("ctl"), lab.bare("edge-1")
    controller.boot()
    edge.boot()

    assert _last_of_ours(lab.install(controller, lab.packages.controller).out) == (
        "Next: vedette-controller init --dns NAME      NAME: how appliances reach this host"
    )
    made = controller.run(["vedette-controller", "init", "--dns", "ctl"])
    assert made.err == ""
    assert re.sub(r"controller \S+ in", "controller ID in", made.out) == _INIT
    for command in re.findall(r"^  (systemctl start .*|vedette login .*)$", made.out, re.MULTILINE):
        controller.run(command)
    assert "vedette token create" in controller.run("vedette").out
    token = controller.run("vedette token create --label site=paris").out.strip()

    assert _last_of_ours(lab.install(edge, lab.packages.agent).out) == (
        "Next: vedette-agent enroll --token TOKEN      TOKEN: what 'vedette token create' prints on the controller"
    )
    assert not edge.is_active(AGENT)
    enrolled = edge.run(["vedette-agent", "enroll", "--token", token])
    assert enrolled.out == ""
    assert enrolled.err == _ENROL
    assert "edge-1" in edge.run("vedette-agent status").out


_INIT = f"""\
Made controller ID in /var/lib/vedette-controller.
Agents are told to connect to ctl:7443 (addresses in /var/lib/vedette-controller/controller.toml; \
init --dns NAME sets them).
The release key in /var/lib/vedette-controller/keys is online: whoever can read this machine's files can sign models.

Next:
  systemctl start vedette-controller
  vedette login {ADMIN}
  vedette token create --label site=SITE       then on each appliance: vedette-agent enroll --token TOKEN
An admin who is not root gets a copy, and logs in with it (it holds a private key):
  install -m 600 -o USER {ADMIN} ~USER/admin.toml
"""
_ENROL = """\
Enrolled as edge-1 with the controller at ctl:7443.
Starting vedette-agent.service …
It serves and is connected to the controller.
Next: have routers send NetFlow v5, v9 or IPFIX to this appliance, UDP 2055.
Look at it: vedette-agent status
"""


def _last_of_ours(said: str) -> str:
    return next(line for line in reversed(said.splitlines()) if "vedette" in line and not line.startswith("Setting up"))


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("vedette-agent enroll --token vdt1.x", 4, ["vedette-agent enroll is for root", "sudo vedette-agent enroll"]),
        ("vedette-agent status", 4, ["vedette-agent status is for root", "sudo vedette-agent status"]),
        ("vedette-agent configure", 4, ["vedette-agent configure is for root", "sudo vedette-agent configure"]),
    ],
)
def test_who_is_not_root_on_an_appliance_is_told_to_use_sudo(
    lab: Lab, command: str, code: int, words: list[str]
) -> None:
    host = lab.with_package("one", lab.packages.agent)
    host.boot()
    said = host.run(command, user="nobody", check=False)
    assert said.code == code
    assert all(each in said.err for each in words)
    assert len(said.err.splitlines()) == 3


def test_who_is_not_root_on_a_controller_is_told_what_to_do(lab: Lab) -> None:
    host = lab.with_package("one", lab.packages.controller)
    host.boot()
    for command, hint in (
        ("vedette-controller init", "sudo"),
        ("vedette-controller check", "sudo"),
        ("vedette-controller backup /tmp/b.tar", "sudo"),
        ("vedette agent ls", "vedette login"),
    ):
        said = host.run(command, user="nobody", check=False)
        assert said.code != 0
        assert hint in said.text, said
        assert "Traceback" not in said.text


def test_a_controller_that_was_not_made_yet_says_how_to_make_it(lab: Lab) -> None:
    host = lab.with_package("one", lab.packages.controller)
    host.boot()
    host.systemctl("start", CONTROLLER)
    assert host.unit(CONTROLLER, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    for command in ("vedette-controller serve", "vedette-controller check"):
        said = host.run(command, check=False)
        assert said.code != 0
        assert "vedette-controller init" in said.text, said


@pytest.mark.parametrize("package", [AGENT, CONTROLLER])
def test_manuals_and_completion_are_there_once_it_is_installed(lab: Lab, package: str) -> None:
    host = lab.with_package("one", lab.packages.agent if package == AGENT else lab.packages.controller)
    host.boot()
    for page in _MANUALS[package]:
        text = gzip.decompress((host.root / f"usr/share/man/{page}.gz").read_bytes()).decode()
        assert text.startswith((".TH", '.\\"'))
        assert ".SH NAME" in text or '.SH "NAME"' in text
    for line, wanted in _COMPLETED[package]:
        assert wanted <= _completed(host, line)


def _completed(host: Host, line: str) -> set[str]:
    """Return what bash offers for a line, by the function that the package has given it."""
    program, *_, word = line.split()
    script = f"""
source /usr/share/bash-completion/completions/{program}
read -ra COMP_WORDS <<< '{line}'
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_LINE='{line}' COMP_POINT=${{#COMP_LINE}}
given=$(complete -p {program}); given=${{given#*-F }}
"${{given%% *}}" {program} '{word}' ''
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return {each.strip() for each in host.run(["bash", "-c", script]).out.splitlines()}
