"""Every parser of bytes that others wrote, each as a plain function of bytes, with values it reads to start from.

A target may raise the errors that its part names for whoever must act, and nothing else; :meth:`Target.feed` checks
that, and that an error's text can be sent and printed: short, and UTF-8. What a parser reads it must be able to use:
targets go on to what the product does next with the value (judge, merge, write again).

Where a digest or signature stands before a parser, the target computes it, for whoever can write one file can write
its digest too; a fuzzer would never get past it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import sqlite3
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus")
MOST_BYTES = 4096
"""Of one input."""
_MOST_TEXT = 2000
"""Characters of an error's text: a status message and a log line carry it."""

Parse = Callable[[bytes], None]


class Unfit(AssertionError):
    """A parser refused as it should, with a text that its readers cannot take."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parser.

    Attributes:
        name: Of its corpus folder, too.
        parse: Reads bytes.
        errors: What it may raise.
        seeds: Bytes it reads.
    """

    name: str
    parse: Parse
    errors: tuple[type[BaseException], ...]
    seeds: tuple[bytes, ...]

    def feed(self, data: bytes) -> None:
        """Parse bytes; raise what the part does not allow itself to raise."""
        try:
            self.parse(data)
        except self.errors as exc:
            text = str(exc)
            if len(text) > _MOST_TEXT:
                raise Unfit(f"{type(exc).__name__} of {len(text)} characters: {text[:200]!r}") from exc
            try:
                text.encode()
            except UnicodeEncodeError:
                raise Unfit(f"{type(exc).__name__} that is no UTF-8: {text[:200]!r}") from exc

    def corpus(self) -> list[bytes]:
        """Return the inputs that are kept."""
        folder = CORPUS / self.name
        return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


_MAKERS: dict[str, Callable[[], Target]] = {}


def _target(make: Callable[[], Target]) -> Callable[[], Target]:
    _MAKERS[make.__name__.removeprefix("_")] = make
    return make


def names() -> tuple[str, ...]:
    """Return the names of all targets."""
    return tuple(_MAKERS)


def load(name: str) -> Target:
    """Return a target; what it reads with is imported only now, so that a fuzzer may instrument it."""
    return _MAKERS[name]()


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _canonical(data: bytes) -> bytes:
    """Return JSON in canonical form, so that a mutation gets past the check for it; else the bytes as they are."""
    from vedette.models.documents import DocumentError, canonical_json

    try:
        return canonical_json(json.loads(data))
    except (ValueError, RecursionError, DocumentError):
        return data


def _both_forms(read: Callable[[bytes], Any], errors: tuple[type[Exception], ...]) -> Parse:
    def parse(data: bytes) -> None:
        canonical = _canonical(data)
        if canonical != data:
            try:
                read(data)
            except errors as exc:
                str(exc).encode()
        read(canonical)

    return parse


# --- flows ---------------------------------------------------------------------------------------------------------


def _datagrams(data: bytes) -> Iterator[bytes]:
    """Yield datagrams, each behind two bytes of length."""
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def _framed(*payloads: bytes) -> bytes:
    return b"".join(len(payload).to_bytes(2, "big") + payload for payload in payloads)


def _export_seeds() -> tuple[bytes, ...]:
    from tests.support.captures import CAPTURES, capture_datagrams

    made = []
    for path in sorted(CAPTURES.glob("*/*.pcap.gz")):
        payloads = [datagram.payload for datagram in capture_datagrams(str(path.relative_to(CAPTURES))[:-8])]
        small = [payload for payload in payloads[:40] if len(payload) < 1500]
        made += [_framed(*small[:1]), _framed(*small[:2]), _framed(*small[-2:])]
    return tuple(dict.fromkeys(seed for seed in made if len(seed) <= MOST_BYTES))


@_target
def _netflow() -> Target:
    """A decoder over several datagrams of two exporters; one at a time is the same as all at once."""
    from vedette.models.flows.datagrams import Datagram
    from vedette.models.flows.netflow import FlowDecoder
    from vedette.models.flows.templates import Limits

    limits = Limits(states=4, states_per_address=3, templates_per_state=4, templates=8, samplers_per_state=4)

    def parse(data: bytes) -> None:
        one, many, later = (FlowDecoder(limits) for _ in range(3))
        datagrams = [
            Datagram(0, f"192.0.2.{len(payload) % 2}", len(payload) % 3, payload) for payload in _datagrams(data)
        ]
        singly = [one.decode(sent.payload, sent.source, 0, sent.source_port).tobytes() for sent in datagrams]
        assert b"".join(singly) == many.decode_many(datagrams).tobytes()
        assert one.counters == many.counters
        status = one.status()
        assert len(status) <= limits.states
        assert sum(state.templates for state in status) <= limits.templates
        json.dumps(one.counters.as_dict())
        saved = one.dump_templates()
        later.load_templates(saved)
        assert later.dump_templates() == saved

    return Target("netflow", parse, (), _export_seeds())


