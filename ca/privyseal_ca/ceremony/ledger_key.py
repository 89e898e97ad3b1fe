"""The key that signs the ledger's checkpoints and nothing else, and the name that the ledger goes by."""

from collections.abc import Callable
from typing import Final

from privyseal_ca.ceremony.keys import KeyMaker
from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.clock import Clock
from privyseal_ca.errors import ConfigurationError
from privyseal_ca.hsm.attributes import KeyAlgorithm
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, find_fact, set_fact
from privyseal_ca.store.statement import Transaction

#: The fact that holds the key's URI.
KEY_FACT: Final = "ledger-key"
#: The fact that holds its label, and what every such label begins with.
LABEL_FACT: Final = "ledger-label"
LABEL: Final = "ledger-"
_TAG_OCTETS: Final = 4


async def ledger_key(
    store: Store,
    hsm: Hsm,
    clock: Clock,
    random_bytes: Callable[[int], bytes],
    *,
    actor: str,
    correlation: str,
) -> str:
    """The URI of the ledger's key, made in the token of the preferred issuing CA when there is none yet.

    Ed25519 where the token has it, else P-256. May be interrupted anywhere and called again.

    Raises:
        ConfigurationError: there is no active issuer; the token can make neither, or has lost what an earlier run made.
        SignerError: the token is away, refuses the PIN, or made a key that breaks promise P1.
        StoreError: the database failed.
    """

    def read(transaction: Transaction) -> tuple[str | None, list[IssuerRow]]:
        return find_fact(transaction, KEY_FACT), all_issuers(transaction)

    known, issuers = await store.read(read)
    if known is not None:
        return known
    preferred = next((issuer for issuer in issuers if issuer.state == "active"), None)
    if preferred is None:
        raise ConfigurationError(
            "No issuing CA is active, and the ledger's key is made in the token of one.",
            hint="Import its certificate with `privyseal issuer import`.",
        )
    token = KeyUri.parse(preferred.key_uri).token_uri
    algorithm: KeyAlgorithm = "ed25519" if await hsm.supports(str(token), "ed25519") else "ec-p256"
    label = await store.write(lambda tx: _label(tx, random_bytes))
    keys = KeyMaker(hsm, Transcript(store, clock=clock, actor=actor, correlation=correlation), random_bytes)
    uri = (await keys.signing_key(token, label, algorithm)).uri
    await store.write(lambda tx: set_fact(tx, KEY_FACT, uri))
    return uri


async def ledger_origin(store: Store, proposed: str) -> str:
    """The ledger's origin: the one that was recorded with its first checkpoint, else ``proposed``.

    C2SP tlog-checkpoint: a URL without its scheme that no other log has, such as ``ca.example.com/ledger``.

    Raises:
        StoreError: the database failed.
    """
    return await store.read(lambda tx: find_fact(tx, ORIGIN_FACT)) or proposed


def _label(transaction: Transaction, random_bytes: Callable[[int], bytes]) -> str:
    """The key's label, chosen once. Its random part keeps it apart from the key of a database that was restored to before
    there was one: labels are never used twice.
    """
    label = find_fact(transaction, LABEL_FACT)
    if label is None:
        label = f"{LABEL}{random_bytes(_TAG_OCTETS).hex()}"
        set_fact(transaction, LABEL_FACT, label)
    return label
