"""The log key and what it signs: checkpoints of the ledger (promise P6)."""

import asyncio
from string import punctuation
from typing import Final
from urllib.parse import quote

from privyseal_acme.flow.context import Context
from privyseal_acme.protocol.urls import new_id
from privyseal_ca.ceremony.ledger_key import ledger_key, ledger_origin
from privyseal_ca.errors import ConfigurationError, LedgerBehindError, LedgerError, WitnessError
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import as_public_key
from privyseal_ca.ledger.checkpoints import VKEY_FACT, Checkpointer, latest_checkpoint
from privyseal_ca.ledger.entries import SERVICE_ACTOR
from privyseal_ca.ledger.log import size
from privyseal_ca.ledger.note import NoteVerifier
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.guard import check_outside
from privyseal_ca.recovery.kept_file import keep_checkpoint, kept_path
from privyseal_ca.store.issuers import find_fact
from privyseal_ca.witness.client import Witnesses

#: A URL may have a plus, which a key's name may not (C2SP signed-note).
_AS_THEY_ARE: Final = punctuation.replace("+", "")


async def open_checkpointer(context: Context, hsm: Hsm) -> Checkpointer:
    """The signer of checkpoints; its key is made where there is none. To be closed when nothing is signed any more.

    Raises:
        LedgerBehindError: the database is behind what is kept outside, or was restored and not settled (promise P8).
        PrivySealError: the token or the database cannot be used as they are.
    """
    kept = await check_outside(context.store, context.settings, clock=context.clock)
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
    vkey = await context.store.read(lambda tx: find_fact(tx, VKEY_FACT))
    public_key = as_public_key(NoteVerifier.parse(vkey).key) if vkey is not None else None
    key = await hsm.open_signing_key(uri, public_key=public_key)
    origin = await ledger_origin(context.store, proposed)
    return Checkpointer(
        store=context.store,
        key=key,
        origin=origin,
        clock=context.clock,
        metrics=context.metrics,
        kept=kept,
        cosigner=open_witnesses(context, NoteVerifier.for_key(origin, key.public_key)),
    )


class CheckpointKeeper:
    """Keeps the newest checkpoint in a file, by which a later start sees that the database was put back; and sees itself when
    that happens under a service that runs (promise P8).
    """

    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._path = kept_path(context.settings)
        self._kept = b""
        #: The sizes of the largest checkpoint and of the largest ledger that were seen.
        self._newest = 0
        self._size = 0
        #: Why the database is not what it was; None while it is.
        self.behind: LedgerBehindError | None = None

    async def keep(self) -> None:
        """Write the newest checkpoint that is published, when it is another than before, and never an older one.

        Raises:
            ConfigurationError: the file cannot be written.
            StoreError: the database failed.
        """
        newest = await self._store.read(latest_checkpoint)
        if newest is not None and newest.size >= self._newest and newest.note != self._kept:
            await asyncio.to_thread(keep_checkpoint, self._path, newest.note)
            self._kept, self._newest = newest.note, newest.size

    async def watch(self) -> None:
        """Look whether the database was put back, as PostgreSQL may be between two connections; then nothing is changed in it
        by this process any more, and it has to end.

        Raises:
            LedgerBehindError: it was.
            StoreError: the database failed.
        """
        end, fact = await self._store.read(lambda tx: (size(tx), restored_fact(tx)))
        if self.behind is None and fact is not None:
            self.behind = unsettled(fact)
        elif self.behind is None and end < self._size:
            self.behind = LedgerBehindError(
                f"The database was put back under the service: it has {end} entries, and had {self._size} before.",
                hint="Settle it with `privyseal recovery settle`, then start the service.",
            )
        if self.behind is not None:
            behind = self.behind
            self._store.refusal = lambda: behind
            raise behind
        self._size = end


def open_witnesses(context: Context, log_verifier: NoteVerifier) -> Witnesses | None:
    """Those who are asked to cosign the ledger whose key is ``log_verifier``; None when the settings name none.

    Nobody is asked yet. Whoever has the checkpointer closes them with it.

    Raises:
        ConfigurationError: the settings name them wrongly.
    """
    if not context.settings.ledger.witnesses:
        return None
    try:
        return Witnesses(
            context.settings.ledger,
            origin=log_verifier.name,
            log_verifier=log_verifier,
            metrics=context.metrics,
            clock=context.clock,
        )
    except (LedgerError, WitnessError) as error:
        raise ConfigurationError(f"ledger.witnesses cannot be used: {error.message}", hint=error.hint) from error
