"""Enrolling: a one-time token becomes this appliance's identity.

Order, and why: the server's leaf certificate is fetched with no trust at all; a channel that believes exactly that leaf
asks who it is; only when the CA it names has the digest the token pins, and has issued that leaf, is the token's
secret sent, over a channel that believes that CA. Neither a proxy that opens TLS nor a wrong controller sees it.

Repeating is safe: the key is kept, and the controller answers the same token and key with the same agent.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from vedette.agent.adapters.fleet.channels import (
    OPTIONS,
    ControllerCertificateWrong,
    ControllerRefused,
    ControllerUnreachable,
    call_error,
    credentials,
    way,
)
from vedette.agent.adapters.fleet.identity import Identity, IdentityStore, certificate_request
from vedette.agent.adapters.fleet.tunnel import open_tunnel
from vedette.agent.domain.advice import EXIT_REFUSED, EXIT_USAGE, AdvisedError
from vedette.agent.domain.proxy import STRAIGHT, Proxy, Ways
from vedette.models.toml_settings import WrongValue, parse_address
from vedette.wire import values
from vedette.wire.convert import ENROL_REQUEST, ENROL_RESPONSE, HELLO_RESPONSE
from vedette.wire.errors import WireError
from vedette.wire.token import EnrolmentToken
from vedette.wire.v1 import enrolment_pb2, enrolment_pb2_grpc

logger = logging.getLogger(__name__)
R = TypeVar("R")


class TokenMalformed(AdvisedError):
    """The token's text is not one: it was cut or changed on the way."""

    code = "token-malformed"
    exit_code = EXIT_USAGE


class AlreadyEnrolled(AdvisedError):
    """This appliance belongs to another controller."""

    code = "already-enrolled"
    exit_code = EXIT_REFUSED


class WrongController(ControllerCertificateWrong):
    """Whoever answers is not the controller that made the token; the secret was not sent."""

    code = "wrong-controller"


class EnrolmentRefused(ControllerRefused):
    """The controller did not take the token."""

    code = "enrolment-refused"


class TokenUnknown(EnrolmentRefused):
    """The controller has no such token, or its secret is another."""

    code = "token-unknown"


class TokenUsed(EnrolmentRefused):
    """The token has no use left."""

    code = "token-used"


class TokenExpired(EnrolmentRefused):
    """The token's time is over."""

    code = "token-expired"


class TokenRevoked(EnrolmentRefused):
    """An operator took the token back."""

    code = "token-revoked"


class AnswerInvalid(AdvisedError):
    """The controller's answer breaks the protocol."""

    code = "answer-invalid"


_REFUSALS: dict[str, type[EnrolmentRefused]] = {
    kind.code: kind for kind in (TokenUnknown, TokenUsed, TokenExpired, TokenRevoked)
}


def read_token(text: str) -> EnrolmentToken:
    """Return what a token says.

    Raises:
        TokenMalformed: The text is no token, or was cut.
    """
    try:
        token = EnrolmentToken.decode(text)
        parse_address(token.enrol_address)
    except (WireError, WrongValue) as exc:
        remedy = "copy the whole line that `vedette token create` printed"
        raise TokenMalformed("the token cannot be read", str(exc), remedy) from exc
    return token


@dataclass(frozen=True, slots=True)
class _Port:
    """The enrolment port that a token names, the way there, and how long each call may take."""

    token: EnrolmentToken
    proxy: Proxy | None
    timeout_s: float


