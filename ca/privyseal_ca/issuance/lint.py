"""The gate before the token: a certificate is complete, parsed and checked before anybody signs it.

Every certificate gets a check that costs microseconds. The first of each shape (profile, issuer, kind of key, kinds of
names) is also linted in full by pkilint, which costs milliseconds; the certificates after it differ only in values.
"""

from functools import lru_cache
from hashlib import sha256
from threading import Lock
from typing import Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from privyseal_ca.errors import LintError, NameRefusedError
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.identifiers import from_general_name
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.standin import stand_in_for
from privyseal_ca.issuance.template import IssuerIdentity, Template, signature_hash

MAX_SHAPES: Final = 10_000  # remembered; forgetting them all costs a full lint for each that comes back

_NO_REV_AVAIL: Final = x509.ObjectIdentifier("2.5.29.56")
_MINT: Final = object()
_HINT: Final = "This is a defect of the profile or of this software; nothing was signed. Report it to the operators."


@asn1.sequence
class _Certificate:
    """The outer layer of a certificate (RFC 5280 section 4.1)."""

    tbs_certificate: asn1.TLV
    signature_algorithm: asn1.TLV
    signature: asn1.BitString


class LintedCertificate:
    """Proof that these TBSCertificate octets passed the linter. Only :class:`Linter` makes one, for one certificate."""

    __slots__ = ("_envelope", "_unassembled", "_unredeemed", "tbs", "tbs_sha256", "template")

    def __init__(self, mint: object, template: Template, tbs: bytes, envelope: _Certificate) -> None:
        if mint is not _MINT:
            raise TypeError("only a Linter makes a LintedCertificate")
        self.template = template
        self.tbs = tbs
        self.tbs_sha256 = sha256(tbs).digest()
        self._envelope = envelope
        # Taking the one item out of a list is atomic, whatever threads do.
        self._unredeemed = [True]
        self._unassembled = [True]

    @property
    def serial(self) -> int:
        """The serial number in the certificate."""
        return self.template.serial

    def redeem(self) -> bytes:
        """The octets to sign; they are given out once.

        Raises:
            LintError: they were given out or assembled before.
        """
        if not self._unassembled or not self._take(self._unredeemed):
            raise self._spent()
        return self.tbs

    def assembled(self, signature: bytes) -> bytes:
        """The certificate in DER: the linted octets themselves with ``signature`` behind them; once.

        Raises:
            LintError: it was assembled before.
        """
        if not self._take(self._unassembled):
            raise self._spent()
        return asn1.encode_der(
            _Certificate(
                tbs_certificate=self._envelope.tbs_certificate,
                signature_algorithm=self._envelope.signature_algorithm,
                signature=asn1.BitString(signature, 0),
            )
        )

    @staticmethod
    def _take(item: list[bool]) -> bool:
        try:
            return item.pop()
        except IndexError:
            return False

    def _spent(self) -> LintError:
        return LintError(f"The linted certificate {self.serial:032x} was used before.", hint=_HINT)


class Linter:
    """Lints templates and puts signatures to what it linted. Safe to use from several threads."""

    def __init__(self) -> None:
        self._seen: set[object] = set()
        self._lock = Lock()

    def prepare(self) -> None:
        """Load the full linter now (a fifth of a second) rather than with the first certificate."""
        from privyseal_ca.issuance import pkix_rules  # noqa: PLC0415 (loaded only where certificates are issued)

        pkix_rules.validator()

    def lint(self, template: Template, issuer: IssuerIdentity) -> LintedCertificate:
        """Check the certificate that ``template`` describes, signed by a stand-in for ``issuer``.

        Raises:
            LintError: it would break a rule; the message names the findings.
        """
        certificate = template.builder.sign(_stand_in(issuer), signature_hash(issuer.public_key))
        _check(certificate, template, issuer)
        der = certificate.public_bytes(Encoding.DER)
        if template.shape not in self._seen:
            self._lint_fully(der)
            with self._lock:
                if len(self._seen) >= MAX_SHAPES:
                    self._seen.clear()
                self._seen.add(template.shape)
        return LintedCertificate(_MINT, template, certificate.tbs_certificate_bytes, asn1.decode_der(_Certificate, der))

    def assemble(self, linted: LintedCertificate, signature: bytes) -> bytes:
        """The finished certificate in DER: exactly the linted octets, and ``signature``. Works once for each ``linted``.

        Raises:
            LintError: ``linted`` was assembled before.
        """
        return linted.assembled(signature)

    def _lint_fully(self, der: bytes) -> None:
        from privyseal_ca.issuance import pkix_rules  # noqa: PLC0415 (loaded only where certificates are issued)

        with self._lock:
            findings = pkix_rules.findings(der)
        if findings:
            raise LintError(f"The certificate would break rules: {'; '.join(findings)}.", hint=_HINT)


