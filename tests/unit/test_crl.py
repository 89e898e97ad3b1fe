"""The octets of CRLs (RFC 5280 section 5), read by parsers that did not write them."""

import subprocess
import tracemalloc
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.issuing import NOW, issuer, issuer_key, profile, request
from privyseal_ca.errors import SignerError
from privyseal_ca.issuance.template import build_template
from privyseal_ca.revocation.crl import (
    PIECE,
    CrlAssembly,
    CrlOutline,
    FinishedCrl,
    Revoked,
    encode_entry,
    names_pointers,
    sign_crl,
)

KINDS = ("ec-p256", "ec-p384", "ec-p521", "rsa", "ed25519")
BASE = "http://ca.example/crl/test"
LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
THIS, NEXT = int(NOW), int(NOW) + 3 * 86400

revocations = st.dictionaries(
    st.integers(1, 2**127 - 1).map(lambda serial: f"{serial:032x}"),
    st.tuples(st.integers(0, int(LATEST)), st.sampled_from([None, 0, 1, 3, 4, 5, 9])),
    max_size=60,
)


def outline(kind: str = "ec-p256", **changes: Any) -> CrlOutline:
    return CrlOutline(**{"issuer": issuer(kind), "number": 7, "this_update": THIS, "next_update": NEXT, **changes})


def make(plan: CrlOutline, revoked: Iterable[Revoked] = (), kind: str = "ec-p256") -> tuple[bytes, FinishedCrl]:
    with CrlAssembly(plan) as assembly:
        assembly.add(revoked)
        to_be_signed = assembly.to_be_signed()
        finished = assembly.finish(to_be_signed, sign_crl(plan.issuer, to_be_signed)(issuer_key(kind)))
        return b"".join(finished.pieces()), finished


def openssl(*arguments: str, stdin: bytes) -> str:
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True, timeout=30)
    return (done.stdout + done.stderr).decode()


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key(kind: str) -> None:
    rows = [(f"{number:032x}", THIS - number, 1) for number in range(1, 50)]
    der, finished = make(outline(kind), rows, kind)
    crl = x509.load_der_x509_crl(der)
    assert crl.is_signature_valid(issuer(kind).public_key)
    assert [entry.serial_number for entry in crl] == list(range(1, 50))
    assert crl.issuer.public_bytes() == issuer(kind).certificate.subject.public_bytes()
    assert (crl.last_update_utc, crl.next_update_utc) == (moment(THIS), moment(NEXT))
    assert (len(der), sha256(der).digest(), 49) == (finished.size, finished.sha256, finished.entries)


@pytest.mark.parametrize("kind", ["ec-p256", "rsa", "ed25519"])
@pytest.mark.parametrize("count", [0, 1, 2000])
def test_openssl_verifies_and_reads_it(kind: str, count: int, tmp_path: Any) -> None:
    rows = [(f"{number << 100:032x}", THIS - number, None if number % 2 else 4) for number in range(1, count + 1)]
    der, _ = make(outline(kind, url=f"{BASE}/1.crl"), rows, kind)
    (tmp_path / "ca.pem").write_bytes(issuer(kind).certificate.public_bytes(Encoding.PEM))
    said = openssl("crl", "-inform", "DER", "-text", "-CAfile", str(tmp_path / "ca.pem"), stdin=der)
    assert "verify OK" in said
    assert said.count("Serial Number:") == count
    assert said.count("Superseded") == count // 2
    assert ("No Revoked Certificates." in said) == (count == 0)