def enrol(
    token: EnrolmentToken,
    store: IdentityStore,
    *,
    name: str,
    facts: values.Facts,
    ways: Ways = STRAIGHT,
    timeout_s: float = 15.0,
) -> Identity:
    """Spend a token on an identity and store it.

    Args:
        token: What the operator was given.
        store: Where the identity goes; a key that is already there is used.
        name: Wished for; the identity carries the one that was given.
        facts: What this appliance is, so that it can be selected before it ever connects.
        ways: Which proxy leads to the controller, if any.
        timeout_s: Of each of the calls.

    Raises:
        AlreadyEnrolled: The store holds an identity of another controller.
        WrongController: Whoever answers is not who the token names.
        ControllerUnreachable: Nobody answers.
        ProxyUnreachable, ProxyRefused: The proxy does not, or does not let through.
        EnrolmentRefused: The controller refused; its subclasses say why.
        AnswerInvalid: The answer breaks the protocol.
        IdentityDamaged: The key on disk cannot be used.
        DiskFull: The identity could not be stored; enrolling again finishes it.
    """
    _check_not_elsewhere(store.load(), token)
    port = _Port(token, ways.proxy_to(token.enrol_address), timeout_s)
    ca = _find_controller(port)
    key = store.key()
    request = values.EnrolRequest(
        token_id=token.token_id,
        token_secret=token.secret,
        certificate_request=certificate_request(key, name),
        name=name,
        facts=facts,
    )
    answer = _ask_identity(port, ca, request)
    identity = _identity(token, ca, key, answer)
    store.commit(identity)
    logger.info("enrolled as %s (%s) with controller %s", identity.name, identity.agent_id, identity.controller_id)
    return identity


def controller_time(address: str, ca: bytes, proxy: Proxy | None, timeout_s: float) -> datetime:
    """Return the controller's time of day, asked of its enrolment port.

    Raises:
        ControllerUnreachable, ControllerCertificateWrong, ControllerRefused: It did not say.
        ProxyUnreachable, ProxyRefused: Nor did the proxy let through.
        AnswerInvalid: Its answer breaks the protocol.
    """
    target, asked = way(address, proxy)
    try:
        with grpc.secure_channel(target, credentials(ca), options=(*OPTIONS, *asked)) as channel:
            reply = enrolment_pb2_grpc.EnrolmentStub(channel).Hello(enrolment_pb2.HelloRequest(), timeout=timeout_s)
    except grpc.RpcError as exc:
        raise call_error(exc, address, proxy) from exc
    return _read(lambda: HELLO_RESPONSE.from_wire(reply), address).time


def _check_not_elsewhere(known: Identity | None, token: EnrolmentToken) -> None:
    if known is not None and known.ca_digest != token.ca_digest:
        raise AlreadyEnrolled(
            f"this appliance is enrolled as {known.name} with another controller",
            f"its CA is {known.ca_digest[:16]}, the token's {token.ca_digest[:16]}",
            "to move it, stop the agent, move state_dir/enrolment away and enrol again",
        )


def _find_controller(port: _Port) -> bytes:
    """Return the CA certificate, PEM, once it is proven to be the one that the token pins."""
    token = port.token
    leaf_pem = _leaf(port).encode()
    hello = _hello(port, leaf_pem)
    try:
        ca, leaf = x509.load_pem_x509_certificate(hello.ca_certificate), x509.load_pem_x509_certificate(leaf_pem)
        found = hashlib.sha256(ca.public_bytes(_DER)).hexdigest()
        if found != token.ca_digest:
            raise _wrong_controller(token, f"its CA is sha256 {found}, the token pins {token.ca_digest}")
        leaf.verify_directly_issued_by(ca)
    except InvalidSignature as exc:
        raise _wrong_controller(token, "it shows a CA that did not issue its certificate") from exc
    except (ValueError, TypeError) as exc:
        raise _wrong_controller(token, f"its certificates cannot be read: {exc}") from exc
    return hello.ca_certificate


_DER = serialization.Encoding.DER