@_target
def _extract() -> Target:
    """What was decoded, stitched and made features of, in one go and datagram by datagram."""
    import numpy as np

    from vedette.models.flows.datagrams import Datagram
    from vedette.models.flows.extract import FlowExtractor, Limits
    from vedette.models.flows.netflow import FlowDecoder

    limits = Limits(exporters=3, tick_records=64)

    def parse(data: bytes) -> None:
        decoder = FlowDecoder()
        parts = [decoder.decode_many([Datagram(0, "192.0.2.1", 0, payload)]) for payload in _datagrams(data)]
        records = np.concatenate(parts)[:2000] if parts else None
        if records is None or not len(records):
            return
        whole, pieces = FlowExtractor(limits), FlowExtractor(limits)
        batches = [whole.push(records, now_ms=0), whole.flush()]
        cut = [*(pieces.push(records[at : at + 7], now_ms=at) for at in range(0, len(records), 7)), pieces.flush()]
        one, other = (b"".join(b.features.tobytes() for b in of if b is not None) for of in (batches, cut))
        # Which exporter is finished first when all are may differ; of one exporter nothing may.
        assert len(one) == len(other)
        assert one == other or len(np.unique(records["exporter"])) > 1

    return Target("extract", parse, (), _export_seeds())


@_target
def _templates() -> Target:
    """The file of templates that a restart reads."""
    from vedette.models.flows.netflow import FlowDecoder
    from vedette.models.flows.templates import NetflowError

    def parse(data: bytes) -> None:
        decoder = FlowDecoder()
        decoder.load_templates(data)
        saved = decoder.dump_templates()
        again = FlowDecoder()
        again.load_templates(saved)
        assert again.dump_templates() == saved
        for known in decoder.status():
            assert 0 <= known.source_port <= 65_535
            known.exporter.address.encode()

    made = []
    for seed in _export_seeds():
        decoder = FlowDecoder()
        for payload in _datagrams(seed):
            decoder.decode(payload, "2001:db8::1", 0, 9995)
        made.append(decoder.dump_templates())
    return Target("templates", parse, (NetflowError,), tuple(s for s in dict.fromkeys(made) if len(s) <= MOST_BYTES))


def _log_target(name: str, make: Callable[[], Any], seeds: Sequence[bytes]) -> Target:
    """A parser of a log, cut anywhere, and one that goes on from its stored state."""
    from vedette.models.flows.log_lines import LineSplitter

    def parse(data: bytes) -> None:
        splitter, parser, later = LineSplitter(2048), make(), make()
        for at in range(0, len(data), 97):
            lines = splitter.feed(data[at : at + 97])
            if not lines:
                continue
            parser.parse(lines)
            later.restore(json.loads(json.dumps(parser.state())))
        parser.parse(splitter.finish())
        counters = parser.counters
        assert counters.lines == counters.records + counters.others + sum(counters.bad.values())

    return Target(name, parse, (), tuple(seeds))


def _flows() -> Any:
    import numpy as np

    from tests.support.flows import record

    return np.concatenate(
        [
            record(bidirectional=True, reverse_packets=3, reverse_bytes=300, reverse_flags=19),
            record(src="2001:db8::7", dst="2001:db8::1", proto=58, icmp=0x8000, flags=0, src_port=0, dst_port=0),
            record(proto=17, flags=0, dst_port=53),
        ]
    )


@_target
def _eve() -> Target:
    from tests.support.flow_logs import eve_lines
    from vedette.models.flows.eve import EveParser

    lines = eve_lines(_flows())
    half = {"timestamp": "2026-11-23T10:00:00.000000+0000", "event_type": "netflow", "src_ip": "10.0.0.1"}
    half |= {"dest_ip": "10.0.0.2", "proto": "TCP", "src_port": 1, "dest_port": 2, "tcp": {"tcp_flags": "1b"}}
    half["netflow"] = {"pkts": 1, "bytes": 60, "start": half["timestamp"], "end": half["timestamp"]}
    return _log_target("eve", EveParser, [b"\n".join(lines) + b"\n", _json(half) + b"\n", lines[0]])


@_target
def _zeek() -> Target:
    from tests.support.flow_logs import zeek_json, zeek_table
    from vedette.models.flows.zeek import ZeekParser

    flows = _flows()
    return _log_target("zeek", ZeekParser, [b"\n".join(form(flows)) + b"\n" for form in (zeek_json, zeek_table)])


