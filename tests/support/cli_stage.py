"""Runs ``vedette`` in this process against an Admin service that a test writes down, over a real channel."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from vedette.controller.cli import run
from vedette.controller.cli.client import AdminClient
from vedette.controller.cli.session import Session
from vedette.controller.context import AdminContext
from vedette.wire.v1.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CONTEXT = AdminContext(name="ana", address="ctl.example:7443", ca="CA", certificate="CERT", key="KEY")

Answer = Callable[[Any], Any]


@dataclass(frozen=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class FakeAdmin:
    """An Admin service: ``answers`` has, by verb, what to return for a request; streams are lists."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def last(self, method: str) -> Any:
        """Return the newest request of a verb."""
        return next(request for name, request in reversed(self.requests) if name == method)

    def servicer(self) -> AdminServicer:
        servicer = AdminServicer()
        for name in dir(AdminServicer):
            if name[0].isupper():
                setattr(servicer, name, self._method(name))
        return servicer

    def _method(self, name: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            return self._answer(name, request, context)

        def streaming(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                yield from self._answer(name, request, context)
            except Refusal as exc:
                exc.tell(context)

        def uploading(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return self._answer(name, list(requests), context)

        if name.startswith("Watch") or name == "ExportModel":
            return streaming
        return uploading if name in ("ImportData", "ImportLabels", "ImportTelemetry", "RegisterModel") else unary

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append((name, request))
        if name not in self.answers:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not on this stage")
        try:
            return self.answers[name](request)
        except Refusal as exc:
            exc.tell(context)


class Refusal(Exception):
    """Lets an answer be an error, told as the controller tells them."""

    def __init__(self, code: grpc.StatusCode, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.lines = (what, why, remedy)

    def tell(self, context: grpc.ServicerContext) -> None:
        """End a call with this error."""
        context.set_trailing_metadata((("vedette-code", "some-code"),))
        context.abort(self.code, "\n".join(self.lines))


class Stage:
    """A controller that answers as told, and a person who types."""

    def __init__(self, admin: FakeAdmin, address: str, capture: pytest.CaptureFixture[str], context: Path) -> None:
        self.admin = admin
        self._address = address
        self._capture = capture
        self.context = context
        self.waited = 0.0

    def _wait(self, seconds: float) -> None:
        self.waited += seconds

    def answer(self, method: str, answer: Any) -> None:
        """Answer a verb with a message, a list of them for streams, or what a function makes of the request."""
        self.admin.answers[method] = answer if callable(answer) else lambda request: answer

    def refuse(self, method: str, code: grpc.StatusCode, *lines: str) -> None:
        """Answer a verb with an error."""

        def refuse(request: Any) -> Any:
            raise Refusal(code, *lines)

        self.admin.answers[method] = refuse

    def connect(self, context: AdminContext) -> AdminClient:
        return AdminClient(grpc.insecure_channel(self._address), context.address)

    def __call__(self, *arguments: str) -> Result:
        """Run a command line."""
        session = Session(connect=self.connect, now=lambda: NOW, monotonic=lambda: self.waited, sleep=self._wait)
        code = run(arguments, session)
        said = self._capture.readouterr()
        return Result(code, said.out, said.err)


@contextlib.contextmanager
def serving(admin: FakeAdmin) -> Iterator[str]:
    """Serve a fake on a loopback port; yield its address."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool)
        add_AdminServicer_to_server(admin.servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
