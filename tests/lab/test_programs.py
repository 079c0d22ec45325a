"""Programs of the appliance that ask models: by the socket's group, and over TCP by token."""

from __future__ import annotations

from tests.lab.commands import wait_until
from tests.lab.host import Host
from tests.lab.lab import AGENT, BRISK, SLOT, Lab
from tests.lab.models import flow_model
from tests.support.pki import Authority

_PYTHON = {"edge-1": "/usr/lib/vedette-agent/bin/python3", "ctl": "/usr/lib/vedette-controller/bin/python3"}
_SOCKET = "unix:/run/vedette-agent/inference.sock"
_TOKEN = "0123456789abcdef0123456789abcdef"
_ASK = """
import sys, grpc
from vedette.wire.oip import inference_pb2 as pb
target, model, *trust = sys.argv[1:]
shown = ()
if trust:
    with open(trust[0], "rb") as file:
        trusted = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.ssl_target_name_override", "vedette-controller")]
    channel, shown = grpc.secure_channel(target, trusted, options), (("authorization", f"Bearer {trust[1]}"),)
else:
    channel = grpc.insecure_channel(target)
def call(name, request, answer):
    path = f"/inference.GRPCInferenceService/{name}"
    asked = channel.unary_unary(path, type(request).SerializeToString, answer.FromString)
    return asked(request, metadata=shown, timeout=20)
try:
    told = call("ModelMetadata", pb.ModelMetadataRequest(name=model), pb.ModelMetadataResponse)
    request = pb.ModelInferRequest(model_name=model)
    width = told.inputs[0].shape[1]
    request.inputs.add(name=told.inputs[0].name, datatype=told.inputs[0].datatype, shape=[1, width])
    request.raw_input_contents.append(bytes(4 * width))
    answer = call("ModelInfer", request, pb.ModelInferResponse)
    print("OK", answer.model_version, *(output.name for output in answer.outputs))
except grpc.RpcError as exc:
    print(exc.code().name, exc.details())
"""
_TCP = f"""{BRISK}
[inference]
listen = "0.0.0.0:8001"
tls_certificate = "/etc/vedette/oip.pem"
tls_key = "/etc/vedette/oip.key"
token_file = "/etc/vedette/oip.token"
"""


def _ask(host: Host, target: str, *words: str, user: str = "nobody") -> str:
    return host.run([_PYTHON[host.name], "-c", _ASK, target, *words], user=user, check=False).text.strip()


def test_programs_of_the_agent_s_group_ask_the_socket_and_those_with_the_token_the_port(lab: Lab) -> None:
    controller = lab.controller()
    edge = lab.agent("edge-1", settings=BRISK)
    lab.roll_out(lab.register(flow_model()))
    edge.run(f"useradd --system --groups {AGENT} detector")
    answered = "OK 1 score label probabilities"
    assert _ask(edge, _SOCKET, SLOT, user="detector") == answered
    assert _ask(edge, _SOCKET, "flow-thret", user="detector").startswith("NOT_FOUND")
    assert "Permission denied" in _ask(edge, _SOCKET, SLOT)

    authority = Authority()
    key, certificate = authority.server()
    edge.put(certificate, "/etc/vedette/oip.pem")
    edge.put(key, "/etc/vedette/oip.key", mode=0o640)
    edge.put(f"{_TOKEN}\n", "/etc/vedette/oip.token", mode=0o640)
    edge.put(_TCP, "/etc/vedette/agent.toml")
    edge.systemctl("restart", AGENT)
    text = wait_until("it says that the key is not its own", lambda: lab.conditions(edge)["inference-secret"])
    remedy = "chgrp vedette-agent /etc/vedette/oip.key && chmod 0640 /etc/vedette/oip.key"
    assert remedy in text
    assert _ask(edge, _SOCKET, SLOT, user="detector") == answered
    edge.run(remedy.replace("oip.key", "oip.key /etc/vedette/oip.token"))
    edge.systemctl("restart", AGENT)
    assert lab.conditions(edge) == {}

    for host in (edge, controller):
        host.put(authority.pem, "/tmp/oip-ca.pem")
        assert _ask(host, f"{edge.address}:8001", SLOT, "/tmp/oip-ca.pem", _TOKEN) == answered
        assert _ask(host, f"{edge.address}:8001", SLOT, "/tmp/oip-ca.pem", "x").startswith("UNAUTHENTICATED")
    assert _ask(controller, f"{edge.address}:8001", SLOT).startswith("UNAVAILABLE")
    assert lab.metrics(edge)['vedette_agent_requests_total{method="",slot="",code="UNAUTHENTICATED"}'] == 2