@_target
def _positions() -> Target:
    """Places in logs as a stored file has them."""
    from vedette.agent.adapters.sources.follow import Position, PositionError
    from vedette.models.flows.eve import EveParser
    from vedette.models.flows.log_lines import LogStateError
    from vedette.models.flows.zeek import ZeekParser

    line = b"1\t2\n#fields\ta\n{}\n"

    def parse(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(value, dict):
            return
        for parser in (EveParser(), ZeekParser()):
            try:
                parser.restore(value)
            except LogStateError as exc:
                str(exc).encode()
                parser.begin()
            parser.parse(line.split(b"\n"))
            json.dumps(parser.state())
        json.dumps(Position.from_value(value).to_value())

    states = [EveParser().state(), ZeekParser().state(), Position(7, 100, 10, "a" * 64).to_value()]
    return Target("positions", parse, (PositionError,), tuple(map(_json, states)))


@_target
def _capture() -> Target:
    """A capture as it lies on a disk, and what its compressed form would be."""
    from vedette.models.flows.captures import CaptureError, read_capture, write_capture
    from vedette.models.flows.datagrams import Datagram

    def parse(data: bytes) -> None:
        for _ in read_capture(io.BytesIO(data), max_bytes=1 << 20, max_packet_bytes=1 << 16):
            pass

    raw = io.BytesIO()
    write_capture(raw, [Datagram(1, "192.0.2.1", 7, b"payload"), Datagram(2, "2001:db8::1", 9, b"")])
    ethernet = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    frame = bytes(12) + b"\x81\x00\x00\x01\x08\x00" + raw.getvalue()[40 : 40 + 35]
    ethernet += struct.pack("<IIII", 1, 2, len(frame), len(frame)) + frame
    return Target("capture", parse, (CaptureError,), (raw.getvalue(), ethernet, gzip.compress(raw.getvalue())))


@_target
def _capture_gz() -> Target:
    """A compressed capture; the first byte says how it is compressed and cut."""
    from vedette.models.flows.captures import CaptureError, read_capture

    def parse(data: bytes) -> None:
        how, body = data[:1], data[1:]
        packed = gzip.compress(body, 1) * (1 + (how > b"\x40"))
        for _ in read_capture(io.BytesIO(packed[: len(packed) - (how[0] & 15 if how else 0)]), max_bytes=1 << 16):
            pass

    seeds = tuple(b"\0" + seed for seed in _capture().seeds[:2])
    return Target("capture_gz", parse, (CaptureError,), seeds)


# --- documents -----------------------------------------------------------------------------------------------------


def _release() -> Any:
    from tests.support.documents import release
    from vedette.models.release import TensorSpec

    return release(
        inputs=(TensorSpec("features", "float32", (-1, 1)), TensorSpec("words", "bytes", (-1,))),
        reference=None,
        labels=("benign", "brüte"),
    )


@_target
def _canonical_json() -> Target:
    from vedette.models.documents import DocumentError, canonical_json, parse_json

    def parse(data: bytes) -> None:
        value = parse_json(data, "document", limit=2048)
        assert canonical_json(value) == data

    seeds = (b'{"a":[1,2.5,null,true,"\xc3\xa9"],"b":{"c":-1e-07}}', b"[]", b'"\\u0000"', b"-0.0")
    return Target("canonical_json", parse, (DocumentError,), seeds)


@_target
def _release_document() -> Target:
    from tests.support.documents import release
    from vedette.models.documents import DocumentError
    from vedette.models.release import Release

    def read(data: bytes) -> None:
        made = Release.from_bytes(data)
        assert Release.from_bytes(made.to_bytes()) == made
        assert made.blobs

    errors = (DocumentError,)
    return Target("release_document", _both_forms(read, errors), errors, (release().to_bytes(), _release().to_bytes()))


@_target
def _assignment() -> Target:
    from tests.support.documents import NOW, assignment, release
    from vedette.models.assignment import Assignment, Refusal, accept
    from vedette.models.documents import DocumentError

    known = release()

    def read(data: bytes) -> None:
        made = Assignment.from_bytes(data)
        assert Assignment.from_bytes(made.to_bytes()) == made
        accept(
            made, {known.digest: known}, agent_id="a1", highest_sequence=7, highest_digest=known.digest, now=NOW
        )  # fmt: skip

    errors = (DocumentError, Refusal)
    seeds = (assignment(known).to_bytes(), assignment(known, sequence=9).to_bytes(), assignment().to_bytes())
    return Target("assignment", _both_forms(read, errors), errors, seeds)


@_target
def _envelope() -> Target:
    """A DSSE envelope as it came, and as its payload signed by the right key."""
    from tests.support.documents import release
    from vedette.models.documents import DocumentError
    from vedette.models.release import RELEASE_TYPE, Release
    from vedette.models.signing import SignatureError, SigningKey, seal, signers, unseal

    key, other = SigningKey.generate(), SigningKey.generate()

    def parse(data: bytes) -> None:
        try:
            payload = json.loads(data)["payload"]
            resealed = seal(RELEASE_TYPE, base64.b64decode(payload), key)
            Release.from_bytes(unseal(resealed, RELEASE_TYPE, [key.public, other.public]))
        except (ValueError, KeyError, TypeError, RecursionError, DocumentError):
            pass
        signers(data)
        unseal(data, RELEASE_TYPE, [key.public])

    seeds = (seal(RELEASE_TYPE, release().to_bytes(), key), seal("other", b"x", key, other))
    return Target("envelope", parse, (SignatureError, DocumentError), seeds)


@_target
def _schema() -> Target:
    from vedette.models.documents import DocumentError
    from vedette.models.host import HOST_SCHEMA
    from vedette.models.schema import Feature, FeatureSchema

    def read(data: bytes) -> None:
        made = FeatureSchema.from_bytes(data)
        assert FeatureSchema.from_bytes(made.to_bytes()).digest == made.digest

    small = FeatureSchema("s", (Feature("a", "B", "bytes"), Feature("b", "", "", "bool")), "tensor")
    errors = (DocumentError,)
    cut = FeatureSchema(HOST_SCHEMA.name, HOST_SCHEMA.features[:20], HOST_SCHEMA.kind)
    return Target("schema", _both_forms(read, errors), errors, (small.to_bytes(), cut.to_bytes()))


@_target
def _bundle() -> Target:
    """A bundle as it came, and with the size and digest that its header would have."""
    from vedette.models.bundle import MAGIC, Bundle, BundleError, Part, PartKind, document, prefix
    from vedette.models.documents import digest_of

    def read(data: bytes) -> None:
        bundle = Bundle(io.BytesIO(data))
        for part, pieces in bundle:
            assert sum(map(len, pieces)) == part.size
        assert bundle.done == bundle.bytes == len(data)

    def parse(data: bytes) -> None:
        size = int.from_bytes(data[8:12], "big")
        header = _canonical(data[44 : 44 + size])
        whole = MAGIC + len(header).to_bytes(4, "big") + hashlib.sha256(header).digest() + header + data[44 + size :]
        if whole != data:
            try:
                read(whole)
            except BundleError as exc:
                str(exc).encode()
        read(data)

    parts = [document(PartKind.ASSIGNMENT, b"assignment", "a1"), document(PartKind.RELEASE, b"release")]
    parts += [Part("later", digest_of(b"x"), 1, is_optional=True), Part("blob", digest_of(b"model"), 5)]
    return Target("bundle", parse, (BundleError,), (prefix(parts) + b"assignmentreleasexmodel", prefix([])))


@_target
def _telemetry_file() -> Target:
    """An export of telemetry as it came, and signed by a key that its holder made."""
    from datetime import UTC, datetime

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.utils import CryptographyDeprecationWarning

    from tests.support.pki import Authority
    from vedette.agent.adapters.fleet.identity import certificate_request
    from vedette.models import telemetry_file as files

    warnings.filterwarnings("ignore", category=CryptographyDeprecationWarning)  # of what RFC 5280 forbids
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    def read(data: bytes) -> None:
        source = io.BytesIO(data)
        head = files.read_head(source)
        body = source.tell()
        files.check_body(source, head)
        source.seek(body)
        assert len(list(files.batches_of(source, head))) == head.batches

    def parse(data: bytes) -> None:
        size = int.from_bytes(data[8:12], "big")
        header = _canonical(data[12 : 12 + size])
        rest = 12 + size + 2 + int.from_bytes(data[12 + size : 14 + size], "big")
        if len(header) < MOST_BYTES and rest <= len(data):
            signature = private.sign(b"vedette telemetry file 1\n" + header, ec.ECDSA(hashes.SHA256()))
            start = files.MAGIC + len(header).to_bytes(4, "big") + header + len(signature).to_bytes(2, "big")
            try:
                read(start + signature + data[rest:])
            except (files.TelemetryFileError, files.TelemetryForged) as exc:
                str(exc).encode()
        read(data)

    certificate = Authority().client(certificate_request(pem, "edge-7"), "agent-1")
    batches = [b"first", b"", b"third" * 10]
    head = files.Head("agent-1", "edge-7", datetime(2026, 11, 23, tzinfo=UTC), certificate, *files.measured(batches))
    whole = files.start_of(head, pem) + b"".join(map(files.framed, batches))
    return Target("telemetry_file", parse, (files.TelemetryFileError, files.TelemetryForged), (whole,))


@_target
def _tensors() -> Target:
    import numpy as np

    from vedette.models.golden import Golden, mismatch
    from vedette.models.release import Tolerance
    from vedette.models.tensors import TensorFileError, dump_tensors, load_tensors

    def parse(data: bytes) -> None:
        arrays = load_tensors(data)
        assert sum(array.nbytes for array in arrays.values()) <= 16 * len(data)
        again = load_tensors(dump_tensors(arrays))
        assert list(again) == sorted(arrays)
        golden = Golden.from_bytes(data)
        mismatch(golden.outputs, golden.inputs, Tolerance(0.0, 0.1))

    strings = np.empty(2, object)
    strings[:] = [b"one", b""]
    numbers = {"input.a": np.arange(4, dtype=np.float32).reshape(2, 2), "output.b": np.array([True, False])}
    seeds = (dump_tensors(numbers), dump_tensors({"input.s": strings, "output.f": np.ones(2, np.float16)}))
    return Target("tensors", parse, (TensorFileError,), seeds)


def _reference() -> Any:
    import numpy as np

    from vedette.models.profile import ReferenceProfile

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(50, 2)).astype(np.float32)
    return ReferenceProfile.fit(["a", "b"], rows, rng.random(50), np.zeros(50, bool))


