"""The controller is elsewhere, has no name, or something else answers in its place: agents say so and come back."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, CONTROLLER, Lab
from tests.lab.models import flow_model

_PORT = 7443
_HEARD = "/run/portal.heard"
_TRIES = 6
_SESSIONS = "vedette_agent_link_sessions_total"

_PORTAL = """
import socket, ssl, sys
port, heard, certificate = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = None
if certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
with socket.create_server(("", port)) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                first = connection.recv(16, socket.MSG_PEEK)
                with open(heard, "a") as file:
                    print(first[:3].hex(), file=file, flush=True)
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 302 Found\\r\\nLocation: http://portal/\\r\\n\\r\\n")
            except OSError:
                pass
"""
"""Answers on one port as a captive portal does, and notes how each connection began."""


def _serving(lab: Lab, settings: str = BRISK) -> Host:
    edge = lab.agent("edge-1", settings=settings)
    lab.roll_out(lab.register(flow_model()))
    lab.traffic(edge)
    lab.await_verdicts(edge)
    return edge


def _failures(lab: Lab, edge: Host) -> float:
    name = "vedette_agent_link_failures_total"
    return sum(value for key, value in lab.metrics(edge).items() if key.startswith(name))


def test_agents_find_a_controller_that_moved_to_another_address(lab: Lab) -> None:
    controller = lab.controller()
    edge = _serving(lab)
    sessions = lab.metrics(edge)[_SESSIONS]
    lab.move(controller)
    lab.await_verdicts(edge)
    wait_until("it has a session at the new address", lambda: lab.metrics(edge)[_SESSIONS] > sessions, 60)
    assert controller.address in controller.run("ss -Htn state established sport = :7443 dst = " + edge.address).out
    wait_until("the controller has it back", lambda: lab.is_online(edge))
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {})


def test_an_agent_whose_controller_s_name_cannot_be_resolved_says_so_reboots_and_serves(lab: Lab) -> None:
    controller = lab.controller()
    edge = _serving(lab)
    names = edge.read("/etc/hosts")
    edge.put("127.0.0.1 localhost\n", "/etc/hosts")
    controller.systemctl("restart", CONTROLLER)
    text = wait_until("it says why", lambda: lab.conditions(edge).get("controller-unreachable"))
    assert f"ctl:{_PORT}" in text
    assert "DNS" in text or "resol" in text
    edge.reboot()
    assert edge.is_active(AGENT)
    lab.await_verdicts(edge)
    edge.put(names, "/etc/hosts")
    wait_until("it is back", lambda: lab.is_online(edge), 60)
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {})


def test_an_agent_with_a_second_address_uses_it_while_the_first_is_dead(lab: Lab) -> None:
    lab.controller()
    lab.bare("elsewhere")  # a name that leads to a host that is off
    edge = _serving(lab, f'controller = ["elsewhere:{_PORT}", "ctl:{_PORT}"]\n{BRISK}')
    assert lab.status(edge)["link"]["address"] == f"ctl:{_PORT}"
    assert any("elsewhere" in text for text in edge.told(AGENT))
    assert lab.conditions(edge) == {}


@pytest.mark.parametrize("kind", ["plain HTTP", "another certificate"])
def test_whoever_answers_in_the_controller_s_place_is_named_and_asked_once_a_try(lab: Lab, kind: str) -> None:
    controller = lab.controller()
    edge = _serving(lab)
    controller.put(_PORTAL, "/root/portal.py")
    certificate = "/root/portal.pem" if kind != "plain HTTP" else ""
    if certificate:
        controller.put(_stranger_s_certificate(), certificate)
    controller.systemctl("stop", CONTROLLER)
    controller.run(
        ["systemd-run", "--quiet", "--unit=portal", "python3", "/root/portal.py", str(_PORT), _HEARD, certificate]
    )
    wait_until("it is told by name", lambda: "controller-certificate-wrong" in lab.conditions(edge), 60)
    wait_until("it was tried some times", lambda: _failures(lab, edge) >= _TRIES, 60)
    controller.systemctl("stop", "portal")
    heard = controller.read(_HEARD).split()
    failures = _failures(lab, edge)
    assert len(heard) <= failures
    assert {first[:4] for first in heard} <= {"1603"}  # TLS handshakes: nothing is ever said in the clear
    lab.await_verdicts(edge)

    controller.systemctl("start", CONTROLLER)
    wait_until("it is back", lambda: lab.is_online(edge), 60)
    wait_until("nothing is wrong any more", lambda: lab.conditions(edge) == {})


def _stranger_s_certificate() -> bytes:
    """Return key and certificate that a portal has made for itself, for all names that are asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vedette-controller")])
    names = x509.SubjectAlternativeName(
        [x509.DNSName("vedette-controller"), x509.DNSName("ctl"), x509.IPAddress(ipaddress.ip_address("10.98.0.10"))]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2099, 1, 1, tzinfo=UTC))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    no_password = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password) + certificate.public_bytes(pem)
