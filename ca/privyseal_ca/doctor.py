"""Looking at a home: what is in order, what is not, and what to do about it. Nothing is changed."""

import http.client
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import pairwise
from pathlib import Path

from cryptography import x509

from privyseal_ca.ceremony.certificates import fingerprint, subject_key_identifier
from privyseal_ca.ceremony.files import is_private
from privyseal_ca.ceremony.initialise import ROOT_PIN, ceremony_state, make_hsm, make_store, pin_reader
from privyseal_ca.ceremony.keys import WRAPPING_KEY_FACT, attested_spki_sha256
from privyseal_ca.ceremony.ledger_key import KEY_FACT as LEDGER_KEY_FACT
from privyseal_ca.ceremony.roots import roots
from privyseal_ca.ceremony.transcript import FINISHED
from privyseal_ca.clock import Clock, rfc3339
from privyseal_ca.config import ROOTS_FILE, Settings
from privyseal_ca.errors import PrivySealError, SignerError, StatusUnavailableError
from privyseal_ca.hsm.attributes import spki_sha256
from privyseal_ca.hsm.pin import CREDENTIAL
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.softhsm import use_embedded
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.issuance.profile import load_profiles
from privyseal_ca.issuance.record import serial_text
from privyseal_ca.ledger.audit_tables import end_of_ledger
from privyseal_ca.ledger.crl_reader import CrlReader, MalformedCrlError
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.notify.checking import check_route, open_templates
from privyseal_ca.recovery.facts import restored_fact, unsettled
from privyseal_ca.recovery.guard import require_continuation
from privyseal_ca.recovery.outside import log_identity, look_outside
from privyseal_ca.revocation.published import FULL
from privyseal_ca.sections import parse_listener
from privyseal_ca.store.backends import Backend, backend_for
from privyseal_ca.store.crls import CrlRow, all_crls, find_part
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains, find_fact
from privyseal_ca.store.migrate import schema_is_current
from privyseal_ca.store.ocsp import ResponderRow, all_responders
from privyseal_ca.store.statement import Transaction

_SOON = 90 * 86400
_ROOT_CRL_SOON = 60 * 86400
_CLOCK_TOLERANCE = 60
_HTTP_TIMEOUT = 2.0
_MAX_ANSWER = 1 << 20


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    message: str
    hint: str = ""


Findings = AsyncIterator[Finding]


