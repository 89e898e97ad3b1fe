"""The log key and what it signs: checkpoints of the ledger (promise P6)."""

from string import punctuation
from typing import Final
from urllib.parse import quote

from privyseal_acme.flow.context import Context
from privyseal_acme.protocol.urls import new_id
from privyseal_ca.ceremony.ledger_key import ledger_key, ledger_origin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.ledger.checkpoints import Checkpointer
from privyseal_ca.ledger.entries import SERVICE_ACTOR

#: A URL may have a plus, which a key's name may not (C2SP signed-note).
_AS_THEY_ARE: Final = punctuation.replace("+", "")


async def open_checkpointer(context: Context, hsm: Hsm) -> Checkpointer:
    """The signer of checkpoints; its key is made where there is none.

    Raises:
        PrivySealError: the token or the database cannot be used as they are.
    """
    uri = await ledger_key(
        context.store,
        hsm,
        context.clock,
        context.random_bytes,
        actor=SERVICE_ACTOR,
        correlation=new_id(context.random_bytes(16)),
    )
    # C2SP tlog-checkpoint: a URL without its scheme that nobody else uses, and that never changes once a checkpoint has it.
    # A listener's address is neither.
    url = context.settings.server.http_url
    first = next(iter(context.authority.issuers)).id
    proposed = f"{quote(url.partition('://')[2], safe=_AS_THEY_ARE)}/ledger" if url else f"privyseal.internal/{first}"
    return Checkpointer(
        store=context.store,
        key=await hsm.open_signing_key(uri),
        origin=await ledger_origin(context.store, proposed),
        clock=context.clock,
        metrics=context.metrics,
    )