@_target
def _reference_profile() -> Target:
    import numpy as np

    from vedette.models.profile import DataProfile, ProfileError, ReferenceProfile
    from vedette.models.tensors import TensorFileError

    def parse(data: bytes) -> None:
        made = ReferenceProfile.from_bytes(data)
        live = DataProfile(made)
        rows = np.array([[0.0, np.nan, np.inf, -1.0]] * 2, np.float32)[:, : len(made.columns) - 1]
        live.add(rows.repeat(1, axis=0), np.zeros(2), np.zeros(2, bool))
        DataProfile.decode(live.encode(), made)
        assert ReferenceProfile.from_bytes(made.to_bytes()).digest == made.digest

    return Target("reference_profile", parse, (ProfileError, TensorFileError), (_reference().to_bytes(),))


@_target
def _profile() -> Target:
    """A profile as it travels; the body may also come as what is deflated."""
    import numpy as np

    from vedette.models.profile import DataProfile, ProfileCounts, ProfileError

    def read(data: bytes) -> None:
        made = ProfileCounts.decode(data)
        assert int(made.counts.max()) <= made.rows
        again = ProfileCounts.decode(made.encode())
        assert (again.counts == made.counts).all()
        made.merge(again)
        made.encode()

    def parse(data: bytes) -> None:
        try:
            read(data[:57] + zlib.compress(data[57:]))
        except ProfileError as exc:
            str(exc).encode()
        read(data)

    live = DataProfile(_reference())
    live.add(np.ones((3, 2), np.float32), np.ones(3), np.array([True, False, False]))
    encoded = live.encode()
    return Target("profile", parse, (ProfileError,), (encoded, encoded[:57] + zlib.decompress(encoded[57:])))