class Doctor:
    """Looks at the home of ``settings``."""

    def __init__(self, settings: Settings, *, clock: Clock, environ: MutableMapping[str, str]) -> None:
        self._settings = settings
        self._home = settings.home
        self._clock = clock
        self._environ = environ

    async def examine(self) -> Findings:
        """Every finding, one after the other. An error ends only the examination that it happened in."""
        local: list[tuple[str, Callable[[], Awaitable[Finding]]]] = [
            ("home", self._check_home),
            ("profiles", self._check_profiles),
            ("notifications", self._check_notifications),
            ("schema", self._check_schema),
        ]
        usable = True
        for what, check in local:
            finding = await _guarded(what, check)
            usable = usable and (what != "schema" or finding.level is not Level.FAIL)
            yield finding
        if usable:
            async for finding in self._examine_store():
                yield finding
        for what, listener in (("https", self._settings.server.https), ("http", self._settings.server.http)):
            yield self._check_listener(what, listener)

    async def _examine_store(self) -> Findings:
        store = make_store(self._backend(), self._settings)
        try:
            await store.open()
            issuers = await store.read(all_issuers)
            yield await _guarded("ledger", lambda: self._check_ledger(store))
            yield await _guarded("outside", lambda: self._check_outside(store))
            for issuer in issuers:
                pems = await store.read(partial(chains, issuer_id=issuer.id))
                yield self._check_validity(issuer, pems)
            async for finding in self._examine_revocation(store, issuers):
                yield finding
            yield await _guarded("pin", self._check_pin)
            async for finding in self._examine_tokens(store, issuers):
                yield finding
        except PrivySealError as error:
            yield Finding(Level.FAIL, "database", error.message, error.hint)
        finally:
            await store.close()

    async def _examine_revocation(self, store: Store, issuers: list[IssuerRow]) -> Findings:
        if not schema_is_current(self._settings.database_url):
            return
        # A service that has never run has published nothing; one that runs should have.
        absent = Level.OK if service_state(self._settings) is None else Level.WARN
        crls = {row.issuer_id: row for row in await store.read(all_crls) if row.scope == FULL and row.number}
        responders = {row.issuer_id: row for row in await store.read(all_responders)}
        for root in await store.read(roots):
            yield self._check_root_crl(root, crls.get(subject_key_identifier(root).digest.hex()), issuers)
        for issuer in issuers:
            pems = await store.read(partial(chains, issuer_id=issuer.id))
            end = x509.load_pem_x509_certificates(pems[0].encode())[0].not_valid_after_utc.timestamp() if pems else 0
            if issuer.state in {"active", "retired"} and end > self._clock.now():
                yield self._check_crl(issuer, crls.get(issuer.id), absent)
                yield self._check_responder(issuer, responders.get(issuer.id), absent)
            if issuer.state == "active" and await _is_revoked_above(store, crls, pems):
                yield Finding(
                    Level.FAIL,
                    f"crl above {issuer.name}",
                    "The CRL of the CA above it lists its certificate: relying parties refuse what it signs.",
                    f"Make another with `privyseal issuer create`, and run: privyseal issuer retire {issuer.name}",
                )

    async def _examine_tokens(self, store: Store, issuers: list[IssuerRow]) -> Findings:
        wrapping = await store.read(lambda tx: find_fact(tx, WRAPPING_KEY_FACT))
        use_embedded(self._home, self._environ)
        hsm = make_hsm(pin_reader(self._settings, self._environ, root_token="", root_pin_file=None), self._settings)

        async def check_key(issuer: IssuerRow) -> Finding:
            what = f"key {issuer.name}"
            module = KeyUri.parse(issuer.key_uri).module_path
            if module is None or not module.exists():
                return Finding(Level.FAIL, what, f"The PKCS#11 module {module} is not there.", "Install it again.")
            key = await hsm.open_signing_key(issuer.key_uri)
            if spki_sha256(key.public_key) != attested_spki_sha256(issuer):
                return Finding(
                    Level.FAIL, what, f"The token holds another key under {issuer.key_uri}.", "Restore the token."
                )
            return Finding(Level.OK, what, "in its token, not extractable, and the one that was attested")

        async def check_wrapping_key() -> Finding:
            if wrapping is None:
                return Finding(Level.FAIL, "wrapping key", "The authority has none.", "Restore the database.")
            await hsm.open_wrapping_key(wrapping)
            return Finding(Level.OK, "wrapping key", "in its token, not extractable")

        try:
            for issuer in issuers:
                if issuer.state in {"active", "pending"}:
                    yield await _guarded(f"key {issuer.name}", partial(check_key, issuer))
            yield await _guarded("wrapping key", check_wrapping_key)
            if hsm.replicated and schema_is_current(self._settings.database_url):
                async for finding in _examine_replicas(hsm, await store.read(_further_keys)):
                    yield finding
        finally:
            await hsm.close()

    async def _check_home(self) -> Finding:
        if not self._home.is_dir():
            return Finding(Level.FAIL, "home", f"{self._home} is no folder.", "Run `privyseal init`.")
        if self._home.stat().st_uid != os.geteuid():
            return Finding(
                Level.WARN, "home", f"{self._home} belongs to another user.", "Run commands as the user of the service."
            )
        if not is_private(self._home):
            return Finding(Level.WARN, "home", f"{self._home} is open to others.", f"Run: chmod 700 {self._home}")
        if (self._home / "secrets" / ROOT_PIN).exists():
            return Finding(
                Level.OK,
                "home",
                f"{self._home}, private; the root's PIN is in it",
                "The service needs neither root-pin nor the root's token: keep both elsewhere if this machine is exposed.",
            )
        return Finding(Level.OK, "home", f"{self._home}, private")

    async def _check_profiles(self) -> Finding:
        profiles = load_profiles(self._home / self._settings.issuance.profiles_dir)
        default = self._settings.issuance.default_profile
        if default not in profiles:
            return Finding(
                Level.FAIL,
                "profiles",
                f"The default profile {default} does not exist.",
                f"Set issuance.default_profile to one of {', '.join(profiles)}.",
            )
        return Finding(Level.OK, "profiles", f"{', '.join(profiles)}; {default} is the default")

    async def _check_notifications(self) -> Finding:
        open_templates(self._settings)
        routes = self._settings.notifications.routes
        for route in routes:
            await check_route(self._settings, route)
        names = ", ".join(route.name for route in routes)
        return Finding(
            Level.OK, "notifications", f"routes: {names}" if names else "no routes: nobody is told of anything"
        )

    async def _check_schema(self) -> Finding:
        state = ceremony_state(self._settings, self._backend())
        if state != FINISHED:
            message = "The key ceremony was interrupted." if state else "There is no authority in the database."
            return Finding(
                Level.FAIL,
                "schema",
                message,
                "Run `privyseal init`, or set database.url to the database that the home was made with.",
            )
        if not schema_is_current(self._settings.database_url):
            return Finding(
                Level.WARN, "schema", "The database has an older schema.", "Starting the service upgrades it."
            )
        return Finding(Level.OK, "schema", "current")

    async def _check_pin(self) -> Finding:
        for path in (self._settings.hsm.pin_file, self._home / "secrets" / "pin"):
            if path is not None and path.exists():
                return (
                    Finding(Level.OK, "pin", f"{path}, private")
                    if is_private(path)
                    else Finding(Level.FAIL, "pin", f"{path} can be read by others.", f"Run: chmod 600 {path}")
                )
        if self._settings.hsm.pin:
            return Finding(Level.OK, "pin", "from the environment")
        credentials = self._environ.get("CREDENTIALS_DIRECTORY")
        if credentials and (Path(credentials) / CREDENTIAL).exists():
            return Finding(Level.OK, "pin", f"from the systemd credential {CREDENTIAL}")
        return Finding(
            Level.FAIL,
            "pin",
            "There is no PIN for the token.",
            f"Put it into {self._home / 'secrets' / 'pin'} with mode 0600, or name its file in hsm.pin_file.",
        )

    async def _check_ledger(self, store: Store) -> Finding:
        found = await store.read(end_of_ledger)
        if found is None or found[0] != found[1]:
            return Finding(Level.FAIL, "ledger", "Head and entries disagree.", "Run `privyseal ledger verify`.")
        last = next(iter(await store.read(lambda tx: list(entries(tx, first=found[0] - 1, count=1)))))
        written = str(decode_entry(last.entry)["time"])
        # RFC 3339 text in UTC is ordered as the times are. Issued entries carry notBefore, which lies before.
        if written > rfc3339(self._clock.now() + _CLOCK_TOLERANCE):
            return Finding(
                Level.FAIL,
                "clock",
                f"This machine's clock says {rfc3339(self._clock.now())}; the ledger was last written at {written}.",
                "Set the clock.",
            )
        return Finding(Level.OK, "ledger", f"{found[0]} entries, the last at {written}; {len(found[2])} in flight")

    async def _check_outside(self, store: Store) -> Finding:
        fact = await store.read(restored_fact)
        if fact is not None:
            raise unsettled(fact)
        found = await look_outside(self._settings, await store.read(log_identity))
        await require_continuation(store, found)
        silent = "; ".join(f"{place} {reason}" for place, reason in found.silent)
        if silent:
            return Finding(
                Level.WARN,
                "outside",
                f"no checkpoint: {silent}",
                "Look whether ledger.outside and witnesses are right.",
            )
        newest = max((seen.checkpoint.size for seen in found.seen), default=None)
        if newest is None:
            return Finding(
                Level.OK,
                "outside",
                "nobody keeps checkpoints of this ledger",
                "With ledger.outside or witnesses, an older database that is put back is noticed.",
            )
        return Finding(
            Level.OK, "outside", f"the ledger continues the newest checkpoint that is kept, of {newest} entries"
        )

    def _check_validity(self, issuer: IssuerRow, pems: list[str]) -> Finding:
        what = f"issuer {issuer.name}"
        if issuer.state == "pending":
            return Finding(Level.WARN, what, "waits for its certificate", "Import it with `privyseal issuer import`.")
        if not pems:
            return Finding(Level.FAIL, what, "has no certificate", "Import it with `privyseal issuer import`.")
        certificate = x509.load_pem_x509_certificates(pems[0].encode())[0]
        now = self._clock.now()
        left = certificate.not_valid_after_utc.timestamp() - now
        if certificate.not_valid_before_utc.timestamp() > now:
            return Finding(Level.FAIL, what, "is not valid yet", "Set this machine's clock.")
        if issuer.state != "retired" and left <= 0:
            return Finding(Level.FAIL, what, "has expired", "Make another with `privyseal issuer create`.")
        days = f"{issuer.state}, {int(left // 86400)} days left"
        if issuer.state != "retired" and left < _SOON:
            return Finding(Level.WARN, what, days, "Make another with `privyseal issuer create`.")
        return Finding(Level.OK, what, days)

    def _check_root_crl(self, root: x509.Certificate, crl: CrlRow | None, issuers: list[IssuerRow]) -> Finding:
        identifier = subject_key_identifier(root).digest.hex()
        name = next((issuer.name for issuer in issuers if issuer.id == identifier), None)
        what = f"crl {name or identifier}"
        hint = "Run `privyseal crl root`." if name else "Have the root sign one, then: privyseal crl import FILE"
        if crl is None:
            return Finding(Level.WARN, what, "There is no CRL of the root: servers that check every CA need one.", hint)
        left = crl.next_update - self._clock.now()
        if left <= 0:
            return Finding(Level.FAIL, what, f"The root's CRL ended at {rfc3339(crl.next_update)}.", hint)
        message = f"number {crl.number}, {crl.entries} listed, {int(left // 86400)} days left"
        if left < _ROOT_CRL_SOON:
            return Finding(Level.WARN, what, message, hint)
        return Finding(Level.OK, what, message)

    def _check_crl(self, issuer: IssuerRow, crl: CrlRow | None, absent: Level) -> Finding:
        what, now = f"crl {issuer.name}", self._clock.now()
        if crl is None:
            return Finding(absent, what, "none yet", "The service publishes it, soon after it has started.")
        if crl.next_update <= now:
            return Finding(
                Level.FAIL,
                what,
                f"The CRL ended at {rfc3339(crl.next_update)}: relying parties refuse what it is about.",
                "Start the service. If it runs, its log says why nothing is published.",
            )
        message = f"number {crl.number}, {crl.entries} listed, until {rfc3339(crl.next_update)}"
        if now - crl.this_update > 2 * self._settings.status.crl_refresh:
            return Finding(Level.WARN, what, f"{message}; it is not renewed", "Start the service, or read its log.")
        return Finding(Level.OK, what, message)

    def _check_responder(self, issuer: IssuerRow, responder: ResponderRow | None, absent: Level) -> Finding:
        what = f"ocsp {issuer.name}"
        if responder is None or responder.der is None:
            return Finding(absent, what, "none yet", "The service makes it when it starts.")
        left = responder.not_after - self._clock.now()
        if left <= 0:
            return Finding(
                Level.FAIL,
                what,
                f"The responder's certificate ended at {rfc3339(responder.not_after)}.",
                "Start the service. If it runs, its log says why the certificate is not replaced.",
            )
        message = f"responder until {rfc3339(responder.not_after)}"
        # It is replaced at half of its lifetime.
        if left < self._settings.status.responder_lifetime / 4:
            return Finding(Level.WARN, what, f"{message}; it is not renewed", "Start the service, or read its log.")
        return Finding(Level.OK, what, message)

    def _check_listener(self, what: str, listener: str) -> Finding:
        host, port = parse_listener(listener)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            state = service_state(self._settings)
            if state is not None:
                return Finding(Level.OK, what, f"{listener}, in use by the running service, which is {state}")
            return Finding(
                Level.FAIL,
                what,
                f"{listener} cannot be bound: {error.strerror}.",
                f"Free the port, or set server.{what} to another.",
            )
        return Finding(Level.OK, what, f"{listener}, free")

    def _backend(self) -> Backend:
        return backend_for(self._settings.database_url, durable=True, timeout=self._settings.database.timeout)