def _leaf(port: _Port) -> str:
    address = port.token.enrol_address
    try:
        with open_tunnel(address, port.proxy, port.timeout_s) as raw, _unverified().wrap_socket(raw) as shown:
            return ssl.DER_cert_to_PEM_cert(shown.getpeercert(binary_form=True) or b"")
    except ssl.SSLError as exc:
        raise WrongController(
            f"{address} is not the controller that made this token",
            f"it does not speak TLS as a controller does: {exc.reason or exc}",
            "look for a captive portal or a proxy between here and the controller",
        ) from exc
    except OSError as exc:
        raise ControllerUnreachable(f"no answer from the controller at {address}", str(exc), _NOT_SPENT) from exc
    except ControllerUnreachable as exc:
        raise ControllerUnreachable(exc.what, exc.why, _NOT_SPENT) from exc


_NOT_SPENT = "check the name, the route and the firewall (TCP), then run the same command again: the token is not spent"


def _unverified() -> ssl.SSLContext:
    """Return a context that believes anybody: whose certificate it was is found out before anything secret is said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _hello(port: _Port, leaf: bytes) -> values.HelloResponse:
    try:
        with _stub(port, leaf) as stub:
            reply = _called(lambda: stub.Hello(enrolment_pb2.HelloRequest(), timeout=port.timeout_s), port)
    except ControllerCertificateWrong as exc:
        raise _wrong_controller(port.token, exc.why) from exc
    return _read(lambda: HELLO_RESPONSE.from_wire(reply), port.token.enrol_address)


def _ask_identity(port: _Port, ca: bytes, request: values.EnrolRequest) -> values.EnrolResponse:
    with _stub(port, ca) as stub:
        reply = _called(lambda: stub.Enrol(ENROL_REQUEST.to_wire(request), timeout=port.timeout_s), port)
    return _read(lambda: ENROL_RESPONSE.from_wire(reply), port.token.enrol_address)


def _identity(token: EnrolmentToken, ca: bytes, key: bytes, answer: values.EnrolResponse) -> Identity:
    if not (answer.agent_id and answer.certificate and answer.release_keys and answer.assignment_keys):
        raise AnswerInvalid(
            f"the controller at {token.enrol_address} gave an identity with parts missing",
            f"agent id {answer.agent_id!r}, certificate of {len(answer.certificate)} bytes, "
            f"{len(answer.release_keys)} release and {len(answer.assignment_keys)} assignment keys",
            "update the controller or the agent so that both speak the same protocol",
        )
    return Identity(
        agent_id=answer.agent_id,
        name=answer.name,
        controller_id=answer.controller_id,
        ca_digest=token.ca_digest,
        addresses=answer.addresses or token.addresses,
        release_keys=answer.release_keys,
        assignment_keys=answer.assignment_keys,
        key=key,
        certificate=answer.certificate,
        ca=ca,
        enrol_address=token.enrol_address,
    )


@contextmanager
def _stub(port: _Port, root: bytes) -> Iterator[enrolment_pb2_grpc.EnrolmentStub]:
    target, asked = way(port.token.enrol_address, port.proxy)
    with grpc.secure_channel(target, credentials(root), options=(*OPTIONS, *asked)) as channel:
        yield enrolment_pb2_grpc.EnrolmentStub(channel)


def _called(call: Callable[[], R], port: _Port) -> R:
    try:
        return call()
    except grpc.RpcError as exc:
        error = call_error(exc, port.token.enrol_address, port.proxy)
        if isinstance(error, ControllerRefused):
            kind = _REFUSALS.get(error.reason, EnrolmentRefused)
            raise kind(error.what, error.why, error.remedy, error.reason) from exc
        raise error from exc


def _read(read: Callable[[], R], address: str) -> R:
    try:
        return read()
    except WireError as exc:
        remedy = "update the controller or the agent so that both speak the same protocol"
        raise AnswerInvalid(f"the answer of {address} breaks the protocol", str(exc), remedy) from exc


def _wrong_controller(token: EnrolmentToken, why: str) -> WrongController:
    return WrongController(
        f"{token.enrol_address} is not the controller that made this token",
        why,
        "nothing secret was sent; look for a proxy that opens TLS, or create a token at the controller you mean",
    )