@_target
def _labels() -> Target:
    """A label file that somebody imports."""
    from vedette.controller.domain.errors import InvalidInput
    from vedette.controller.domain.labels import claim, merge, parse_label_file

    flows = _flows()

    def parse(data: bytes) -> None:
        windows = merge([parse_label_file(data)])
        _json([window.to_value() for window in windows])
        claim(flows, windows)

    window = {"label": "scan", "src": "10.0.0.7", "dst": ["10.0.0.1"], "dport": 443, "start": 1.7e9, "end": 1.8e9}
    seeds = (_json({"labels": [window]}), _json({"labels": [window | {"dst": None, "dport": None, "start": 0}]}))
    return Target("labels", parse, (InvalidInput,), seeds)


@_target
def _model() -> Target:
    """An ONNX file at the gate."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    from tests.support.onnx_models import linear, tree_model
    from vedette.controller.domain.model_gate import ModelRefused, check_model
    from vedette.controller.domain.model_trees import NodeFault

    def parse(data: bytes) -> None:
        try:
            model = ModelProto.FromString(data)
        except DecodeError:
            return
        check_model(model)

    seeds = (linear().SerializeToString(), tree_model().SerializeToString())
    return Target("model", parse, (ModelRefused, NodeFault), seeds)


# --- what people write ---------------------------------------------------------------------------------------------


def _toml_target(name: str, options: Sequence[Any], then: Callable[[dict[str, Any]], object]) -> Target:
    from vedette.models.toml_settings import SettingsError, parse_settings, shown_default

    def parse(data: bytes) -> None:
        try:
            source = data.decode()
        except UnicodeDecodeError:
            return
        then(parse_settings(source, options, where="agent.toml"))

    whole = "".join(f"{option.key} = {shown_default(option)}\n" for option in options)
    pieces = [whole[at : at + 900] for at in range(0, len(whole), 900)]
    odd = ['a = 1979-05-27T07:32:00+14:00\n[b]\nc.d = [1, {e = "f"}]\n', f"{options[0].key} = '''x'''\n"]
    return Target(name, parse, (SettingsError,), tuple(text.encode() for text in (whole[:MOST_BYTES], *pieces, *odd)))


@_target
def _agent_settings() -> Target:
    from vedette.agent.settings import OPTIONS, settings_from

    return _toml_target("agent_settings", OPTIONS, settings_from)


@_target
def _controller_settings() -> Target:
    from vedette.controller.settings import OPTIONS

    return _toml_target("controller_settings", OPTIONS, dict)


@_target
def _helper_settings() -> Target:
    from vedette.agent.nft_helper import OPTIONS, Limits

    return _toml_target("helper_settings", OPTIONS, lambda value: Limits(**value))


@_target
def _token() -> Target:
    """A token as it is pasted, and as its content written as one."""
    from vedette.models.toml_settings import parse_address
    from vedette.wire.errors import WireError
    from vedette.wire.token import EnrolmentToken

    def read(text: str) -> None:
        token = EnrolmentToken.decode(text)
        assert EnrolmentToken.decode(token.encode()) == token
        for address in (*token.addresses, token.enrol_address):
            parse_address(address)[0].encode("idna")

    def parse(data: bytes) -> None:
        content = base64.urlsafe_b64encode(_canonical(data)).decode().rstrip("=")
        try:
            read("vdt1." + content)
        except WireError as exc:
            str(exc).encode()
        read(data.decode("latin-1"))

    token = EnrolmentToken(("ctl.example:8443", "[::1]:8443"), "ctl.example:8444", "ab" * 32, "t1", "secret")
    encoded = token.encode()
    body = encoded.removeprefix("vdt1.")
    content = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    return Target("token", parse, (WireError,), (encoded.encode(), content))


@_target
def _addresses() -> Target:
    """Addresses, proxies, receivers and selectors as people write them."""
    from vedette.agent.domain.proxy import Ways, parse_direct, parse_proxy
    from vedette.agent.domain.syslog import parse_target
    from vedette.agent.domain.webhook import parse_endpoint
    from vedette.controller.domain.errors import InvalidInput
    from vedette.controller.domain.selector import Selector
    from vedette.models.toml_settings import WrongValue, parse_address, parse_size

    def direct(text: str) -> None:
        Ways(None, parse_direct(text.split("|"))).proxy_to("ctl.example:8443")

    def address(text: str) -> None:
        host, _ = parse_address(text, 514)
        assert "\0" not in host
        host.encode("idna")

    readers: tuple[Callable[[str], object], ...] = (
        *(address, parse_size, parse_proxy, direct, parse_target, parse_endpoint),
        lambda text: Selector.parse(text).matches({"name": "a", "site": "s1"}),
    )

    def parse(data: bytes) -> None:
        text = data.decode("utf-8", "ignore")
        for reader in readers:
            try:
                reader(text)
            except (WrongValue, InvalidInput) as exc:
                str(exc).encode()

    seeds = (
        b"ctl.example:8443", b"[2001:db8::1%eth0]:514", b"512MiB", b"http://user:pass%20word@proxy:3128/", b"tls://l:6514",
        b"*.example|10.0.0.0/8|::1", b"https://h.example/path?q=1", b"site=s1, lab, !x, a in (b, c), d notin (e), f!=g",
    )  # fmt: skip
    return Target("addresses", parse, (), seeds)


# --- what travels --------------------------------------------------------------------------------------------------


def _wire_pairs() -> list[Any]:
    from vedette.wire import convert

    return [pair for _, pair in sorted(vars(convert).items()) if isinstance(pair, convert.Pair)]


@_target
def _wire() -> Target:
    """Every message of the protocol; the first byte says which."""
    from datetime import UTC, datetime

    from google.protobuf.message import DecodeError

    from tests.support.documents import NOW
    from vedette.wire import convert, values
    from vedette.wire.errors import WireError
    from vedette.wire.v1 import fleet_pb2

    pairs = _wire_pairs()

    def parse(data: bytes) -> None:
        which, body = (data[0] if data else 0), data[1:]
        try:
            if which == 255:
                convert.agent_word_from_wire(fleet_pb2.AgentMessage.FromString(body))
                return
            if which == 254:
                convert.controller_word_from_wire(fleet_pb2.ControllerMessage.FromString(body))
                return
            pair = pairs[which % len(pairs)]
            value = pair.from_wire(pair._message_type.FromString(body))
        except DecodeError:  # protobuf's own: grpc answers it
            return
        assert repr(pair.from_wire(pair.to_wire(value))) == repr(value)

    facts = values.Facts(architecture="x86_64", runtimes={"onnxruntime": "1.32"}, cpu_features=("avx2",))
    window = values.Window(start=NOW, end=datetime(2026, 12, 1, tzinfo=UTC), slot="flow-threat", verdicts={"a": 1})
    known: list[Any] = [
        facts,
        values.TelemetryBatch(boot_epoch=1, sequence=2, windows=(window,), gaps=()),
        values.Hello(facts=facts, status=values.Status()),
    ]
    seeds = [
        bytes([place]) + pair.to_wire(value).SerializeToString()
        for place, pair in enumerate(pairs)
        for value in known
        if isinstance(value, pair._value_type)
    ]
    seeds += [bytes([place]) for place in range(len(pairs))]
    return Target("wire", parse, (WireError,), tuple(dict.fromkeys(seeds)))


@_target
def _telemetry() -> Target:
    """A batch as a controller judges it and as a spool merges it with the one after."""
    from dataclasses import replace
    from datetime import UTC, datetime

    from google.protobuf.message import DecodeError

    from tests.support.documents import NOW
    from vedette.agent.domain.coarsening import merged
    from vedette.controller.domain.errors import InvalidInput
    from vedette.controller.domain.telemetry import admit, check_batch, pulse, recent
    from vedette.wire.convert import BATCH
    from vedette.wire.errors import WireError
    from vedette.wire.v1 import telemetry_pb2
    from vedette.wire.values import Gap, TelemetryBatch, Window

    def parse(data: bytes) -> None:
        try:
            batch = BATCH.from_wire(telemetry_pb2.TelemetryBatch.FromString(data))
        except DecodeError:
            return
        check_batch(batch)
        admit(((1, 3),), batch)
        pulse(recent(batch.windows))
        both = merged([batch, replace(batch, sequence=batch.sequence + 1)])
        BATCH.to_wire(both).SerializeToString()

    later = datetime(2026, 12, 1, tzinfo=UTC)
    window = Window(start=NOW, end=later, slot="m", model="m", version=3, build="b", rows=3, verdicts={"benign": 3})
    batches = [
        TelemetryBatch(boot_epoch=1, sequence=2, windows=(window, replace(window, latency_counts=(1,) * 58))),
        TelemetryBatch(boot_epoch=1, sequence=9, gaps=(Gap(first_sequence=4, last_sequence=5, reason="full"),)),
    ]
    seeds = tuple(BATCH.to_wire(batch).SerializeToString() for batch in batches)
    return Target("telemetry", parse, (WireError, InvalidInput), seeds)


@_target
def _certificates() -> Target:
    """A certificate or a request for one, as DER or PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.utils import CryptographyDeprecationWarning

    from tests.support.pki import Authority
    from vedette.agent.adapters.fleet.identity import certificate_request
    from vedette.controller.adapters.pki import identity_of, requested_key
    from vedette.controller.domain.errors import InvalidInput, Unauthenticated

    def pem(kind: bytes, der: bytes) -> bytes:
        lines = base64.encodebytes(der)
        return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind, lines, kind)

    def parse(data: bytes) -> None:
        whole = ((requested_key, b"CERTIFICATE REQUEST"), (identity_of, b"CERTIFICATE"))
        for read, kind in whole:
            for form in (pem(kind, data), data):
                try:
                    read(form)
                except (InvalidInput, Unauthenticated) as exc:
                    str(exc).encode()

    warnings.filterwarnings("ignore", category=CryptographyDeprecationWarning)  # of what RFC 5280 forbids
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    request = certificate_request(key, "edge-7")
    der = [
        base64.b64decode(b"".join(text.split(b"\n")[1:-2]))
        for text in (request, Authority().client(request, "agent-1").strip() + b"\n")
    ]
    return Target("certificates", parse, (), (request, *der))