@given(revocations)
@settings(max_examples=100, deadline=None)
@example({})
@example({f"{1:032x}": (0, None), f"{0x80:032x}": (2524607999, 1), f"{2**127 - 1:032x}": (2524608000, 9)})
def test_what_is_parsed_is_what_was_revoked(revoked: dict[str, tuple[int, int | None]]) -> None:
    der, finished = make(outline(), [(serial, *rest) for serial, rest in revoked.items()])
    crl = x509.load_der_x509_crl(der)
    found = {}
    for entry in crl:
        reasons = [extension.value for extension in entry.extensions]
        assert len(reasons) <= 1
        found[f"{entry.serial_number:032x}"] = (
            entry.revocation_date_utc,
            reasons[0].public_bytes()[-1] if reasons else None,
        )
    assert found == {serial: (moment(at), reason or None) for serial, (at, reason) in revoked.items()}
    assert finished.entries == len(revoked)
    assert crl.is_signature_valid(issuer().public_key)


@given(st.integers(0, 2**159 - 1), st.integers(0, int(LATEST)), st.sampled_from([None, 0, 1, 9]))
@settings(max_examples=100, deadline=None)
def test_entries_are_those_of_cryptography(serial: int, at: int, reason: int | None) -> None:
    builder = x509.RevokedCertificateBuilder().serial_number(serial or 1).revocation_date(moment(at))
    flag = {1: x509.ReasonFlags.key_compromise, 9: x509.ReasonFlags.privilege_withdrawn}.get(reason or 0)
    if flag:
        builder = builder.add_extension(x509.CRLReason(flag), critical=False)
    reference = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer().subject)
        .last_update(moment(THIS))
        .next_update(moment(NEXT))
        .add_revoked_certificate(builder.build())
        .sign(issuer_key("ec-p256"), hashes.SHA256())
    )
    assert encode_entry(f"{serial or 1:040x}", at, reason) in reference.public_bytes(Encoding.DER)