def _further_keys(transaction: Transaction) -> list[str]:
    """The URIs of the keys of OCSP responders and of the ledger."""
    ledger = find_fact(transaction, LEDGER_KEY_FACT)
    return [*(row.key_uri for row in all_responders(transaction)), *([ledger] if ledger else [])]


async def _examine_replicas(hsm: Hsm, uris: Sequence[str]) -> Findings:
    """Each token with the keys that it has. Those of the issuers and the wrapping key are open; ``uris`` are the others."""
    for uri in uris:
        # What cannot be opened anywhere is named by the examination of the tokens that follows.
        with suppress(SignerError):
            await hsm.open_signing_key(uri)
    with suppress(SignerError):
        await hsm.probe()
    for token in hsm.tokens():
        message = f"has {', '.join(sorted(token.keys)) or 'none of the keys'}"
        hint = "See the section on two tokens in docs/operations.md; the other tokens serve meanwhile."
        if token.reason:
            yield Finding(Level.WARN, f"token {token.uri}", f"{message}. {token.reason}", hint)
        else:
            yield Finding(Level.OK, f"token {token.uri}", message)


async def _is_revoked_above(store: Store, crls: Mapping[str, CrlRow], pems: Sequence[str]) -> bool:
    """Whether a CA in the chains ``pems`` is on the CRL of the one above it."""
    for pem in pems:
        chain = x509.load_pem_x509_certificates(pem.encode())
        for certificate, above in pairwise(chain):
            crl = crls.get(subject_key_identifier(above).digest.hex())
            if crl is not None and await _lists(store, crl, serial_text(certificate.serial_number)):
                return True
    return False


