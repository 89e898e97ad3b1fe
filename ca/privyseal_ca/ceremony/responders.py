"""The keys of the OCSP responders: one for each issuer, made when a service starts and there is none."""

from collections.abc import Callable, Mapping

import structlog

from privyseal_ca.ceremony.keys import KeyMaker
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.clock import Clock
from privyseal_ca.errors import ConfigurationError, SignerError
from privyseal_ca.hsm.attributes import KeyAlgorithm
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, find_fact, set_fact
from privyseal_ca.store.ocsp import add_responder, all_responders
from privyseal_ca.store.statement import Transaction

_log = structlog.get_logger("ocsp")

_TAG_OCTETS = 4


async def responder_keys(
    store: Store,
    hsm: Hsm,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    *,
    actor: str,
    correlation: str,
) -> Mapping[str, str]:
    """The key URI of every responder, by the id of its issuer.

    Makes the keys that are missing of active issuers, and of retired ones whose tokens still work, each in the token of its
    issuer. May be interrupted anywhere and called again.

    Raises:
        ConfigurationError: a token cannot make such keys, or has lost one that an earlier run made.
        SignerError: the token of an active issuer is away, refuses the PIN, or made a key that breaks promise P1.
        StoreError: the database failed.
    """

    def read(transaction: Transaction) -> tuple[list[IssuerRow], dict[str, str]]:
        return all_issuers(transaction), {row.issuer_id: row.key_uri for row in all_responders(transaction)}

    issuers, uris = await store.read(read)
    keys = KeyMaker(hsm, Transcript(store, clock=clock, actor=actor, correlation=correlation), random_bytes)
    for issuer in issuers:
        if issuer.id in uris or issuer.state not in {"active", "retired"}:
            continue
        try:
            uris[issuer.id] = await _make(store, keys, issuer, random_bytes)
        except (SignerError, ConfigurationError) as error:
            if issuer.state == "active":
                raise
            _log.warning("a retired issuer gets no OCSP responder", issuer=issuer.name, error=str(error))
    return uris


async def _make(store: Store, keys: KeyMaker, issuer: IssuerRow, random_bytes: Callable[[int], bytes]) -> str:
    label = await store.write(lambda tx: _label(tx, issuer, random_bytes))
    algorithm: KeyAlgorithm = "rsa-2048" if issuer.algorithm.startswith("rsa") else "ec-p256"
    uri = (await keys.signing_key(KeyUri.parse(issuer.key_uri).token_uri, label, algorithm)).uri
    await store.write(lambda tx: add_responder(tx, issuer.id, uri))
    return uri


def _label(transaction: Transaction, issuer: IssuerRow, random_bytes: Callable[[int], bytes]) -> str:
    """The key's label, chosen once. Its random part keeps it apart from the names of issuers, which are labels too, and
    from the responder of a database that was restored to before there was one: labels are never used twice.
    """
    fact = f"ocsp-label:{issuer.id}"
    label = find_fact(transaction, fact)
    if label is None:
        label = f"{issuer.name}-ocsp-{random_bytes(_TAG_OCTETS).hex()}"
        set_fact(transaction, fact, label)
    return label
