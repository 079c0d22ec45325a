"""Receivers of verdicts on loopback: syslog over UDP, TCP and TLS, a webhook, and one that takes and never answers."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.pki import Authority

WAIT_S = 20.0
Messages = queue.Queue[bytes]


def unused_port(kind: int = socket.SOCK_STREAM) -> int:
    """Return a port of loopback where nobody listens."""
    with socket.socket(socket.AF_INET, kind) as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class UdpReceiver:
    """Takes datagrams."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self._socket.settimeout(WAIT_S)
        self.port = int(self._socket.getsockname()[1])

    def message(self) -> bytes:
        return self._socket.recv(65536)

    def close(self) -> None:
        self._socket.close()


class StreamReceiver:
    """Takes octet-counted messages from any number of connections, in order of their arrival."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._context = context
        self.port = int(self._listener.getsockname()[1])
        self.messages: Messages = queue.Queue()
        self.ends: Messages = queue.Queue()  # of connections: b"" in order, else what was cut
        self.client_names: queue.Queue[str] = queue.Queue()
        self._streams: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def message(self) -> bytes:
        return self.messages.get(timeout=WAIT_S)

    def cut(self) -> None:
        """End every connection, as a receiver that is restarted does."""
        for stream in self._streams:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        self._streams.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(WAIT_S)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=[stream], daemon=True))
                self._threads[-1].start()

    def _serve(self, stream: socket.socket) -> None:
        left = b""
        try:
            if self._context is not None:
                stream = self._context.wrap_socket(stream, server_side=True)
                certificate = stream.getpeercert()
                if certificate:
                    self.client_names.put(str(certificate["subjectAltName"][0][1]))
            self._streams.append(stream)
            while data := stream.recv(65536):
                left = self._read(left + data)
        except OSError:
            pass
        finally:
            stream.close()
            self.ends.put(left)

    def _read(self, data: bytes) -> bytes:
        while True:
            digits, space, rest = data.partition(b" ")
            if not space or len(rest) < int(digits):
                return data
            self.messages.put(rest[: int(digits)])
            data = rest[int(digits) :]


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """An answer of a webhook; ``write`` writes all of it by itself."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    write: Callable[[BaseHTTPRequestHandler], None] | None = None


class WebhookReceiver:
    """Takes posts and gives one prepared answer after the other, then 200."""

    def __init__(self, answers: Sequence[Answer] = (), context: ssl.SSLContext | None = None) -> None:
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        for answer in answers:
            self._answers.put(answer)
        self.requests: queue.Queue[Request] = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = WAIT_S

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.put(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                receiver._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True)
        self._thread.start()

    def request(self) -> Request:
        return self.requests.get(timeout=WAIT_S)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        answer = Answer() if self._answers.empty() else self._answers.get()
        if answer.write is not None:
            answer.write(handler)
            return
        handler.send_response(answer.status)
        for name, text in answer.headers:
            handler.send_header(name, text)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body)


@contextmanager
def hanging_receiver() -> Iterator[int]:
    """Give a port whose connections are made and never read."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield int(listener.getsockname()[1])


class TlsGround:
    """An authority, a server's context by it, and files for a client."""

    def __init__(self, folder: Path, name: str = "logs.example", *, asks_client: bool = False) -> None:
        authority = Authority()
        key, certificate = authority.server(name)
        self.ca, self._server = folder / "ca.pem", folder / "server.pem"
        self.ca.write_bytes(authority.pem)
        self._server.write_bytes(key + certificate)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(self._server)
        if asks_client:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(self.ca)
        self.authority = authority
