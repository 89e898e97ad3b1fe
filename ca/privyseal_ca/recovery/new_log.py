"""Going on without entries that nobody has any more: openly, as another log (promises P6 and P8).

What was signed before covers entries that are gone, so nothing that is signed from now on can continue it. The log gets another
name and another key; whoever keeps checkpoints of the former one sees that it ended. What the CRLs list stays revoked: each
serial gets an entry of its own, and every CRL goes on with a number that no lost CRL can have had.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import orjson
from cryptography import x509

from privyseal_ca.ceremony.ledger_key import KEY_FACT, LABEL_FACT
from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.errors import BackupError
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.ledger.checkpoints import ORIGIN_FACT, VKEY_FACT
from privyseal_ca.ledger.crl_reader import Listed
from privyseal_ca.ledger.entries import Kind, encode_entry
from privyseal_ca.ledger.log import append, lock_head
from privyseal_ca.recovery.crl_evidence import NONE, Ca, ShownCrl, all_cas, highest_number, unrevoked
from privyseal_ca.recovery.crl_numbers import number_beyond, time_of
from privyseal_ca.recovery.facts import FORMER_FACT, RESTORE_FACT, former_logs, restored_fact
from privyseal_ca.revocation.published import FULL, scope_name
from privyseal_ca.revocation.revoke import KEY_COMPROMISE, block_compromised_key
from privyseal_ca.store.certificates import RevocationRow, add_revocation, find_certificate, find_revocation
from privyseal_ca.store.crls import all_crls, newest_part
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import find_fact, set_fact
from privyseal_ca.store.rebuilding import forget_checkpoints, forget_fact, withdraw_crl
from privyseal_ca.store.statement import Transaction

#: Of the key of the log, which the next start makes anew: :mod:`privyseal_ca.ceremony.ledger_key`.
_KEY_FACTS: Final = (KEY_FACT, LABEL_FACT, VKEY_FACT)
_BATCH: Final = 100

Number = tuple[str, str, int]
"""Issuer, scope, and the number above which its CRLs go on."""


def require_crls(transaction: Transaction, shown: Sequence[ShownCrl], places: Sequence[str]) -> None:
    """Look whether a complete CRL of every issuer was given, or it was said that there are no others.

    Raises:
        BackupError: one is missing, or is older than the one that the database has itself.
    """
    full = [crl for crl in shown if crl.scope == FULL]
    for crl in full:
        newest = max(each.number for each in full if each.issuer.id == crl.issuer.id)
        known = highest_number(transaction, crl)
        if newest < known:
            raise BackupError(
                f"The CRL {crl.place} of {crl.issuer.name} has the number {newest}, which is older than the {known} of the "
                "database itself: it does not tell what was revoked since.",
                hint="Give the newest one that anybody has.",
            )
    given = {crl.issuer.id for crl in full}
    missing = sorted({ca.name for ca in all_cas(transaction) if ca.own and ca.id not in given})
    if missing and NONE not in places:
        raise BackupError(
            "Entries are lost, and without them only CRLs tell what was revoked; none was given of "
            f"{', '.join(missing)}: what it has revoked since the backup would be valid again.",
            hint="Give the newest one that anybody has of each with --crl FILE|URL: a copy of /crl/ID.crl, such as in a folder "
            "of `privyseal status publish`, a cache or a relying party. Only if there never was any: --crl none.",
        )


def switch_log(transaction: Transaction) -> str:
    """Give up the log under its name and key; the new name. Done once, however often it is called for one restore."""
    lock_head(transaction)
    fact = restored_fact(transaction) or {}
    if "new_origin" in fact:
        return str(fact["new_origin"])
    former = former_logs(transaction)
    origin = find_fact(transaction, ORIGIN_FACT)
    if origin is None:
        # It never signed anything that anybody could have: there is no log to give up.
        return ""
    former.append({"origin": origin, "vkey": find_fact(transaction, VKEY_FACT) or ""})
    new = f"{former[0]['origin']}/{len(former) + 1}"
    set_fact(transaction, FORMER_FACT, orjson.dumps(former).decode())
    set_fact(transaction, ORIGIN_FACT, new)
    for name in _KEY_FACTS:
        forget_fact(transaction, name)
    forget_checkpoints(transaction)
    set_fact(transaction, RESTORE_FACT, orjson.dumps({**fact, "new_origin": new}).decode())
    return new


class Importer:
    """Takes from CRLs what they list. ``pointers`` gives the parts of an issuer's list for certificates that nobody knows."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        pointers: Callable[[str], Pointers],
        actor: str,
        correlation: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._settings = settings
        self._pointers = pointers
        self._actor = actor
        self._correlation = correlation
        self._clock = clock

    async def revoke(self, shown: Sequence[ShownCrl]) -> int:
        """Revoke what the CRLs list and is not revoked; how many. What was done before is passed over.

        Raises:
            StoreError: the database failed; the next call goes on.
        """
        # A part says what its certificates name, so it goes before the list that has everything.
        parts = {
            (crl.issuer.id, each.serial): crl.shard for crl in shown if crl.shard is not None for each in crl.listed
        }
        done = 0
        for crl in sorted((crl for crl in shown if crl.issuer.own), key=lambda crl: crl.scope == FULL):
            missing = await unrevoked(self._store, crl)
            for begin in range(0, len(missing), _BATCH):
                batch = missing[begin : begin + _BATCH]
                done += await self._store.write(partial(self._revoke, crl, batch, parts))
        return done

    def _revoke(
        self,
        crl: ShownCrl,
        batch: Sequence[Listed],
        parts: Mapping[tuple[str, str], int | None],
        transaction: Transaction,
    ) -> int:
        lock_head(transaction)
        fresh = [each for each in batch if find_revocation(transaction, crl.issuer.id, each.serial) is None]
        for each in fresh:
            self._revoke_one(crl, each, parts.get((crl.issuer.id, each.serial)), transaction)
        return len(fresh)

    def _revoke_one(self, crl: ShownCrl, each: Listed, part: int | None, transaction: Transaction) -> None:
        certificate = find_certificate(transaction, each.serial)
        reason = max(each.reason or 0, 0)
        now = self._clock.now()
        if certificate is not None and certificate.issuer_id == crl.issuer.id:
            shard, not_after = certificate.crl_shard, certificate.not_after
            if reason == KEY_COMPROMISE:
                block_compromised_key(
                    transaction, certificate.spki_sha256, actor=self._actor, correlation=self._correlation, now=now
                )
        else:
            # No certificate outlives its issuer's.
            not_after = int(crl.issuer.certificate.not_valid_after_utc.timestamp())
            shard = part if part is not None else self._shard(crl.issuer, each.serial)
        entry = encode_entry(
            Kind.REVOCATION_RESTORED,
            time=now,
            actor=self._actor,
            correlation=self._correlation,
            payload={
                "crl_number": crl.number,
                "crl_shard": shard,
                "issuer": crl.issuer.id,
                "not_after": not_after,
                "reason": reason,
                "revoked_at": each.revoked_at,
                "serial": each.serial,
            },
        )
        index = append(transaction, entry)
        row = RevocationRow(crl.issuer.id, each.serial, each.revoked_at, reason or None, not_after, shard, index)
        add_revocation(transaction, row)

    def _shard(self, issuer: Ca, serial: str) -> int | None:
        constraints = issuer.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        if issuer.certificate.subject == issuer.certificate.issuer or constraints.path_length != 0:
            return None  # what it signs are CAs, which name no part
        return self._pointers(issuer.id).shard_of(int(serial, 16))

    async def raise_numbers(self, shown: Sequence[ShownCrl]) -> list[Number]:
        """Withdraw every CRL, and have the next go on above what any lost one can have had.

        Raises:
            StoreError: the database failed; the next call does it anew.
        """
        return await self._store.write(partial(self._raise_numbers, shown))

    def _raise_numbers(self, shown: Sequence[ShownCrl], transaction: Transaction) -> list[Number]:
        lock_head(transaction)
        rows = {(row.issuer_id, row.scope): row for row in all_crls(transaction)}
        raised: list[Number] = []
        fact = restored_fact(transaction) or {}
        known_at = time_of(transaction, int(fact.get("size", 0)) - 1)
        for issuer in {ca.id for ca in all_cas(transaction) if ca.own}:
            scopes = {scope for of, scope in rows if of == issuer} | {FULL}
            scopes |= {scope_name(shard) for shard in self._pointers(issuer).current if len(scopes) > 1}
            seen = max((crl.number for crl in shown if crl.issuer.id == issuer), default=0)
            for scope in sorted(scopes):
                row = rows.get((issuer, scope))
                known = max(row.number if row else 0, newest_part(transaction, issuer, scope), seen)
                if not known and scope == FULL and len(scopes) == 1:
                    continue  # a CA that never published one
                interval, now = self._settings.status.interval, self._clock.now()
                number = number_beyond(known, row, known_at=known_at, now=now, interval=interval)
                withdraw_crl(transaction, issuer, scope, number)
                raised.append((issuer, scope, number))
        return raised
