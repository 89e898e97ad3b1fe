"""What the service publishes about revocation, and the work behind it: responders, CRLs, OCSP, canaries, the watcher."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import structlog
from cryptography import x509

from privyseal_acme.background import begin
from privyseal_acme.flow.blocked import BlockedAccounts
from privyseal_acme.flow.context import Context
from privyseal_acme.protocol.urls import new_id
from privyseal_acme.readiness import status_reason
from privyseal_acme.scheduler import PROCESS, Job
from privyseal_ca.ceremony.responders import responder_keys
from privyseal_ca.errors import SignerMisconfiguredError
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import SigningKey, as_public_key
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.revocation.anchors import ended_issuers
from privyseal_ca.revocation.canary import Canaries
from privyseal_ca.revocation.compromise import CompromisedKeys
from privyseal_ca.revocation.ocsp import StoredOcsp
from privyseal_ca.revocation.ocsp_ready import ReadyResponses
from privyseal_ca.revocation.published import Watched
from privyseal_ca.revocation.publisher import CrlPublisher
from privyseal_ca.revocation.responders import Responders
from privyseal_ca.revocation.stored_crls import StoredCrls
from privyseal_ca.store.ocsp import all_responders
from privyseal_ca.web.status import Anchors
from privyseal_ca.web.watcher import Watcher

_log = structlog.get_logger("service")

#: How often certificates that the authority issues to itself are looked at, and what compromised keys still have.
_RENEWAL_SECONDS = 60.0
#: How often accounts are looked for whose key an operator has blocked.
_BLOCKED_SECONDS = 5.0
#: How many rounds of responses are made without a rest.
_TURNS = 32


@dataclass(frozen=True)
class Publication:
    """The parts, and what is to be done with them for as long as the service runs."""

    interval: float
    crls: StoredCrls
    ocsp: StoredOcsp
    publisher: CrlPublisher
    responders: Responders
    ready: ReadyResponses
    canaries: Canaries
    compromised_keys: CompromisedKeys
    blocked_accounts: BlockedAccounts
    watcher: Watcher
    anchors: Anchors
    context: Context

    async def begin(self) -> None:
        """Publish for the first time, so that what is answered once the service is ready is true.

        What a token or the database does not do now is done in the background.
        """
        for work in (
            self.compromised_keys.sweep,
            self.blocked_accounts.sweep,
            self.renew,
            partial(self.publish, full=False),
            partial(self.publish, full=True),
            self.ocsp.follow,
            self.prepare,
        ):
            await begin("publication", work)

    async def renew(self) -> None:
        """Certificates of responders and canaries that are due."""
        await self.responders.renew_due()
        await self.canaries.renew_due()

    async def prepare(self) -> None:
        """Make the OCSP responses that are due."""
        for _ in range(_TURNS):
            if not await self.ready.prepare_due():
                return

    async def publish(self, *, full: bool) -> None:
        """The CRLs that are due: those of all of an issuer, or the parts."""
        await self.publisher.publish_due(shards=not full, full=full)
        await self.crls.refresh()

    def reason(self) -> str:
        """Why revocation cannot be relied upon; empty when it can."""
        issuers = [issuer.id for issuer in self.context.authority.issuers]
        ended = ended_issuers(self.anchors.issuers, self.context.clock.now())
        return status_reason(self.crls, self.context.clock, self.watcher, issuers=issuers, ended=ended)

    def jobs(self) -> list[Job]:
        """What goes on for as long as the service runs, beside the watcher."""
        return [
            # What was revoked is told at once, however long a token takes over the responses.
            Job("revocations", self.interval, self.ocsp.follow, PROCESS),
            # Another process may have published: each serves what it has seen.
            Job("crl-refresh", self.interval, self.crls.refresh, PROCESS),
            Job("ocsp-responses", self.interval, self.prepare),
            # A full CRL may be long: the parts do not wait for it.
            Job("crl-parts", self.interval, partial(self.publish, full=False)),
            Job("crl-full", self.interval, partial(self.publish, full=True)),
            Job("responders", _RENEWAL_SECONDS, self.renew),
            Job("compromised-keys", _RENEWAL_SECONDS, self.compromised_keys.sweep),
            Job("blocked-accounts", _BLOCKED_SECONDS, self.blocked_accounts.sweep),
        ]


async def open_publication(context: Context, hsm: Hsm, anchors: Anchors, stack: AsyncExitStack) -> Publication:
    """Everything that publishes, opened; the keys of responders are made where there are none.

    Raises:
        PrivySealError: the token or the database cannot be used as they are.
    """
    settings, store, clock, metrics = context.settings, context.store, context.clock, context.metrics
    answering = context.authority.issuers.answering
    keys = await _open_keys(context, hsm)
    responders = Responders(
        store=store,
        authority=context.authority,
        issuers=answering,
        keys=keys,
        settings=settings.status,
        clock=clock,
        random_bytes=context.random_bytes,
        metrics=metrics,
    )
    ocsp = StoredOcsp(
        store=store,
        issuers={issuer.id: issuer.identity.certificate for issuer in answering},
        clock=clock,
        settings=settings.status,
        metrics=metrics,
        responders=responders,
    )
    stack.push_async_callback(ocsp.close)
    publisher = CrlPublisher(store=store, issuers=answering, settings=settings.status, clock=clock, metrics=metrics)
    await publisher.reserve()
    crls = StoredCrls(store)
    canaries = Canaries(
        store=store,
        authority=context.authority,
        issuers=context.authority.issuers,
        settings=settings.status,
        clock=clock,
        random_bytes=context.random_bytes,
    )
    return Publication(
        interval=settings.status.interval,
        crls=crls,
        ocsp=ocsp,
        publisher=publisher,
        responders=responders,
        ready=ReadyResponses(
            store=store,
            responders=responders,
            clock=clock,
            settings=settings.status,
            metrics=metrics,
            announce=ocsp.announce,
        ),
        canaries=canaries,
        compromised_keys=CompromisedKeys(store, clock, metrics),
        blocked_accounts=BlockedAccounts(store, clock, context.random_bytes),
        watcher=Watcher(
            expected=partial(_watched, context, anchors, crls, canaries),
            base_url=settings.server.public_http,
            settings=settings.status,
            clock=clock,
            metrics=metrics,
            names={issuer.id: issuer.identity.name for issuer in answering},
        ),
        anchors=anchors,
        context=context,
    )


async def _watched(context: Context, anchors: Anchors, crls: StoredCrls, canaries: Canaries) -> Watched:
    """What is to be found at the public URLs."""
    ended = ended_issuers(anchors.issuers, context.clock.now())
    published = tuple(crl for crl in crls.published() if crl.issuer_id not in ended)
    answering = {issuer.id for issuer in context.authority.issuers.answering} | {crl.issuer_id for crl in published}
    return Watched(
        issuers={name: der for name, (der, _) in anchors.issuers.items() if name in answering - ended},
        crls=published,
        canaries=await canaries.current(),
    )


async def _open_keys(context: Context, hsm: Hsm) -> Mapping[str, SigningKey]:
    """The responders' keys, by the id of their issuer; those of issuers whose own keys can be used."""
    uris = await responder_keys(
        context.store,
        hsm,
        context.clock,
        context.random_bytes,
        actor=SERVICE_ACTOR,
        correlation=new_id(context.random_bytes(16)),
    )
    rows = await context.store.read(all_responders)
    certified = {row.issuer_id: x509.load_der_x509_certificate(row.der).public_key() for row in rows if row.der}
    active = {issuer.id for issuer in context.authority.issuers}
    keys: dict[str, SigningKey] = {}
    for issuer in context.authority.issuers.answering:
        if issuer.id in uris:
            try:
                public_key = as_public_key(certified.get(issuer.id))
                keys[issuer.id] = await hsm.open_signing_key(
                    uris[issuer.id], public_key=public_key, needed=issuer.id in active
                )
            except SignerMisconfiguredError as error:
                if issuer.id in active:
                    raise
                _log.warning("a retired issuer's OCSP responder is gone", issuer=issuer.identity.name, error=str(error))
    return keys
