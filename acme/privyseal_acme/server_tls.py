"""The server's own TLS certificate: from its own issuer, its key made at start and never on disk in clear."""

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privyseal_acme.protocol.urls import new_id
from privyseal_ca.clock import Clock
from privyseal_ca.errors import ConfigurationError, NameRefusedError
from privyseal_ca.identifiers import Identifier, parse_dns, parse_ip
from privyseal_ca.issuance.authority import Authority, Requester
from privyseal_ca.issuance.constraints import is_permitted
from privyseal_ca.issuance.issuers import Issuer, chain_pem
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.template import CertificateRequest
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.sections import ServerSettings, parse_listener
from privyseal_ca.telemetry.metrics import Metrics

_log = structlog.get_logger("tls")

_KEY_TYPE: Final = "ec-p256"


class ServerTls:
    """A TLS context whose certificate is replaced while connections go on."""

    def __init__(
        self, *, settings: ServerSettings, authority: Authority, profile: Profile, clock: Clock, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._profile = profile
        self._clock = clock
        self._metrics = metrics
        self._names = self._permitted(server_names(settings))
        self._not_before = self._renew_at = 0.0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])

    def _permitted(self, names: Sequence[Identifier]) -> tuple[Identifier, ...]:
        """Those of ``names`` that the issuer's constraints permit; the first, by which clients come, must be one."""
        issuer = self._authority.issuers.choose(self._profile, _KEY_TYPE)
        constraints = issuer.identity.name_constraints
        if not names or not is_permitted(names[0], constraints):
            raise ConfigurationError(
                f"{names[0].value if names else 'An empty name'} cannot be certified by issuer {issuer.identity.name}, "
                "whose name constraints leave it out.",
                hint="Set server.https_url to a name that they permit.",
            )
        return tuple(name for name in names if is_permitted(name, constraints))

    async def renew(self) -> None:
        """Make a key, have it certified, and use both for every connection from now on.

        Raises:
            PrivySealError: the certificate could not be issued.
        """
        private_key = ec.generate_private_key(ec.SECP256R1())
        public_key = private_key.public_key()
        spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        now = self._clock.now()
        request = CertificateRequest(
            profile=self._profile,
            names=self._names,
            public_key=public_key,
            spki_der=spki,
            spki_sha256=hashlib.sha256(spki).digest(),
            key_type=_KEY_TYPE,
            not_after=float(int(now) + min(self._settings.tls_lifetime, self._profile.max_lifetime) - 1),
        )
        requester = Requester(actor=SERVICE_ACTOR, correlation=new_id(os.urandom(16)), purpose="server-tls")
        row = await self._authority.issue(
            request,
            requester,
            claim=lambda _: None,
            complete=lambda _transaction, _row: None,
            issuer=self._issuer(),
        )
        chain = self._authority.issuers.chains(row.issuer_id)[0]
        password = os.urandom(32)
        key_pem = private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
        load_chain(self.context, chain_pem(row.der, chain).encode() + key_pem, password)
        self._not_before = row.not_before
        self._renew_at = now + (row.not_after - now) * 2 / 3
        self._metrics.tls_not_after.set(row.not_after)
        _log.info("server certificate in use", serial=row.serial, not_after=row.not_after)

    def _issuer(self) -> Issuer:
        """The usual issuer, or another while its token is away: without a certificate there is no listener at all."""
        issuers = self._authority.issuers
        usual = issuers.choose(self._profile, _KEY_TYPE)
        able = [
            issuer
            for issuer in (usual, *issuers.allowed(self._profile))
            if issuer.key.available
            and all(is_permitted(name, issuer.identity.name_constraints) for name in self._names)
        ]
        return able[0] if able else usual

    async def renew_if_due(self) -> bool:
        """Renew at two thirds of the lifetime; whether that was done.

        Raises:
            PrivySealError: as :meth:`renew`. The certificate in use stays in use, and the next call tries again.
        """
        # One from before a clock stepped back is not valid yet for anybody else.
        if self._not_before <= self._clock.now() < self._renew_at:
            return False
        await self.renew()
        return True


def load_chain(context: ssl.SSLContext, pem: bytes, password: bytes) -> None:
    """Load certificate chain and encrypted key from memory: ssl reads files only, so it reads one that is on no disk."""
    descriptor = os.memfd_create("privyseal-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=password)
    finally:
        os.close(descriptor)


def server_names(settings: ServerSettings) -> tuple[Identifier, ...]:
    """The names of the server's certificate: the hosts of its URL and listener, and those in the settings.

    Raises:
        ConfigurationError: a name is neither a DNS name nor an address.
    """
    hosts = [urlsplit(settings.public_https).hostname or "", parse_listener(settings.https)[0], *settings.names]
    names: dict[Identifier, None] = {}
    for host in hosts:
        if host in {"0.0.0.0", "::", ""}:  # noqa: S104 (compared, not bound)
            continue
        try:
            names[parse_ip(host) if _is_address(host) else parse_dns(host)] = None
        except NameRefusedError as error:
            raise ConfigurationError(
                f"{host} cannot stand in the server's certificate: {error.message}",
                hint="Mend server.https_url or server.names.",
            ) from error
    if any(_is_address(name.value) and ipaddress.ip_address(name.value).is_loopback for name in names):
        names[parse_dns("localhost")] = None
    return tuple(names)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False
