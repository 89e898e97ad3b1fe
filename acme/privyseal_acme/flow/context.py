"""What the flows work with, put together once by the composition root."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import orjson

from privyseal_acme.flow.fleet_notes import FleetNotes
from privyseal_acme.flow.limits import RateLimit
from privyseal_acme.protocol.urls import Urls
from privyseal_acme.store.accounts import AccountRow
from privyseal_ca.clock import Clock
from privyseal_ca.config import Settings
from privyseal_ca.hsm.signer import WrappingKey
from privyseal_ca.issuance.authority import Authority
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.policy.keys import KeyPolicy
from privyseal_ca.policy.names import NamePolicy
from privyseal_ca.store.engine import Store
from privyseal_ca.telemetry.metrics import Metrics
from privyseal_ca.telemetry.tracing import NO_TRACING, Tracing


@dataclass(frozen=True, slots=True)
class Limits:
    """The rate limits of the ACME server."""

    new_accounts: RateLimit
    account_changes: RateLimit
    new_orders: RateLimit
    failed_validations: RateLimit


@dataclass(frozen=True, slots=True)
class Context:
    """The service as the flows see it."""

    settings: Settings
    store: Store
    authority: Authority
    wrapping_key: WrappingKey
    profiles: Mapping[str, Profile]
    policies: Mapping[str, NamePolicy]
    key_policy: KeyPolicy
    limits: Limits
    urls: Urls
    clock: Clock
    random_bytes: Callable[[int], bytes]
    metrics: Metrics
    tracing: Tracing = NO_TRACING
    fleet: FleetNotes = field(default_factory=FleetNotes)

    def policy_of(self, account: AccountRow) -> NamePolicy | None:
        """The names that ``account`` may have; None when its policy was removed from the settings."""
        policy = self.policies.get(account.policy)
        if policy is None or account.narrowing is None:
            return policy
        narrowing = orjson.loads(account.narrowing)
        return policy.narrowed(
            allow_dns=narrowing.get("dns", ()), allow_ip=narrowing.get("ip", ()), allow_uri=narrowing.get("uri", ())
        )