# --- programs of the same host -------------------------------------------------------------------------------------


@_target
def _inference() -> Target:
    """A request of the Open Inference Protocol."""
    import numpy as np
    from google.protobuf.message import DecodeError

    from tests.support.documents import release
    from vedette.agent.adapters.oip.errors import NotOffered, text_of
    from vedette.agent.adapters.oip.tensors import DATATYPES, Interface, to_raw
    from vedette.agent.domain.errors import InvalidRequest
    from vedette.models.release import TensorSpec
    from vedette.wire.oip import inference_pb2 as pb

    limit = 1 << 16
    flat = tuple(TensorSpec(f"in_{name}", name, (-1, 4)) for name in DATATYPES)
    open_shape = (TensorSpec("in_float32", "float32", (-1, -1)),)
    kinds = [Interface(release(inputs=(spec,), outputs=open_shape)) for spec in flat]
    kinds += [Interface(release(inputs=inputs, outputs=flat)) for inputs in (flat, open_shape)]

    def parse(data: bytes) -> None:
        try:
            request = pb.ModelInferRequest.FromString(data)
        except DecodeError:
            return
        for interface in kinds:
            try:
                arrays = interface.read(request, limit)
                assert all(array.nbytes <= 2 * limit for array in arrays.values())
                interface.answer("slot", request.id, {"in_float32": np.zeros(1)}, ["in_float32"])
                interface.wanted(request)
            except (InvalidRequest, NotOffered) as exc:
                text_of(exc).encode()

    seeds = []
    for spec in flat:
        raw, typed = pb.ModelInferRequest(id="1"), pb.ModelInferRequest()
        words = spec.dtype == "bytes"
        array = np.full((1, 4), b"word", object) if words else np.ones((1, 4), spec.dtype)
        for request in (raw, typed):
            request.inputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=[1, 4])
        raw.raw_input_contents.append(to_raw(array))
        typed.inputs[0].contents.int_contents.extend([1, 1, 1, 1])
        seeds += [raw.SerializeToString(), typed.SerializeToString()]
    return Target("inference", parse, (), tuple(seeds))