def extensions(der: bytes) -> dict[str, tuple[bool, bytes]]:
    found = [
        (item.oid.dotted_string, (item.critical, item.value.public_bytes()))
        for item in x509.load_der_x509_crl(der).extensions
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


AKI, NUMBER, INDICATOR, IDP, FRESHEST = "2.5.29.35", "2.5.29.20", "2.5.29.27", "2.5.29.28", "2.5.29.46"


def test_the_full_crl_has_no_restriction() -> None:
    found = extensions(make(outline())[0])
    assert found == {
        AKI: (False, b"\x30\x16\x80\x14" + issuer().key_id),
        NUMBER: (False, b"\x02\x01\x07"),
    }


def test_a_part_names_itself_as_its_certificates_do() -> None:
    template = build_template(request(of=profile()), issuer(), serial=11, now=NOW)
    assert template.crl_shard == 3
    url = issuer().pointers.crl(3)
    found = extensions(make(outline(url=url))[0])
    critical, value = found[IDP]
    uri = b"\x86" + bytes([len(url)]) + url.encode()
    name = b"\xa0" + bytes([len(uri)]) + uri
    point = b"\xa0" + bytes([len(name)]) + name
    # RFC 5280 section 5.2.5: distributionPoint [0] fullName [0] URI, onlyContainsUserCerts [1] TRUE, no default encoded.
    assert critical
    assert value == b"\x30" + bytes([len(point) + 3]) + point + b"\x81\x01\xff"
    points = next(
        each.value for each in template.builder._extensions if isinstance(each.value, x509.CRLDistributionPoints)
    )
    assert point in points.public_bytes()
    assert found.keys() == {AKI, NUMBER, IDP}


def test_a_part_with_deltas_and_its_delta() -> None:
    url, delta = f"{BASE}/3.crl", f"{BASE}/3-delta.crl"
    complete = extensions(make(outline(url=url, freshest=delta))[0])
    assert complete.keys() == {AKI, NUMBER, IDP, FRESHEST}
    assert not complete[FRESHEST][0]
    assert delta.encode() in complete[FRESHEST][1]
    relative = extensions(make(outline(url=url, base=5))[0])
    assert relative.keys() == {AKI, NUMBER, IDP, INDICATOR}
    # RFC 5280 section 5.2.4: critical, and the same scope and numbers as the complete one.
    assert relative[INDICATOR] == (True, b"\x02\x01\x05")
    assert relative[IDP] == complete[IDP]
    assert relative[NUMBER] == complete[NUMBER]


@pytest.mark.parametrize("number", [1, 127, 128, 2**31, 2**63 - 1])
def test_numbers(number: int) -> None:
    found = extensions(make(outline(number=number))[0])
    assert x509.CRLNumber(number).public_bytes() == found[NUMBER][1]


def test_the_list_is_absent_when_nothing_is_revoked() -> None:
    der, finished = make(outline())
    assert finished.entries == 0
    crl = x509.load_der_x509_crl(der)
    assert len(crl) == 0
    # RFC 5280 section 5.1.2.6: what follows nextUpdate is crlExtensions [0], not an empty SEQUENCE.
    after = crl.tbs_certlist_bytes.split(moment(NEXT).strftime("%y%m%d%H%M%SZ").encode())[1]
    assert after[0] == 0xA0


def test_urls_are_recognised_in_the_end_of_a_crl() -> None:
    url, delta = f"{BASE}/3.crl", f"{BASE}/3-delta.crl"
    der, _ = make(outline(url=url, freshest=delta), [(f"{number:032x}", THIS, 1) for number in range(1, 500)])
    assert names_pointers(der[-4096:], url, delta)
    assert names_pointers(der[-4096:], url, None)
    assert not names_pointers(der[-4096:], f"{BASE}/4.crl", delta)
    assert not names_pointers(der[-4096:], url, f"{BASE}/4-delta.crl")
    assert not names_pointers(make(outline())[0], url, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_that_is_not_the_issuers_is_not_published(kind: str) -> None:
    with CrlAssembly(outline(kind)) as assembly:
        to_be_signed = assembly.to_be_signed()
        signature = bytearray(sign_crl(issuer(kind), to_be_signed)(issuer_key(kind)))
        signature[-1] ^= 1
        with pytest.raises(SignerError, match="does not verify"):
            assembly.finish(to_be_signed, bytes(signature))


def test_a_key_of_another_kind_is_refused() -> None:
    for kind, other in (("rsa", "ed25519"), ("ed25519", "ec-p256")):
        with pytest.raises(TypeError):
            sign_crl(issuer(kind), b"\0" * 32)(issuer_key(other))
    with CrlAssembly(outline("ec-p256")) as assembly:
        to_be_signed = assembly.to_be_signed()
        with pytest.raises(SignerError, match="does not verify"):
            assembly.finish(to_be_signed, sign_crl(issuer("ec-p256"), to_be_signed)(issuer_key("rsa")))


def pages(count: int, page: int = 1000) -> Iterable[Sequence[Revoked]]:
    for first in range(0, count, page):
        yield [(f"{(first + number + 1) << 90:032x}", THIS - number, 1) for number in range(page)]


def test_pieces_are_bounded_and_can_be_read_again() -> None:
    with CrlAssembly(outline()) as assembly:
        for page in pages(20_000):
            assembly.add(page)
        to_be_signed = assembly.to_be_signed()
        finished = assembly.finish(to_be_signed, sign_crl(issuer(), to_be_signed)(issuer_key("ec-p256")))
        first, second = list(finished.pieces()), list(finished.pieces())
    assert first == second
    assert all(len(piece) == PIECE for piece in first[:-1])
    assert 0 < len(first[-1]) <= PIECE
    assert sum(map(len, first)) == finished.size


def test_memory_does_not_grow_with_the_list() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            with CrlAssembly(outline()) as assembly:
                for page in pages(count):
                    assembly.add(page)
                to_be_signed = assembly.to_be_signed()
                finished = assembly.finish(to_be_signed, sign_crl(issuer(), to_be_signed)(issuer_key("ec-p256")))
                assert sum(map(len, finished.pieces())) == finished.size
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # 10 MB of CRL and 20 MB: the list is in a file from 4 MB on.
    smaller, larger = peak(200_000), peak(400_000)
    assert larger < 12 * 1024 * 1024
    assert larger < smaller + 1024 * 1024