async def _lists(store: Store, crl: CrlRow, serial: str) -> bool:
    """Whether ``crl``, which is read piece by piece, has ``serial``."""
    reader, position = CrlReader(), 0
    piece = partial(find_part, issuer_id=crl.issuer_id, scope=crl.scope, number=crl.number, delta=False)
    while found := await store.read(partial(piece, position=position)):
        try:
            if any(entry.serial == serial for entry in reader.feed(found)):
                return True
        except MalformedCrlError as error:
            raise StatusUnavailableError(
                f"The stored CRL {crl.number} of {crl.issuer_id} is malformed.", hint="Run `privyseal ledger verify`."
            ) from error
        position += 1
    return False


def service_state(settings: Settings) -> str | None:
    """What this home's service says on its plain listener: ``ready``, ``not ready``, or None when it does not answer."""
    host, port = parse_listener(settings.server.http)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    try:
        # Another authority may answer there: ours is the one that hands out our roots.
        status, roots = _get(host, port, f"/{ROOTS_FILE}")
        if status != 200 or not _fingerprints(roots) & _fingerprints((settings.home / ROOTS_FILE).read_bytes()):
            return None
        return "ready" if _get(host, port, "/readyz")[0] == 200 else "not ready"
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(host, port, timeout=_HTTP_TIMEOUT)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(_MAX_ANSWER)


def _fingerprints(pem: bytes) -> set[str]:
    return {fingerprint(certificate) for certificate in x509.load_pem_x509_certificates(pem)}


async def _guarded(what: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await check()
    except PrivySealError as error:
        return Finding(Level.FAIL, what, error.message, error.hint)
