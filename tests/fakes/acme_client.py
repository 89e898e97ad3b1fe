"""An ACME client for tests that shares nothing with the server: it signs with cryptography, and lies when it is told to.

Every request goes over TLS that is verified against the authority's ``roots.pem``. :meth:`AcmeClient.post` makes a proper
JWS; keyword arguments replace members of its protected header, and :data:`ABSENT` leaves one out::

    client.post(url, {}, alg="none")
    client.post(url, {}, nonce=ABSENT, crit=["b64"])
    client.send(url, b"anything", content_type="text/plain")

:meth:`AcmeClient.issue` goes through a whole order. One client belongs to one thread; :meth:`AcmeClient.twin` gives another
connection of the same account.
"""

import hashlib
import hmac
import http.client
import json
import ssl
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fakes.http01 import Http01

JOSE: Final = "application/jose+json"
PROBLEM_PREFIX: Final = "urn:ietf:params:acme:error:"
#: The value of a header member that is left out.
ABSENT: Final = object()
_CURVES: Mapping[str, tuple[ec.EllipticCurve, str, int, hashes.HashAlgorithm]] = {
    "ES256": (ec.SECP256R1(), "P-256", 32, hashes.SHA256()),
    "ES384": (ec.SECP384R1(), "P-384", 48, hashes.SHA384()),
    "ES512": (ec.SECP521R1(), "P-521", 66, hashes.SHA512()),
}
#: Servers close connections that are idle for longer.
_IDLE = 30.0
_PATIENCE: Final = 20.0
_POLL: Final = 0.01

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The opposite of :func:`b64`."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


