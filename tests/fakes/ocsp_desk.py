"""The OCSP engine of a home without the rest of a service: real token, real database, a clock that tests turn.

``ocsp_desk(settings)`` is an asynchronous context with an :class:`OcspDesk`. Another one with the same settings is what a
restart looks like.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ocsp

from fakes import issuing
from fakes.home import MakeSettings
from fakes.postgresql import copy_to_postgresql
from fakes.service import FakeClock
from privyseal_acme.cli import cli
from privyseal_acme.opening import load_issuers, open_hsm, open_store
from privyseal_ca.ceremony.responders import responder_keys
from privyseal_ca.config import Settings
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.issuance.authority import Authority, Requester
from privyseal_ca.issuance.issuers import Issuer
from privyseal_ca.issuance.lint import Linter
from privyseal_ca.revocation.ocsp import StoredOcsp
from privyseal_ca.revocation.ocsp_ready import ReadyResponses
from privyseal_ca.revocation.ocsp_response import issuer_hashes
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus
from privyseal_ca.revocation.responders import Responders
from privyseal_ca.revocation.revoke import ADMINISTRATOR_REASONS, revoke_certificate
from privyseal_ca.store.certificates import CertificateRow, RevocationRow, find_certificate
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import all_issuers, chains
from privyseal_ca.store.migrate import migrate
from privyseal_ca.store.ocsp import ResponseRow, find_response
from privyseal_ca.telemetry.metrics import Metrics

#: For fixtures with a parameter: the databases that a home can have.
BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql))


def settings_on(request: pytest.FixtureRequest, make_settings: MakeSettings) -> Settings:
    """The settings of a home whose database is the one that ``request`` names."""
    made = make_settings()
    if request.param == "sqlite":
        return made
    url = copy_to_postgresql(made.database_url, request.getfixturevalue("postgresql"))
    return made.model_copy(update={"database": made.database.model_copy(update={"url": url})})


@dataclass
class OcspDesk:
    """Everything that answers, and the authority behind it."""

    settings: Settings
    clock: FakeClock
    store: Store
    hsm: Hsm
    authority: Authority
    certificates: dict[str, x509.Certificate]
    responders: Responders
    ocsp: StoredOcsp
    ready: ReadyResponses
    metrics: Metrics
    forgotten: list[str] = field(default_factory=list)

    @property
    def issuer(self) -> Issuer:
        """The preferred issuer."""
        return next(iter(self.authority.issuers))

    async def issue(self, *names: str, issuer: Issuer | None = None) -> CertificateRow:
        """A certificate of the default profile."""
        return await self.authority.issue(
            issuing.request(*names),
            Requester("account:tests", "tests", "tests"),
            claim=lambda _: None,
            complete=lambda _transaction, _row: None,
            issuer=issuer,
        )

    async def revoke(self, row: CertificateRow, reason: int | None = 4) -> RevocationRow:
        """Revoke as an administrator does, for a reason that leaves other certificates of the same key alone."""

        def unit(transaction: Any) -> RevocationRow:
            found = find_certificate(transaction, row.serial)
            assert found is not None
            return revoke_certificate(
                transaction,
                found,
                reason=reason,
                allowed_reasons=ADMINISTRATOR_REASONS,
                actor="operator:tests",
                correlation="tests",
                now=self.clock.now(),
            )

        return await self.store.write(unit)

    def query(
        self, serial: int | str, *, hash_name: str = "sha1", nonce: bytes | None = None, issuer_id: str | None = None
    ) -> OcspQuery:
        """The question about ``serial``."""
        number = int(serial, 16) if isinstance(serial, str) else serial
        certificate = self.certificates[issuer_id or self.issuer.id]
        return OcspQuery(hash_name, *issuer_hashes(certificate, hash_name), number, nonce)

    async def ask(self, serial: int | str, **options: Any) -> OcspAnswer | OcspStatus:
        """The answer about ``serial``."""
        return await self.ocsp.answer(self.query(serial, **options))

    async def status(self, serial: int | str, **options: Any) -> str:
        """The answer's status, verified: ``good``, ``revoked``, ``unknown``, or the name of an unsigned one."""
        query = self.query(serial, **options)
        answer = await self.ocsp.answer(query)
        if isinstance(answer, OcspStatus):
            return answer.name
        return self.verified(answer, query).certificate_status.name.lower()

    def verified(self, answer: OcspAnswer, query: OcspQuery) -> ocsp.OCSPResponse:
        """The response in ``answer``, after every check that a careful client makes."""
        response = ocsp.load_der_ocsp_response(answer.der)
        assert response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
        issuer_id = next(
            each
            for each, certificate in self.certificates.items()
            if issuer_hashes(certificate, query.hash_name) == (query.issuer_name_hash, query.issuer_key_hash)
        )
        (signer,) = response.certificates
        signer.verify_directly_issued_by(self.certificates[issuer_id])
        usage = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [x509.ExtendedKeyUsageOID.OCSP_SIGNING]
        assert response.responder_key_hash == x509.SubjectKeyIdentifier.from_public_key(signer.public_key()).digest
        _verify(signer.public_key(), response)
        assert response.issuer_name_hash == query.issuer_name_hash
        assert response.issuer_key_hash == query.issuer_key_hash
        assert response.serial_number == query.serial
        assert response.hash_algorithm.name == query.hash_name
        begin, end = int(response.this_update_utc.timestamp()), int(response.next_update_utc.timestamp())  # type: ignore[union-attr]
        assert (begin, end) == (answer.this_update, answer.next_update)
        assert begin <= answer.fresh_until <= end
        assert begin <= self.clock.now() < end <= signer.not_valid_after_utc.timestamp()
        assert int(answer.serial, 16) == query.serial
        nonces = [each.value.nonce for each in response.extensions if isinstance(each.value, x509.OCSPNonce)]
        assert not nonces or nonces == [query.nonce]
        return response

    async def kept(self, serial: str, hash_name: str = "sha1") -> ResponseRow | None:
        """The response in the database."""
        return await self.store.read(lambda tx: find_response(tx, serial, hash_name))

    def signed(self, reason: str) -> int:
        """How many responses were signed for ``reason``."""
        return int(
            self.metrics.registry.get_sample_value("privyseal_ocsp_responses_signed_total", {"reason": reason}) or 0
        )

    def status_only(self) -> StoredOcsp:
        """What answers from the same database without any key."""
        return StoredOcsp(
            store=self.store,
            issuers=self.certificates,
            clock=self.clock,
            settings=self.settings.status,
            metrics=Metrics(),
            responders=None,
        )


