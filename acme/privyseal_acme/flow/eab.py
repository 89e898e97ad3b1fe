"""Keys for external account binding: made for somebody who is known, to bind the accounts of their clients."""

import base64
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from privyseal_acme.store.eab import EabKeyRow, add_eab_key, find_eab_key, revoke_eab_key, set_eab_attributes
from privyseal_ca.clock import Clock
from privyseal_ca.errors import ConfigurationError, PolicyError
from privyseal_ca.fleet.attributes import NOTHING_SAID, Attributes
from privyseal_ca.hsm.signer import WrappingKey
from privyseal_ca.ledger.entries import Kind, Payload, encode_entry
from privyseal_ca.ledger.log import append
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.sections import PolicySettings
from privyseal_ca.store.engine import Store
from privyseal_ca.store.fleet import RULES_FACT
from privyseal_ca.store.issuers import set_fact
from privyseal_ca.store.statement import Transaction

_KID_OCTETS = 12
_KEY_OCTETS = 32  # for HS256 (RFC 7518 section 3.2)
_MAX_LABEL = 200


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Names that accounts bound by a key may have, at most. Without entries only the policy limits them."""

    dns: Collection[str] = ()
    ip: Collection[str] = ()
    uri: Collection[str] = ()

    def text(self) -> str | None:
        """The form in which keys and accounts keep it."""
        if not (self.dns or self.ip or self.uri):
            return None
        return json.dumps({"dns": list(self.dns), "ip": list(self.ip), "uri": list(self.uri)})


@dataclass(frozen=True, slots=True)
class NewEabKey:
    """A key that was just made: what is stored, and the secret, which is told once."""

    row: EabKeyRow
    secret: bytes = field(repr=False)

    @property
    def hmac_key(self) -> str:
        """The secret as ACME clients take it: base64url without padding."""
        return base64.urlsafe_b64encode(self.secret).rstrip(b"=").decode()


class EabKeys:
    """Makes and revokes keys in the name of ``actor``."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        policies: Mapping[str, PolicySettings],
        actor: str,
        correlation: str,
    ) -> None:
        self._store = store
        self._clock = clock
        self._random_bytes = random_bytes
        self._policies = policies
        self._actor = actor
        self._correlation = correlation

    async def create(
        self,
        wrapping_key: WrappingKey,
        *,
        policy: str = "default",
        narrowing: Narrowing = Narrowing(),
        label: str = "",
        lifetime: int | None = None,
        max_uses: int | None = None,
        attributes: Attributes = NOTHING_SAID,
    ) -> NewEabKey:
        """Make a key, wrapped by ``wrapping_key`` before it is stored (promise P10).

        Args:
            policy: the policy of the accounts that the key binds.
            narrowing: limits on top of that policy.
            label: what people call it.
            lifetime: seconds for which it can be used; any time when None.
            max_uses: how many accounts it binds; any number when None.
            attributes: whose the workloads of those accounts are.

        Raises:
            ConfigurationError: the policy does not exist, or an entry or the label could not be used.
            SignerError: the token did not wrap the key.
        """
        self._check(policy, narrowing, label)
        kid = self._random_bytes(_KID_OCTETS).hex()
        secret = self._random_bytes(_KEY_OCTETS)
        wrapped = await wrapping_key.wrap(secret, kid.encode())
        now = self._clock.now()
        row = EabKeyRow(
            kid=kid,
            wrapped=wrapped,
            label=label,
            policy=policy,
            narrowing=narrowing.text(),
            max_uses=max_uses,
            uses=0,
            created=int(now),
            expires=None if lifetime is None else int(now) + lifetime,
            revoked=None,
            attributes=attributes.text(),
        )

        def unit(transaction: Transaction) -> None:
            add_eab_key(transaction, row)
            self._record(
                transaction,
                Kind.EAB_CREATED,
                now,
                {
                    "expires": row.expires,
                    "kid": kid,
                    "label": label,
                    "max_uses": max_uses,
                    "narrowing": {
                        "dns": list(narrowing.dns),
                        "ip": list(narrowing.ip),
                        "uri": list(narrowing.uri),
                    },
                    "policy": policy,
                },
            )
            if attributes:
                self._record_attributes(transaction, now, kid, attributes)

        await self._store.write(unit)
        return NewEabKey(row, secret)

    async def revoke(self, kid: str) -> EabKeyRow:
        """End the use of the key ``kid``. Accounts that it bound stay.

        Raises:
            PolicyError: there is no such key, or it was revoked before.
        """
        now = self._clock.now()

        def unit(transaction: Transaction) -> EabKeyRow:
            row = find_eab_key(transaction, kid)
            if row is None:
                raise unknown_eab_key(kid)
            if not revoke_eab_key(transaction, kid, int(now)):
                raise PolicyError(f"The key {kid} is revoked already.")
            self._record(transaction, Kind.EAB_REVOKED, now, {"kid": kid, "label": row.label})
            return row

        return await self._store.write(unit)

    async def describe(self, kid: str, attributes: Attributes) -> EabKeyRow:
        """Say whose the workloads of the accounts are that the key ``kid`` bound, in place of what was said before.

        Raises:
            PolicyError: there is no such key.
        """
        now = self._clock.now()

        def unit(transaction: Transaction) -> EabKeyRow:
            row = find_eab_key(transaction, kid)
            if row is None:
                raise unknown_eab_key(kid)
            set_eab_attributes(transaction, kid, attributes.text())
            # Of any account: all workloads are looked at again.
            set_fact(transaction, RULES_FACT, "")
            self._record_attributes(transaction, now, kid, attributes)
            return row._replace(attributes=attributes.text())

        return await self._store.write(unit)

    def _record_attributes(self, transaction: Transaction, now: float, kid: str, attributes: Attributes) -> None:
        payload: Payload = {"attributes": attributes.document(), "kid": kid}
        self._record(transaction, Kind.EAB_DESCRIBED, now, payload)

    def _check(self, policy: str, narrowing: Narrowing, label: str) -> None:
        settings = self._policies.get(policy)
        if settings is None:
            raise ConfigurationError(
                f"There is no policy {policy!r}.", hint=f"The settings have {', '.join(sorted(self._policies))}."
            )
        NamePolicy(settings, name=policy).narrowed(
            allow_dns=narrowing.dns, allow_ip=narrowing.ip, allow_uri=narrowing.uri
        )
        if len(label) > _MAX_LABEL or not label.isprintable():
            raise ConfigurationError(
                "The label is too long or has control characters.", hint=f"Use up to {_MAX_LABEL} printable characters."
            )

    def _record(self, transaction: Transaction, kind: Kind, now: float, payload: Payload) -> None:
        entry = encode_entry(kind, time=now, actor=self._actor, correlation=self._correlation, payload=payload)
        append(transaction, entry)


def unknown_eab_key(kid: str) -> PolicyError:
    """What somebody is told who names a key that is not there."""
    return PolicyError(f"There is no key {kid[:64]!r}.", hint="`privyseal eab list` shows those that there are.")