class JwsKey:
    """A private key that signs JWS with ``alg``."""

    def __init__(self, alg: str = "ES256", private: PrivateKey | None = None) -> None:
        self.alg = alg
        self.private = private or _generate(alg)

    @cached_property
    def jwk(self) -> dict[str, str]:
        """The public key as a JWK (RFC 7518 section 6, RFC 8037 section 2)."""
        public = self.private.public_key()
        if isinstance(public, ec.EllipticCurvePublicKey):
            _, name, size, _ = next(row for row in _CURVES.values() if row[0].name == public.curve.name)
            numbers = public.public_numbers()
            return {"kty": "EC", "crv": name, "x": _number(numbers.x, size), "y": _number(numbers.y, size)}
        if isinstance(public, ed25519.Ed25519PublicKey):
            return {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
        modulus = public.public_numbers()
        return {"kty": "RSA", "n": _number(modulus.n), "e": _number(modulus.e)}

    @property
    def thumbprint(self) -> str:
        """RFC 7638."""
        text = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        return b64(hashlib.sha256(text.encode()).digest())

    def sign(self, message: bytes) -> bytes:
        """The signature in the form of JWS."""
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            _, _, size, algorithm = next(row for row in _CURVES.values() if row[0].name == self.private.curve.name)
            r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(algorithm)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if isinstance(self.private, ed25519.Ed25519PrivateKey):
            return self.private.sign(message)
        return self.private.sign(message, padding.PKCS1v15(), hashes.SHA256())


class MacKey:
    """A symmetric key, as external account binding has them."""

    def __init__(self, secret: bytes, alg: str = "HS256") -> None:
        self.alg = alg
        self._secret = secret

    def sign(self, message: bytes) -> bytes:
        """The MAC."""
        return hmac.digest(self._secret, message, self.alg.replace("HS", "sha"))


def _generate(alg: str) -> PrivateKey:
    if alg in _CURVES:
        return ec.generate_private_key(_CURVES[alg][0])
    if alg in {"EdDSA", "Ed25519"}:
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


class Signs(Protocol):
    """What signs a JWS."""

    def sign(self, message: bytes) -> bytes:
        """The signature."""
        ...


def make_jws(key: Signs, payload: object, header: Mapping[str, Any]) -> dict[str, Any]:
    """A flattened JWS. ``payload`` is bytes, or becomes JSON; None is the empty payload of POST-as-GET."""
    members = {name: value for name, value in header.items() if value is not ABSENT}
    protected = b64(json.dumps(members).encode())
    body = b64(payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode())
    return {
        "protected": protected,
        "payload": body,
        "signature": b64(key.sign(f"{protected}.{body}".encode())),
    }


@dataclass(frozen=True)
class Response:
    """An answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The problem's type without ACME's prefix; the answer must be a problem document."""
        assert self.headers["Content-Type"] == "application/problem+json", (self.status, self.body)
        document = self.json
        assert document["status"] == self.status, document
        assert document["detail"], document
        assert document["type"].startswith(PROBLEM_PREFIX), document
        return str(document["type"]).removeprefix(PROBLEM_PREFIX)

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and type of a problem."""
        return self.status, self.problem

    @property
    def links(self) -> dict[str, list[str]]:
        """The targets of the Link fields by relation (RFC 8288)."""
        found: dict[str, list[str]] = {}
        for field in self.headers.get_all("Link", []):
            target, _, relation = field.partition(";rel=")
            found.setdefault(relation.strip('"'), []).append(target.strip("<>"))
        return found


@dataclass(frozen=True)
class Issued:
    """A certificate with all that led to it."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]
    key: PrivateKey
    order: Response
    url: str

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


#: X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name.
_NO_CHECK_TIME = 0x200000


class AcmeClient:
    """One account, or somebody who has none yet."""

    def __init__(
        self,
        directory: str,
        roots: Path,
        *,
        http01: Http01 | None = None,
        set_txt: Callable[..., None] | None = None,
        key: JwsKey | None = None,
    ) -> None:
        self.directory_url = directory
        self.roots = roots
        self.http01 = http01
        #: Sets the TXT records of a name: ``set_txt(name, *values)``.
        self.set_txt = set_txt
        self.key = key or JwsKey()
        self.account: str | None = None
        self.nonce: str | None = None
        #: Whether the server's certificate may be from another time: that of a service whose clock is turned.
        self.at_any_time = False
        self._connection: http.client.HTTPSConnection | None = None
        self._used = 0.0

    # Requests

    @cached_property
    def directory(self) -> dict[str, Any]:
        """The directory."""
        document: dict[str, Any] = self.request("GET", self.directory_url).json
        return document

    def request(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One HTTP request over the client's connection; whatever nonce comes back is kept for the next."""
        parts = urlsplit(url)
        if time.monotonic() - self._used > _IDLE:
            self.close()
        self._used = time.monotonic()
        if self._connection is None:
            context = ssl.create_default_context(cafile=self.roots)
            if self.at_any_time:
                context.verify_flags |= _NO_CHECK_TIME
            self._connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, context=context, timeout=_PATIENCE
            )
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            self._connection.request(method, path, body, dict(headers or {}))
            answer = self._connection.getresponse()
            response = Response(answer.status, answer.headers, answer.read())
        except BaseException:
            self.close()
            raise
        self.nonce = response.headers["Replay-Nonce"] or self.nonce
        return response

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def twin(self) -> "AcmeClient":
        """The same account on another connection."""
        other = AcmeClient(self.directory_url, self.roots, http01=self.http01, set_txt=self.set_txt, key=self.key)
        other.account = self.account
        return other

    def fresh_nonce(self) -> str:
        """A nonce that nobody has used."""
        self.request("HEAD", self.directory["newNonce"])
        assert self.nonce is not None
        return self.nonce

    def take_nonce(self) -> str:
        """The nonce of the last answer, or a fresh one."""
        nonce, self.nonce = self.nonce or self.fresh_nonce(), None
        return nonce

    def sign(self, url: str, payload: object, /, *, key: Signs | None = None, **header: Any) -> dict[str, Any]:
        """The JWS of a request to ``url``. By the account when there is one, else with the key; ``header`` decides otherwise."""
        members: dict[str, Any] = {"alg": self.key.alg, "url": url}
        if "jwk" not in header and "kid" not in header:
            members |= {"kid": self.account} if self.account else {"jwk": self.key.jwk}
        if "nonce" not in header:
            members["nonce"] = self.take_nonce()
        return make_jws(key or self.key, payload, members | header)

    def post(self, url: str, payload: object = None, /, *, key: Signs | None = None, **header: Any) -> Response:
        """A signed request; without ``payload`` a POST-as-GET."""
        return self.send(url, json.dumps(self.sign(url, payload, key=key, **header)).encode())

    def send(self, url: str, body: bytes, *, content_type: str = JOSE) -> Response:
        """A POST of whatever ``body`` is."""
        return self.request("POST", url, body, {"Content-Type": content_type})

    # Accounts

    def register(self, *, url: str | None = None, **members: Any) -> Response:
        """NewAccount; the client uses the account from then on."""
        answer = self.new_account(url=url, **members)
        assert answer.status in {200, 201}, answer.body
        self.account = answer.headers["Location"]
        return answer

    def new_account(self, *, url: str | None = None, **members: Any) -> Response:
        """NewAccount, whatever comes of it."""
        return self.post(
            url or self.directory["newAccount"], {"termsOfServiceAgreed": True, **members}, jwk=self.key.jwk
        )

    def binding(self, kid: str, secret: bytes, /, *, payload: object = None, alg: str = "HS256", **header: Any) -> Any:
        """An externalAccountBinding (section 7.3.4) for the client's key."""
        members = {"alg": alg, "kid": kid, "url": self.directory["newAccount"], **header}
        mac = MacKey(secret, alg if alg.startswith("HS") else "HS256")
        return make_jws(mac, self.key.jwk if payload is None else payload, members)

    # Orders

    def new_order(self, *names: str, **members: Any) -> Response:
        """NewOrder for DNS names and addresses."""
        return self.post(self.directory["newOrder"], {"identifiers": [identifier(name) for name in names], **members})

    def order(self, *names: str, **members: Any) -> Response:
        """A pending order."""
        answer = self.new_order(*names, **members)
        assert answer.status == 201, answer.body
        return answer

    def ready_order(self, *names: str, **members: Any) -> Response:
        """An order whose authorizations are all valid; the answer is that of newOrder."""
        answer = self.order(*names, **members)
        for url in answer.json["authorizations"]:
            self.authorize(url)
        return answer

    def authorize(self, url: str, challenge_type: str | None = None) -> Response:
        """Prove control, by http-01 unless it is a wildcard, and wait for the end of it."""
        authorization = self.post(url).json
        if authorization["status"] != "pending":
            return self.post(url)
        kind = challenge_type or ("dns-01" if authorization.get("wildcard") else "http-01")
        challenge = challenge_of(authorization, kind)
        self.prepare(authorization["identifier"]["value"], challenge)
        answer = self.post(challenge["url"], {})
        assert answer.status == 200, answer.body
        return self.poll(url)

    def prepare(self, name: str, challenge: Mapping[str, str]) -> None:
        """Have the proof ready for a challenge of http-01 or dns-01."""
        authorization = self.key_authorization(challenge)
        if challenge["type"] == "http-01":
            assert self.http01 is not None
            self.http01.serve(challenge["token"], authorization)
        else:
            assert self.set_txt is not None
            digest = b64(hashlib.sha256(authorization.encode()).digest())
            self.set_txt(f"_acme-challenge.{name}", digest)

    def key_authorization(self, challenge: Mapping[str, str]) -> str:
        """RFC 8555 section 8.1."""
        return f"{challenge['token']}.{self.key.thumbprint}"

    def poll(self, url: str, waiting: Sequence[str] = ("pending", "processing")) -> Response:
        """The first answer whose status is none of ``waiting``."""
        deadline = time.monotonic() + _PATIENCE
        while (answer := self.post(url)).json["status"] in waiting:
            assert time.monotonic() < deadline, answer.body
            time.sleep(_POLL)
        return answer

    def finalize(self, order: Response, csr: bytes) -> Response:
        """Hand a CSR in, whatever comes of it."""
        return self.post(order.json["finalize"], {"csr": b64(csr)})

    def issue(self, *names: str, key: PrivateKey | None = None, **members: Any) -> Issued:
        """A certificate for ``names`` by a new order."""
        order = self.ready_order(*names, **members)
        key = key or ec.generate_private_key(ec.SECP256R1())
        answer = self.finalize(order, make_csr(names, key))
        assert answer.status == 200, answer.body
        final = self.poll(order.headers["Location"], ("processing",))
        assert final.json["status"] == "valid", final.body
        chain = self.download(final.json["certificate"])
        return Issued(chain[0], chain, key, final, order.headers["Location"])

    def download(self, url: str) -> list[x509.Certificate]:
        """The certificate chain at ``url``."""
        return x509.load_pem_x509_certificates(self.post(url).body)

    def revoke(self, certificate: bytes, *, key: JwsKey | None = None, **members: Any) -> Response:
        """RevokeCert by the account, or by ``key``."""
        header: dict[str, Any] = {} if key is None else {"jwk": key.jwk, "alg": key.alg}
        payload = {"certificate": b64(certificate), **members}
        return self.post(self.directory["revokeCert"], payload, key=key, **header)


def identifier(name: str) -> dict[str, str]:
    """A name as ACME writes it."""
    try:
        ip_address(name)
    except ValueError:
        return {"type": "dns", "value": name}
    return {"type": "ip", "value": name}


def challenge_of(authorization: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The challenge of type ``kind``."""
    found: list[dict[str, Any]] = [item for item in authorization["challenges"] if item["type"] == kind]
    assert len(found) == 1, authorization
    return found[0]


def make_csr(
    names: Sequence[str],
    key: PrivateKey,
    *,
    common_name: str | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
) -> bytes:
    """A PKCS #10 request in DER."""
    subject = [] if common_name is None else [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