@asynccontextmanager
async def ocsp_desk(
    settings: Settings, *, clock: FakeClock | None = None, open_hsm: Any = open_hsm, open_store: Any = open_store
) -> AsyncIterator[OcspDesk]:
    """Open everything; close it at the end of the block."""
    clock = clock or FakeClock()
    async with AsyncExitStack() as stack:
        migrate(settings.database_url)
        store = open_store(settings)
        await store.open()
        stack.push_async_callback(store.close)
        hsm = open_hsm(settings)
        stack.push_async_callback(hsm.close)
        issuers = await load_issuers(store, hsm, settings)
        uris = await responder_keys(store, hsm, clock, os.urandom, actor="operator:tests", correlation="tests")
        metrics = Metrics()
        authority = Authority(
            store=store, issuers=issuers, linter=Linter(), clock=clock, random_bytes=os.urandom, metrics=metrics
        )
        responders = Responders(
            store=store,
            authority=authority,
            issuers=issuers.answering,
            keys={each.id: await hsm.open_signing_key(uris[each.id]) for each in issuers.answering},
            settings=settings.status,
            clock=clock,
            random_bytes=os.urandom,
            metrics=metrics,
        )
        await responders.renew_due()
        certificates = await store.read(
            lambda tx: {
                row.id: x509.load_pem_x509_certificates(chains(tx, row.id)[0].encode())[0] for row in all_issuers(tx)
            }
        )
        common = {"store": store, "clock": clock, "settings": settings.status, "metrics": metrics}
        source = StoredOcsp(issuers=certificates, responders=responders, **common)
        stack.push_async_callback(source.close)
        ready = ReadyResponses(responders=responders, announce=source.announce, **common)
        desk = OcspDesk(settings, clock, store, hsm, authority, certificates, responders, source, ready, metrics)
        source.on_change(desk.forgotten.extend)
        yield desk


def add_issuer(settings: Settings, *options: str) -> str:
    """Another issuer in the database of ``settings``, made by the command; its name."""
    name = f"other-{secrets.token_hex(4)}"
    environment = {"PRIVYSEAL_HOME": str(settings.home), "PRIVYSEAL_DATABASE__URL": settings.database_url}
    result = CliRunner().invoke(cli, ["issuer", "create", name, *options], env=environment)
    assert result.exit_code == 0, result.output
    return name


def _verify(key: Any, response: ocsp.OCSPResponse) -> None:
    algorithm = response.signature_hash_algorithm
    assert algorithm is not None
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm)
    else:
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