@_target
def _ring() -> Target:
    """An area of the ring as a hostile worker leaves it: shapes, strings, numbers, words."""
    import mmap

    from vedette.agent.adapters.inference.ring import AREAS, Area, Plan, RingError
    from vedette.models.release import TensorSpec

    inputs = (TensorSpec("features", "float32", (-1, 2)),)
    outputs = (
        TensorSpec("score", "float32", (-1,)),
        TensorSpec("grid", "int64", (-1, -1)),
        TensorSpec("words", "bytes", (-1, -1)),
        TensorSpec("fixed", "uint8", (3,)),
    )
    plan = Plan.of(inputs, outputs, max_rows=4, variable_bytes=256)

    def parse(data: bytes) -> None:
        with mmap.mmap(-1, plan.area_bytes * AREAS) as memory:
            memory[: min(len(data), plan.area_bytes)] = data[: plan.area_bytes]
            area = Area(plan, memory, 0)
            try:
                area.read_text().encode()
                for chosen in (b"", bytes([1, 0, 0, 1]), bytes([0, 1, 0, 0]), bytes([0, 0, 1, 0])):
                    try:
                        area.read_outputs(chosen)
                    except RingError as exc:
                        str(exc).encode()
            finally:
                area.shapes = None  # type: ignore[assignment]
                area._full.clear()
                del area

    good = struct.pack("<8q8q8q8q8q", *(1, 2, 0, 0, 0, 0, 0, 0), *(1, 0, 0, 0, 0, 0, 0, 0), *(2, 2, 0, 0, 0, 0, 0, 0),
                       *(1, 1, 0, 0, 0, 0, 0, 0), *(3, 0, 0, 0, 0, 0, 0, 0))  # fmt: skip
    words = plan.outputs[2].offset
    filled = good.ljust(words, b"\0") + struct.pack("<QI", 8, 4) + b"word"
    return Target("ring", parse, (), (good, filled, struct.pack("<40q", *([0, 1 << 62] * 20))))


@_target
def _worker_answer() -> Target:
    """A worker's first message."""
    from vedette.agent.adapters.inference.worker import _load_error, _parse_answer, _Refused
    from vedette.agent.domain.errors import WorkerCrashed

    def parse(data: bytes) -> None:
        word = _parse_answer(data)
        text = str(_load_error(word, 1)) if isinstance(word, _Refused) else word
        assert text.isprintable()
        assert len(text) <= 5000

    seeds = (
        _json({"unfiltered": "no seccomp"}),
        _json({"failure": 5, "text": "no such operator"}),
        _json({"failure": 3, "text": "x"}),
    )
    return Target("worker_answer", parse, (WorkerCrashed,), seeds)


def _stream(data: bytes) -> Any:
    """Return the half of a connection that gave so much and closed."""
    import asyncio

    reader = asyncio.StreamReader(limit=8192, loop=_LOOP)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


class _NoLoop:
    """As much of a loop as a reader needs that never waits."""

    @staticmethod
    def get_debug() -> bool:
        return False


_LOOP: Any = _NoLoop()


