"""What a home holds, opened and checked: token, database, issuers, anchors, profiles, limits."""

import hmac
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from privyseal_acme.flow.context import Limits
from privyseal_acme.flow.limits import RateLimit
from privyseal_acme.store.nonces import create_nonce_table
from privyseal_ca.clock import Clock
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.errors import ConfigurationError, SignerMisconfiguredError
from privyseal_ca.hsm.pin import Pin, read_pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import WrappingKey
from privyseal_ca.hsm.softhsm import use_embedded
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.issuance.issuers import Issuer, IssuerSet, certified_key, make_issuer, served_chains
from privyseal_ca.issuance.pointers import Pointers
from privyseal_ca.issuance.profile import Profile
from privyseal_ca.issuance.profile import load_profiles as read_profiles
from privyseal_ca.revocation.anchors import published_certificates
from privyseal_ca.revocation.bases import take_base
from privyseal_ca.store.backends import backend_for
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains, find_secret
from privyseal_ca.web.status import Anchors

_log = structlog.get_logger("service")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_hsm(settings: Settings) -> Hsm:
    """The tokens of a home, their PINs read when they are needed."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")

    def pin(uri: KeyUri) -> Pin:
        return read_pin(
            uri,
            pin=settings.hsm.pin,
            pin_file=settings.hsm.pin_file,
            credentials=Path(credentials) if credentials else None,
            home=settings.home,
        )

    use_embedded(settings.home, os.environ)
    return Hsm(
        pins=pin,
        queue=settings.hsm.queue,
        timeout=settings.hsm.timeout,
        retry_after=settings.hsm.retry_after,
        replicas=settings.hsm.replicas,
    )


def open_store(settings: Settings) -> Store:
    """The database of a home."""
    backend = backend_for(settings.database_url, durable=True, timeout=settings.database.timeout)
    return Store(backend, queue=settings.database.queue, readers=settings.database.connections)


async def load_issuers(store: Store, hsm: Hsm, settings: Settings) -> IssuerSet:
    """Every active issuer with its key opened and its attributes read back (promise P1), and what retired ones need.

    An issuer whose token is away is there all the same: its key is opened and checked when the token comes. The key of one
    that is retired is not needed for the service to be ready.
    """
    rows = await store.read(lambda tx: [(row, chains(tx, row.id)) for row in all_issuers(tx)])
    *former, (first_shard, base_url) = await store.write(lambda tx: take_base(tx, settings.server.public_http))

    async def opened(row: IssuerRow, pems: Sequence[str]) -> Issuer:
        pointers = Pointers(
            base_url=base_url,
            issuer_id=row.id,
            shards=settings.status.crl_shards,
            deltas=settings.status.delta_crls,
            first_shard=first_shard,
            former=tuple(former),
        )
        key = await hsm.open_signing_key(row.key_uri, public_key=certified_key(pems), needed=row.state == "active")
        return make_issuer(row, pems, key, pointers=pointers)

    issuers = [await opened(row, pems) for row, pems in rows if row.state == "active"]
    if not issuers:
        raise ConfigurationError(
            "No issuer is active.",
            hint="Have the request in the home signed and import the certificate with `privyseal issuer import`.",
        )
    finishing: list[Issuer] = []
    for row, pems in rows:
        if row.state == "retired" and pems:
            try:
                finishing.append(await opened(row, pems))
            except SignerMisconfiguredError as error:
                _log.warning("a retired issuer's key is gone: no more CRLs and OCSP", issuer=row.name, error=str(error))
    retired = {row.id: served_chains(pems) for row, pems in rows if row.state == "retired"}
    return IssuerSet(issuers, retired=retired, finishing=finishing)


async def load_anchors(store: Store, home: Path) -> Anchors:
    """What relying parties fetch."""
    found = await store.read(lambda tx: published_certificates(tx, home / ROOTS_FILE))
    return Anchors(found.roots_pem, found.issuers)


async def open_nonce_store(settings: Settings, main: Store, stack: AsyncExitStack) -> Store:
    """Used nonces need no disk: with SQLite they have a file of their own whose commits do not wait for it.

    Other databases keep them in their own table, where every replica sees them.
    """
    url = settings.database_url
    if not url.startswith("sqlite:///"):
        return main
    backend = backend_for(f"{url}-nonces", durable=False, timeout=settings.database.timeout)
    store = Store(backend, queue=settings.database.queue, group_commit=False)
    await store.open()
    stack.push_async_callback(store.close)
    await store.write(create_nonce_table)
    return store


async def nonce_key(store: Store, wrapping_key: WrappingKey) -> bytes:
    """The key of nonces: the service's own, bound to this boot of the machine."""
    wrapped = await store.read(lambda tx: find_secret(tx, "nonce"))
    if wrapped is None:
        raise ConfigurationError("The database has no nonce secret.", hint="The home was not made by `privyseal init`.")
    secret = await wrapping_key.unwrap(wrapped, b"nonce")
    return hmac.digest(secret, _boot_id(), "sha256")


def _boot_id() -> bytes:
    """What tells this boot of the machine from others; nothing where the kernel does not say."""
    return _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""


def rate_limits(settings: Settings, clock: Clock) -> Limits:
    """The rate limits that the settings say."""
    limits = settings.limits
    return Limits(
        new_accounts=RateLimit(events=limits.new_accounts, period=limits.new_accounts_period, clock=clock),
        account_changes=RateLimit(events=limits.account_changes, period=limits.account_changes_period, clock=clock),
        new_orders=RateLimit(events=limits.new_orders, period=limits.new_orders_period, clock=clock),
        failed_validations=RateLimit(
            events=limits.failed_validations, period=limits.failed_validations_period, clock=clock
        ),
    )


def load_profiles(settings: Settings) -> Mapping[str, Profile]:
    """The profiles of a home, the default among them."""
    profiles = read_profiles(settings.home / settings.issuance.profiles_dir)
    if settings.issuance.default_profile not in profiles:
        raise ConfigurationError(
            f"issuance.default_profile names {settings.issuance.default_profile}, which is no profile.",
            hint=f"Known are {', '.join(sorted(profiles))}.",
        )
    return profiles
