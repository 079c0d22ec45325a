from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from vedette.controller.adapters.keys import KeyRing, create_keys, write_file
from vedette.controller.adapters.pki import SERVER_NAME, CertificateAuthority, Identity, identity_of, key_digest_of
from vedette.controller.domain.errors import InvalidInput, Refused, StoreFailed, Unauthenticated

AUTHORITY = CertificateAuthority(CertificateAuthority.create("c-1"))


def parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def usage(pem: bytes) -> list[x509.ObjectIdentifier]:
    return list(parsed(pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_no_clock_locks_a_certificate_out():
    for pem in (AUTHORITY.pem, AUTHORITY.issue_server([]).certificate, AUTHORITY.issue_admin("a").certificate):
        assert parsed(pem).not_valid_before_utc.year == 1970
        assert parsed(pem).not_valid_after_utc.year == 9999


def test_the_authority_signs_no_further_authorities():
    constraints = parsed(AUTHORITY.pem).extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    leaf = parsed(AUTHORITY.issue_admin("a").certificate).extensions.get_extension_for_class(x509.BasicConstraints)
    assert not leaf.value.ca


def test_servers_and_clients_cannot_stand_in_for_each_other():
    server, admin = AUTHORITY.issue_server(["ctl.example", "10.0.0.5"]), AUTHORITY.issue_admin("root")
    assert usage(server.certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert usage(admin.certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = parsed(server.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {SERVER_NAME, "ctl.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert "10.0.0.5" in {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    with pytest.raises(Unauthenticated):
        identity_of(server.certificate)


def test_a_client_certificate_names_its_holder():
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert identity_of(AUTHORITY.issue_agent("a-1", key)) == Identity("agent", "a-1", key_digest_of(key))
    assert identity_of(AUTHORITY.issue_admin("root").certificate).kind == "admin"


@pytest.mark.parametrize(
    "uris",
    [[], ["vedette:agent:a", "vedette:admin:a"], ["vedette:robot:a"], ["vedette:agent:"], ["https://example"]],
)
def test_a_certificate_that_names_nobody_of_ours_is_refused(uris: list[str]):
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(uri) for uri in uris] or [x509.DNSName("x")]
    template = parsed(AUTHORITY.issue_agent("a", key.public_key()))
    pem = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(Unauthenticated, match="none of an agent or admin"):
        identity_of(pem)
    with pytest.raises(Unauthenticated):
        identity_of(b"no certificate")


def test_names_that_no_certificate_can_hold_are_refused():
    with pytest.raises(InvalidInput, match="cannot be in a certificate"):
        AUTHORITY.issue_server(["bäd.example"])


def test_only_its_own_certificates_count_as_issued():
    other = CertificateAuthority(CertificateAuthority.create("c-2"))
    assert AUTHORITY.has_issued(AUTHORITY.issue_admin("a").certificate)
    assert not AUTHORITY.has_issued(other.issue_admin("a").certificate)
    assert not AUTHORITY.has_issued(b"no certificate")


def test_keys_are_read_back_and_private(tmp_path: Path):
    authority = create_keys(tmp_path, "c-1", [])
    keys = KeyRing.load(tmp_path)
    assert (keys.controller_id, keys.authority.digest) == ("c-1", authority.digest)
    assert len({keys.release.public, keys.assignment.public}) == 2
    private = [*tmp_path.glob("keys/*.pem"), *tmp_path.glob("tls/*.key")]
    assert len(private) == 4
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("keys", "tls")} == {0o700}


@pytest.mark.parametrize("name", ["keys/release.pem", "keys/assignment.pem", "tls/ca.key", "tls/server.key"])
def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path, name: str):
    create_keys(tmp_path, "c-1", [])
    path = tmp_path / name
    path.chmod(0o640)
    with pytest.raises(Refused, match="others can read") as caught:
        KeyRing.load(tmp_path)
    assert "640" in caught.value.why
    path.chmod(0o600)
    KeyRing.load(tmp_path)
    if name != "tls/server.key":  # gRPC itself refuses a server key that is none
        path.write_text("none")
        with pytest.raises(StoreFailed):
            KeyRing.load(tmp_path)
    path.unlink()
    with pytest.raises(StoreFailed, match="cannot be read"):
        KeyRing.load(tmp_path)


def test_a_foreign_authority_or_server_certificate_is_refused(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        create_keys(tmp_path / name, f"c-{name}", [])
    certificate = tmp_path / "a" / "tls" / "server.crt"
    mine = certificate.read_bytes()
    certificate.write_bytes((tmp_path / "b" / "tls" / "server.crt").read_bytes())
    with pytest.raises(StoreFailed, match="not by our CA"):
        KeyRing.load(tmp_path / "a")
    certificate.write_bytes(mine)
    (tmp_path / "a" / "tls" / "ca.crt").write_bytes((tmp_path / "b" / "tls" / "ca.crt").read_bytes())
    with pytest.raises(StoreFailed, match="does not belong"):
        KeyRing.load(tmp_path / "a")


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path):
    path = tmp_path / "x"
    for data in (b"first", b"2"):
        write_file(path, data, mode=0o600)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o600)
    assert [item.name for item in tmp_path.iterdir()] == ["x"]
    with pytest.raises(StoreFailed):
        write_file(tmp_path / "absent" / "x", b"", mode=0o600)