def _ran(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise Unfit("it waits for a peer that has closed")


@_target
def _http() -> Target:
    """A request to either daemon's pages."""
    import asyncio

    from vedette.agent.adapters.telling import http as agent_http
    from vedette.controller.adapters.http import Answer, HttpServer

    async def page() -> Answer:
        return Answer("200 OK", "fine")

    agent = agent_http.HttpServer({"/metrics": agent_http.Page("text/plain", lambda: b"fine")})
    controller = HttpServer({"/metrics": page})

    async def of_agent(reader: Any) -> bytes:
        status, kind, body = agent._answer(await agent_http._request_line(reader))
        return agent_http._head(status, kind, len(body)) + body

    def parse(data: bytes) -> None:
        allowed = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
        for serve in (of_agent, controller._response):
            try:
                answer = _ran(serve(_stream(data)))
            except allowed as exc:  # closed without an answer; the loops catch just these
                if type(exc) is ValueError and "request head" not in str(exc):
                    raise
                continue
            assert answer.startswith(b"HTTP/1.1 ")
            assert answer.count(b"HTTP/1.1") == 1

    seeds = (
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.0\r\n\r\n",
        b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n",
    )
    return Target("http", parse, (), seeds)


class _Answering:
    """A socket whose peer sends so much and closes."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def settimeout(self, seconds: float | None) -> None: ...

    def sendall(self, data: bytes) -> None: ...

    def recv(self, most: int) -> bytes:
        return self._file.read(min(most, 7))

    def makefile(self, mode: str) -> io.BytesIO:
        return self._file

    def close(self) -> None: ...


@_target
def _proxy_answer() -> Target:
    """What a proxy says to CONNECT."""
    import time

    from vedette.agent.adapters.fleet import tunnel
    from vedette.agent.domain.advice import AdvisedError
    from vedette.agent.domain.proxy import Proxy

    def parse(data: bytes) -> None:
        made: Any = _Answering(data)
        tunnel._check(tunnel._answer(made, time.monotonic() + 60), Proxy("proxy", 3128), "ctl.example:8443")

    seeds = (
        b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.0 407\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno!",
    )  # fmt: skip
    return Target("proxy_answer", parse, (AdvisedError, OSError), seeds)


@_target
def _webhook_answer() -> Target:
    """What a receiver of verdicts answers."""
    import http.client
    from datetime import UTC, datetime

    from vedette.agent.adapters.sinks.webhook import MAX_ANSWER_BYTES
    from vedette.agent.domain.webhook import judged, retry_after_s

    now = datetime(2026, 11, 23, tzinfo=UTC)

    def parse(data: bytes) -> None:
        connection = http.client.HTTPConnection("receiver")
        connection.sock = _Answering(data)  # type: ignore[assignment]
        connection.request("POST", "/", b"x")
        answer = connection.getresponse()
        answer.read(MAX_ANSWER_BYTES + 1)
        judged(answer.status)
        assert 0.0 <= retry_after_s(answer.headers.get("Retry-After"), now) < 1e13

    seeds = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n\r\n",
        b"HTTP/1.1 503 No\r\nRetry-After: Mon, 23 Nov 2026 10:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\n\r\n",
    )  # fmt: skip
    return Target("webhook_answer", parse, (OSError, http.client.HTTPException, ValueError), seeds)


@_target
def _retry_after() -> Target:
    """The header alone: no error at all is allowed here."""
    from datetime import UTC, datetime

    from vedette.agent.domain.webhook import retry_after_s

    now = datetime(2026, 11, 23, tzinfo=UTC)

    def parse(data: bytes) -> None:
        assert 0.0 <= retry_after_s(data.decode("latin-1"), now) < 1e13

    return Target(
        "retry_after", parse, (), (b"120", b"Mon, 23 Nov 2026 10:00:00 GMT", b"Sun, 06 Nov 1994 08:49:37 -0000")
    )


@_target
def _blocking() -> Target:
    """What the privileged helper is sent."""
    from ipaddress import ip_address

    from vedette.agent.domain.blocking import BadPacket, Block, is_protected, packed, unpacked
    from vedette.agent.nft_helper import _add_script

    def parse(data: bytes) -> None:
        blocks = [block for block in unpacked(data) if block is not None]
        script = _add_script(blocks)
        assert script.isascii()
        assert script.count("\n") <= 2
        assert ";" not in script
        for block in blocks:
            is_protected(block.address, ())
        assert blocks == unpacked(packed(blocks)) if blocks else True

    seeds = (packed([Block(ip_address("192.0.2.1"), 60), Block(ip_address("2001:db8::1"), 86_400)]),)
    return Target("blocking", parse, (BadPacket,), seeds)


@_target
def _nft_listing() -> Target:
    """What nft lists of our table."""
    from vedette.agent.nft_helper import NftFailed, _elements

    def parse(data: bytes) -> None:
        for _, left_s in _elements(data.decode("utf-8", "replace")):
            assert left_s < 1e300

    element = {"elem": {"val": "192.0.2.1", "timeout": 60, "expires": 7}}
    listing = {
        "nftables": [{"metainfo": {}}, {"set": {"name": "blocked4", "elem": [element]}}, {"set": {"name": "blocked6"}}]
    }
    return Target("nft_listing", parse, (NftFailed,), (_json(listing),))


# --- what lies on the appliance's disk -----------------------------------------------------------------------------


@_target
def _second_copy() -> Target:
    """The copy of a database: read by its digest, opened as SQLite does."""
    from contextlib import closing
    from unittest.mock import patch

    from vedette.agent.adapters.storage import second_copy
    from vedette.agent.adapters.storage.images import image_of, opened

    magic = second_copy._MAGIC

    class Copy(second_copy.SecondCopy):
        def __init__(self) -> None:
            super().__init__(Path("/proc/self/fd/none"))

    def image_in(data: bytes) -> bytes | None:
        with patch.object(second_copy, "read_file", lambda path, most: data):
            return Copy().read()

    def parse(data: bytes) -> None:
        image_in(data)
        body = data[len(magic) + 32 :]
        image = image_in(magic + hashlib.sha256(body).digest() + body)
        assert image == body
        with closing(opened(image)) as connection:
            connection.execute("PRAGMA quick_check").fetchone()
            connection.execute("SELECT count(*), max(length(name)) FROM slots").fetchall()

    with closing(sqlite3.connect(":memory:")) as made:
        made.execute("PRAGMA page_size=512")
        made.execute("CREATE TABLE slots (name TEXT)")
        made.execute("INSERT INTO slots VALUES ('flow-threat')")
        made.commit()
        image = image_of(made)
    # The second is what sqlite3 raises where SQLite's own words quote what is no UTF-8; State takes both.
    return Target(
        "second_copy", parse, (sqlite3.Error, UnicodeDecodeError), (magic + hashlib.sha256(image).digest() + image,)
    )