@lru_cache(maxsize=64)
def _stand_in(issuer: IssuerIdentity) -> PrivateKey:
    return stand_in_for(issuer.public_key)


def _check(certificate: x509.Certificate, template: Template, issuer: IssuerIdentity) -> None:
    """The check that every certificate gets: it has what its profile says, and nothing else."""
    request, profile = template.request, template.request.profile
    extensions = {extension.oid: extension for extension in certificate.extensions}
    subject_is_empty = not certificate.subject.rdns
    not_before = int(certificate.not_valid_before_utc.timestamp())
    not_after = int(certificate.not_valid_after_utc.timestamp())
    alternative_names = extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    basic_constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    try:
        names = [from_general_name(name) for name in alternative_names.value] if alternative_names else []
    except NameRefusedError as error:
        raise LintError(f"The certificate would have a bad name: {error.message}", hint=_HINT) from error
    problems = [
        problem
        for problem, found in (
            (
                "its extensions",
                _criticality(extensions) != _expected(profile, subject_is_empty, issuer.pointers.deltas),
            ),
            ("its serial number", not 0 < certificate.serial_number == template.serial < 1 << 127),
            ("its names", len(names) != len(request.names) or set(names) != set(request.names)),
            ("its issuer", certificate.issuer != issuer.subject),
            ("a CA bit", basic_constraints is None or basic_constraints.value.ca),
            ("its times", (not_before, not_after) != (template.not_before, template.not_after)),
            ("a validity outside its issuer's", not issuer.not_before <= not_before < not_after <= issuer.not_after),
            ("its lifetime", not_after - not_before >= profile.max_lifetime + profile.backdate),
        )
        if found
    ]
    if problems:
        raise LintError(f"The certificate would be wrong in {', '.join(problems)}.", hint=_HINT)


def _criticality(
    extensions: dict[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]],
) -> dict[x509.ObjectIdentifier, bool]:
    return {oid: extension.critical for oid, extension in extensions.items()}


@lru_cache(maxsize=512)
def _expected(profile: Profile, subject_is_empty: bool, deltas: bool) -> dict[x509.ObjectIdentifier, bool]:
    """The extensions of a certificate of ``profile``, and whether each is critical (STANDARDS: RFC 5280 section 4.2)."""
    expected = {
        ExtensionOID.KEY_USAGE: True,
        ExtensionOID.EXTENDED_KEY_USAGE: False,
        ExtensionOID.BASIC_CONSTRAINTS: True,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME: subject_is_empty,
    }
    if profile.nameless:
        del expected[ExtensionOID.SUBJECT_ALTERNATIVE_NAME]
    if profile.aia_ca_issuers or profile.ocsp:
        expected[ExtensionOID.AUTHORITY_INFORMATION_ACCESS] = False
    if profile.crl != "none":
        expected[ExtensionOID.CRL_DISTRIBUTION_POINTS] = False
    if profile.crl == "shard" and deltas:
        expected[ExtensionOID.FRESHEST_CRL] = False
    if profile.ocsp_no_check:
        expected[ExtensionOID.OCSP_NO_CHECK] = False
    if profile.no_rev_avail:
        expected[_NO_REV_AVAIL] = False
    return expected
