"""The key ceremony: what it makes, and that it may be stopped anywhere and run again."""

import asyncio
import itertools
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fakes.softhsm import passing_tokens
from privyseal_ca.ceremony.ceremony import Outcome
from privyseal_ca.ceremony.imports import Imported, import_certificate, read_certificates, retire
from privyseal_ca.ceremony.initialise import Surroundings, initialise, make_hsm, make_store, pin_reader
from privyseal_ca.ceremony.plan import NameSpace, Plan
from privyseal_ca.ceremony.settings_file import FirstSettings
from privyseal_ca.clock import SystemClock
from privyseal_ca.config import Settings, load_settings
from privyseal_ca.errors import ConfigurationError, SignerMisconfiguredError
from privyseal_ca.hsm.attributes import PROTECTION
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.issuance.record import issued_entry
from privyseal_ca.issuance.template import key_identifier
from privyseal_ca.ledger.audit import Auditor, AuditReport
from privyseal_ca.ledger.entries import Kind, decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.store.backends import Backend, backend_for
from privyseal_ca.store.certificates import open_intents
from privyseal_ca.store.engine import Store
from privyseal_ca.store.issuers import IssuerRow, all_issuers, chains, find_fact, find_secret, set_fact
from privyseal_ca.store.statement import Transaction

_numbers = itertools.count(1)


class InterruptedError_(Exception):  # noqa: N801, N818 (the name is taken)
    """The test stopped the ceremony here."""


class Steps:
    """Counts what the ceremony does to the world, and stops it before the step ``stop_at``."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.done = 0
        self._stop_at = stop_at

    def next(self) -> None:
        if self.done == self._stop_at:
            raise InterruptedError_
        self.done += 1


class SteppedStore(Store):
    """The real store, interrupted before a write."""

    steps: Steps

    async def write(self, unit: Any) -> Any:
        self.steps.next()
        return await super().write(unit)


class SteppedKey:
    """A real key, interrupted before it signs, or after it has signed and before anybody knows."""

    def __init__(self, key: Any, steps: Steps) -> None:
        self._key = key
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._key, name)

    async def run(self, work: Any) -> Any:
        self._steps.next()
        result = await self._key.run(work)
        self._steps.next()
        return result


class SteppedHsm(Hsm):
    """The real tokens, interrupted before something is made, or after it was made and before anybody knows."""

    steps: Steps

    async def initialise_token(self, *arguments: Any, **options: Any) -> None:
        self.steps.next()
        await super().initialise_token(*arguments, **options)
        self.steps.next()

    async def generate_signing_key(self, *arguments: Any, **options: Any) -> Any:
        self.steps.next()
        made = await super().generate_signing_key(*arguments, **options)
        self.steps.next()
        return made

    async def generate_wrapping_key(self, *arguments: Any, **options: Any) -> Any:
        self.steps.next()
        made = await super().generate_wrapping_key(*arguments, **options)
        self.steps.next()
        return made

    async def open_signing_key(self, uri: str) -> Any:
        return SteppedKey(await super().open_signing_key(uri), self.steps)


@dataclass
class Home:
    """A home of a test's own, with tokens of its own in the run's directory of tokens."""

    path: Path
    plan: Plan
    progress: list[str] = field(default_factory=list)
    first: FirstSettings = field(default_factory=FirstSettings)
    root_pin_file: Path | None = None
    embedded: bool = True

    @property
    def settings(self) -> Settings:
        return load_settings(self.path)

    def surroundings(self) -> Surroundings:
        return Surroundings(
            # The process's own variable names the run's directory of tokens; the ceremony need not know.
            environ={},
            clock=SystemClock(),
            random_bytes=os.urandom,
            actor="operator:tests",
            correlation="tests",
            progress=self.progress.append,
        )

    async def init(self, steps: Steps | None = None) -> Outcome:
        steps = steps or Steps()

        def stepped_store(backend: Backend, settings: Settings) -> Store:
            store = SteppedStore(backend, queue=settings.database.queue)
            store.steps = steps
            return store

        def stepped_hsm(pins: Callable[[KeyUri], Pin], settings: Settings) -> Hsm:
            hsm = SteppedHsm(pins=pins, queue=16, timeout=settings.hsm.timeout, retry_after=settings.hsm.retry_after)
            hsm.steps = steps
            return hsm

        return await initialise(
            self.path,
            self.plan,
            self.first,
            embedded=self.embedded,
            root_pin_file=self.root_pin_file,
            surroundings=self.surroundings(),
            make_hsm=stepped_hsm,
            make_store=stepped_store,
        )

    async def with_store(self, work: Callable[[Store], Any]) -> Any:
        settings = self.settings
        store = make_store(backend_for(settings.database_url, durable=True, timeout=5), settings)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    async def read(self, unit: Callable[[Transaction], Any]) -> Any:
        return await self.with_store(lambda store: store.read(unit))

    async def audit(self) -> AuditReport:
        report = await self.with_store(lambda store: Auditor(store, issued_entry=issued_entry).run())
        assert isinstance(report, AuditReport)
        return report

    async def transcript(self) -> list[dict[str, Any]]:
        stored = await self.read(lambda tx: list(entries(tx, count=1000)))
        return [decode_entry(each.entry) for each in stored]

    async def kinds(self) -> list[str]:
        return [members["kind"] for members in await self.transcript()]

    async def issuers(self) -> dict[str, IssuerRow]:
        return {row.name: row for row in await self.read(all_issuers)}

    async def chain(self, name: str, position: int = 0) -> list[x509.Certificate]:
        row = (await self.issuers())[name]
        pems = await self.read(lambda tx: chains(tx, row.id))
        return x509.load_pem_x509_certificates(pems[position].encode())

    async def take(self, given: list[x509.Certificate], *, alternate: bool = False) -> Imported:
        imported = await self.with_store(
            lambda store: import_certificate(
                self.surroundings().transcript(store), self.path, given, alternate=alternate
            )
        )
        assert isinstance(imported, Imported)
        return imported


@pytest.fixture
def home(tmp_path: Path, softhsm_module: Path) -> Home:
    number = f"{os.getpid()}-{next(_numbers)}"
    plan = Plan(
        organization="Example",
        root_common_name="Example Root",
        issuing_common_name="Example Issuing",
        root_key="ec-p256",
        issuing_key="ec-p256",
        offline_root=False,
        names=NameSpace(),
        module=softhsm_module,
        root_token=f"c-root-{number}",
        issuing_token=f"c-issuing-{number}",
    )
    return Home(tmp_path / "home", plan)


class OfflineRoot:
    """A root in another place: here, a software key."""

    def __init__(self, name: str = "Offline Root") -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.name, self.key.public_key(), path_length=None)

    def sign(
        self,
        subject: x509.Name,
        key: Any,
        *,
        path_length: int | None = 0,
        ca: bool = True,
        key_cert_sign: bool = True,
        days: int = 365,
        identifier: bytes | None = None,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        own = x509.SubjectKeyIdentifier(
            identifier or key_identifier(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number() >> 40)
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, key_cert_sign, key_cert_sign, False, False),
                critical=True,
            )
            .add_extension(own, critical=False)
            .sign(self.key, hashes.SHA384())
        )

    def answer(self, request: Path, **options: Any) -> x509.Certificate:
        csr = x509.load_pem_x509_csr(request.read_bytes())
        assert csr.is_signature_valid
        return self.sign(csr.subject, csr.public_key(), **options)


TRANSCRIPT = [
    "ceremony.started",
    "token.initialised",
    "token.initialised",
    "key.generated",
    "certificate.intent",
    "issuer.certified",
    "key.generated",
    "certificate.intent",
    "issuer.certified",
    "issuer.activated",
    "crl.published",
    "key.generated",
    "ceremony.finished",
]


async def test_it_makes_a_root_and_an_intermediate(home: Home) -> None:
    outcome = await home.init()
    assert await home.kinds() == TRANSCRIPT
    issuing, root = await home.chain("issuing-1")
    assert outcome.root == root
    assert (home.path / "roots.pem").read_bytes() == root.public_bytes(Encoding.PEM)
    issuing.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)

    for certificate, days, path_length in ((root, 3650, None), (issuing, 1095, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(True, path_length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value == x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        lifetime = certificate.not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=days) - timedelta(minutes=1) < lifetime <= timedelta(days=days)
        assert 0 < certificate.serial_number < 2**127
    own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert issuing.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own
    with pytest.raises(x509.ExtensionNotFound):
        issuing.extensions.get_extension_for_class(x509.NameConstraints)

    issuers = await home.issuers()
    assert {name: row.state for name, row in issuers.items()} == {"root": "root", "issuing-1": "active"}
    assert issuers["root"].id == own.hex()
    assert KeyUri.parse(issuers["root"].key_uri).token != KeyUri.parse(issuers["issuing-1"].key_uri).token


#: authorityInfoAccess and cRLDistributionPoints.
POINTERS = {"1.3.6.1.5.5.7.1.1", "2.5.29.31"}


def pointers(certificate: x509.Certificate) -> list[str]:
    """Where a certificate says that its issuer and that one's CRL are."""
    found = [each for each in certificate.extensions if each.oid.dotted_string in POINTERS]
    assert not any(extension.critical for extension in found)
    return [url for extension in found for url in re.findall(r"http://[^']+", repr(extension.value))]


async def test_an_intermediate_names_the_roots_crl_at_the_public_url(home: Home) -> None:
    home.first = FirstSettings(http_url="http://ca.corp.example/pki/")
    await home.init()
    issuing, root = await home.chain("issuing-1")
    root_id = (await home.issuers())["root"].id
    assert pointers(issuing) == [
        f"http://ca.corp.example/pki/issuers/{root_id}.cer",
        f"http://ca.corp.example/pki/crl/{root_id}.crl",
    ]
    assert pointers(root) == []
    began = (await home.transcript())[0]["payload"]
    assert began["http_url"] == "http://ca.corp.example/pki"
    assert (await home.audit()).ca_certificates == 2


async def test_without_a_public_url_no_listener_stands_in_the_intermediate(home: Home) -> None:
    home.first = FirstSettings(http="127.0.0.1:8081")
    await home.init()
    issuing, root = await home.chain("issuing-1")
    assert pointers(issuing) == pointers(root) == []
    assert (await home.transcript())[0]["payload"]["http_url"] is None


@pytest.mark.parametrize("where", ["file", "environment"])
async def test_an_owners_own_setting_of_the_public_url_counts(
    home: Home, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "file":
        home.path.mkdir()
        (home.path / "privyseal.toml").write_text('[server]\nhttp_url = "http://ca.example"\n')
    else:
        monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", "http://ca.example")
    await home.init()
    assert all(url.startswith("http://ca.example/") for url in pointers((await home.chain("issuing-1"))[0]))


async def test_an_interrupted_ceremony_is_not_continued_with_another_url(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", "http://first.example")
    with pytest.raises(InterruptedError_):
        await home.init(Steps(stop_at=6))
    before = await home.kinds()
    for other in ("http://second.example", ""):
        monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", other)
        with pytest.raises(ConfigurationError, match="http_url differ"):
            await home.init()
    assert await home.kinds() == before
    monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", "http://first.example")
    await home.init()
    assert len(pointers((await home.chain("issuing-1"))[0])) == 2


async def test_a_url_that_no_certificate_can_hold_is_refused_before_anything_is_made(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", "http://b\u00fccher.example")
    with pytest.raises(ConfigurationError, match="ASCII"):
        await home.init()
    monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", "http://xn--bcher-kva.example")
    await home.init()
    assert await home.kinds() == TRANSCRIPT


async def test_what_the_tokens_say_is_recorded(home: Home) -> None:
    await home.init()
    generated = [entry["payload"] for entry in await home.transcript() if entry["kind"] == Kind.KEY_GENERATED]
    for payload in generated[:2]:
        assert {name: payload["attributes"][name] for name in PROTECTION} == dict(PROTECTION)
    for row in (await home.issuers()).values():
        assert json.loads(row.attestation)["attributes"]["NEVER_EXTRACTABLE"] is True


async def test_secrets_are_wrapped_by_the_token(home: Home) -> None:
    await home.init()
    uri, wrapped = await home.read(lambda tx: (find_fact(tx, "wrapping-key"), find_secret(tx, "nonce")))
    settings = home.settings
    hsm = make_hsm(pin_reader(settings, {}, root_token="", root_pin_file=None), settings)
    try:
        key = await hsm.open_wrapping_key(uri)
        assert len(await key.unwrap(wrapped, b"nonce")) == 32
    finally:
        await hsm.close()


async def test_the_home_is_private_and_no_pin_is_told(home: Home) -> None:
    await home.init()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((home.path / "secrets").stat().st_mode) == 0o700
    pins = {path.name: path.read_text().strip() for path in (home.path / "secrets").iterdir()}
    assert set(pins) == {"pin", "pin-so", "root-pin", "root-pin-so"}
    assert len(set(pins.values())) == 4
    for path in (home.path / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = "\n".join([*home.progress, json.dumps(await home.transcript()), (home.path / "privyseal.toml").read_text()])
    assert not any(pin in told for pin in pins.values())


async def test_the_pin_of_the_service_does_not_open_the_root(home: Home) -> None:
    await home.init()
    settings = home.settings
    hsm = make_hsm(pin_reader(settings, {}, root_token="", root_pin_file=None), settings)
    try:
        with pytest.raises(SignerMisconfiguredError):
            await hsm.open_signing_key((await home.issuers())["root"].key_uri)
    finally:
        await hsm.close()


async def test_name_constraints(home: Home) -> None:
    home.plan = replace(
        home.plan,
        names=NameSpace(
            permitted=("dns:corp.example", "ip:10.0.0.0/8", "uri:.corp.example", "email:corp.example"),
            excluded=("dns:secret.corp.example", "ip:10.9.0.0/16"),
        ),
    )
    await home.init()
    issuing, _ = await home.chain("issuing-1")
    extension = issuing.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical
    assert extension.value == x509.NameConstraints(
        [
            x509.DNSName("corp.example"),
            x509.IPAddress(ip_network("10.0.0.0/8")),
            x509.UniformResourceIdentifier(".corp.example"),
            x509.RFC822Name("corp.example"),
        ],
        [x509.DNSName("secret.corp.example"), x509.IPAddress(ip_network("10.9.0.0/16"))],
    )


@pytest.mark.parametrize(
    "entry", ["dns:*.corp.example", "dns:", "dns:10.0.0.1", "ip:10.0.0.1/8", "ip:x", "uri:https://a", "email:@", "x:y"]
)
def test_malformed_name_constraints_are_refused(home: Home, entry: str) -> None:
    with pytest.raises(ConfigurationError):
        replace(home.plan, names=NameSpace(permitted=(entry,)))


@pytest.mark.parametrize(
    "change",
    [
        {"root_common_name": "Example Issuing"},
        {"root_common_name": "x" * 65},
        {"organization": " "},
        {"issuing_common_name": "a\nb"},
        {"issuing_token": "same", "root_token": "same"},
    ],
)
def test_plans_that_make_no_sense_are_refused(home: Home, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        replace(home.plan, **change)


@pytest.mark.parametrize("algorithm", ["rsa-2048", "ec-p384", "ed25519"])
async def test_other_kinds_of_keys(home: Home, algorithm: Any) -> None:
    home.plan = replace(home.plan, root_key=algorithm, issuing_key=algorithm)
    await home.init()
    issuing, root = await home.chain("issuing-1")
    issuing.verify_directly_issued_by(root)
    assert (await home.issuers())["issuing-1"].algorithm == algorithm
    assert (await home.audit()).ca_certificates == 2


# Interruptions.


async def test_it_may_be_interrupted_at_every_step(home: Home) -> None:
    """One ceremony that is stopped before its first step, then before its second, and so on to the end."""
    stops = 0
    for step in itertools.count():
        try:
            await home.init(Steps(stop_at=step))
        except InterruptedError_:
            stops += 1
        else:
            break
    assert stops > 15
    kinds = Counter(await home.kinds())
    for kind in set(TRANSCRIPT) - {"certificate.intent"}:
        assert kinds[kind] == TRANSCRIPT.count(kind), kind
    assert kinds["certificate.intent"] == 2 + kinds["certificate.abandoned"]
    assert set(await home.issuers()) == {"root", "issuing-1"}
    assert "An earlier ceremony was interrupted; continuing it." in home.progress
    report = await home.audit()
    assert (report.ca_certificates, report.in_flight) == (2, 0)
    assert not await home.read(open_intents)


async def test_an_interruption_anywhere_is_healed_by_the_next_run(
    home: Home, tmp_path: Path, softhsm_home: Path
) -> None:
    count = Steps()
    await home.init(count)
    whole = sorted(await home.kinds())
    for step in range(count.done):
        number = f"{os.getpid()}-{next(_numbers)}"
        plan = replace(home.plan, root_token=f"r-{number}", issuing_token=f"i-{number}")
        with passing_tokens(softhsm_home):
            await _interrupted_and_healed(Home(tmp_path / f"home-{step}", plan), step, whole)


async def _interrupted_and_healed(home: Home, step: int, whole: list[str]) -> None:
    with pytest.raises(InterruptedError_):
        await home.init(Steps(stop_at=step))
    outcome = await home.init()
    assert outcome.root is not None
    assert x509.load_pem_x509_certificate((home.path / "roots.pem").read_bytes()) == outcome.root
    kinds = await home.kinds()
    abandoned = kinds.count("certificate.abandoned")
    assert sorted(kinds) == sorted(whole + ["certificate.abandoned", "certificate.intent"] * abandoned)
    report = await home.audit()
    assert (report.ca_certificates, report.abandoned, report.in_flight) == (2, abandoned, 0)


async def test_a_signature_that_was_made_and_lost_is_abandoned(home: Home) -> None:
    for step in itertools.count():
        with pytest.raises(InterruptedError_):
            await home.init(Steps(stop_at=step))
        if "certificate.intent" in await home.kinds():
            break
    lost = next(entry for entry in await home.transcript() if entry["kind"] == Kind.INTENT)
    await home.init()
    closed = next(entry for entry in await home.transcript() if entry["kind"] == Kind.ABANDONED)
    assert closed["payload"]["serial"] == lost["payload"]["serial"]
    assert (await home.chain("root"))[0].serial_number != int(lost["payload"]["serial"], 16)


async def test_two_at_once_make_one_authority(home: Home) -> None:
    results = await asyncio.gather(home.init(), home.init(), return_exceptions=True)
    assert sum(isinstance(result, Outcome) for result in results) == 1
    assert sorted(await home.kinds()) == sorted(TRANSCRIPT)


# Refusals.


#: What SQLite makes and removes as it opens and closes a database.
_PASSING = {".db-shm", ".db-wal"}


async def test_a_finished_home_is_not_touched(home: Home) -> None:
    await home.init()
    before = {path: path.stat().st_mtime_ns for path in home.path.rglob("*") if path.suffix not in _PASSING}
    with pytest.raises(ConfigurationError, match="initialised already"):
        await home.init()
    after = {path: path.stat().st_mtime_ns for path in home.path.rglob("*") if path.suffix not in _PASSING}
    assert after == before
    assert await home.kinds() == TRANSCRIPT


async def test_a_folder_with_other_files_is_refused(home: Home) -> None:
    home.path.mkdir()
    (home.path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"thesis\.txt"):
        await home.init()
    assert [path.name for path in home.path.iterdir()] == ["thesis.txt"]


async def test_tokens_of_another_ceremony_are_refused(home: Home) -> None:
    (home.path / "tokens" / "another").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="no ceremony in this database"):
        await home.init()


async def test_a_file_in_place_of_the_home_is_refused(home: Home) -> None:
    home.path.write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        await home.init()


async def test_an_interrupted_ceremony_is_not_continued_with_another_plan(home: Home) -> None:
    with pytest.raises(InterruptedError_):
        await home.init(Steps(stop_at=4))
    begun = home.plan
    home.plan = replace(begun, organization="Another", issuing_key="ec-p384")
    with pytest.raises(ConfigurationError, match="issuing_key, organization differ"):
        await home.init()
    home.plan = begun
    await home.init()


async def test_softhsm_that_is_pointed_elsewhere_is_refused(home: Home) -> None:
    surroundings = replace(home.surroundings(), environ={"SOFTHSM2_CONF": "/elsewhere/softhsm2.conf"})
    with pytest.raises(ConfigurationError, match="SOFTHSM2_CONF"):
        await initialise(home.path, home.plan, home.first, embedded=True, root_pin_file=None, surroundings=surroundings)


async def test_a_key_that_the_token_lost_is_not_made_again(home: Home) -> None:
    count = Steps()
    whole = Home(home.path.with_name("whole"), replace(home.plan, root_token="w-root", issuing_token="w-issuing"))
    await whole.init(count)
    for step in itertools.count():
        with pytest.raises(InterruptedError_):
            await home.init(Steps(stop_at=step))
        if "key.generated" in await home.kinds():
            break
    await home.with_store(lambda store: store.write(_forget_key_id))
    with pytest.raises(ConfigurationError, match="no longer in its token"):
        await home.init()


def _forget_key_id(transaction: Transaction) -> None:
    # What a lost token looks like from the database.
    set_fact(transaction, "key-id:root", "00" * 8)


async def test_settings_that_the_owner_wrote_are_kept(home: Home) -> None:
    home.path.mkdir()
    (home.path / "privyseal.toml").write_text('[server]\nhttps = "127.0.0.1:9443"\n')
    await home.init()
    assert home.settings.server.https == "127.0.0.1:9443"


# Existing tokens.


async def test_tokens_that_exist_are_used_with_their_own_pins(home: Home, tmp_path: Path) -> None:
    pins = {}
    hsm = make_hsm(lambda _: Pin("unused"), home_settings := load_settings(tmp_path))
    for label in (home.plan.root_token, home.plan.issuing_token):
        pins[label] = tmp_path / f"{label}.pin"
        pins[label].touch(mode=0o600)
        pins[label].write_text(f"pin of {label}\n")
        await hsm.initialise_token(
            home.plan.module, label, so_pin=Pin("so-pin-of-tests"), user_pin=Pin(f"pin of {label}")
        )
    await hsm.close()
    assert home_settings.hsm.pin_file is None
    home.embedded = False
    home.root_pin_file = pins[home.plan.root_token]
    home.first = FirstSettings(pin_file=pins[home.plan.issuing_token])
    await home.init()
    assert not (home.path / "secrets").exists()
    assert not (home.path / "softhsm2.conf").exists()
    assert home.settings.hsm.pin_file == pins[home.plan.issuing_token]
    assert "token.initialised" not in await home.kinds()
    assert (await home.audit()).ca_certificates == 2


async def test_a_token_that_does_not_exist_is_an_error(home: Home, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("1234")
    home.embedded = False
    home.root_pin_file = pin
    home.first = FirstSettings(pin_file=pin)
    with pytest.raises(Exception, match="token") as caught:
        await home.init()
    assert "1234" not in str(caught.value)


# A root elsewhere.


@pytest.fixture
def offline(home: Home) -> Home:
    home.plan = replace(home.plan, offline_root=True, names=NameSpace(permitted=("dns:corp.example",)))
    return home


async def test_an_offline_root_signs_the_request(offline: Home) -> None:
    offline.first = FirstSettings(http_url="http://ca.corp.example")
    outcome = await offline.init()
    assert outcome.root is None
    assert outcome.request == offline.path / "issuing-1.csr"
    assert not (offline.path / "roots.pem").exists()
    assert not (offline.path / "secrets" / "root-pin").exists()
    csr = x509.load_pem_x509_csr(outcome.request.read_bytes())
    assert csr.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert csr.extensions.get_extension_for_class(x509.NameConstraints).critical
    assert not POINTERS & {extension.oid.dotted_string for extension in csr.extensions}
    assert (await offline.issuers())["issuing-1"].state == "pending"

    root = OfflineRoot()
    imported = await offline.take([root.answer(outcome.request), root.certificate])
    assert imported.activated
    assert (await offline.issuers())["issuing-1"].state == "active"
    assert (offline.path / "roots.pem").read_bytes() == root.certificate.public_bytes(Encoding.PEM)
    assert (await offline.kinds())[-2:] == ["issuer.certified", "issuer.activated"]
    assert (await offline.audit()).ca_certificates == 1
    with pytest.raises(ConfigurationError, match="initialised already"):
        await offline.init()


async def test_an_offline_ceremony_goes_on_with_another_url(offline: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL stands in nothing that it makes."""
    with pytest.raises(InterruptedError_):
        await offline.init(Steps(stop_at=6))
    monkeypatch.setenv("PRIVYSEAL_SERVER__HTTP_URL", "http://ca.corp.example")
    await offline.init()


async def test_an_offline_ceremony_may_be_interrupted_too(offline: Home) -> None:
    for step in itertools.count():
        try:
            await offline.init(Steps(stop_at=step))
        except InterruptedError_:
            continue
        break
    assert (await offline.kinds()).count("issuer.csr") == 1
    assert (await offline.audit()).ca_certificates == 0


async def test_the_root_may_choose_another_key_identifier(offline: Home) -> None:
    outcome = await offline.init()
    assert outcome.request is not None
    root = OfflineRoot()
    imported = await offline.take([root.answer(outcome.request, identifier=b"\x07" * 20), root.certificate])
    assert imported.issuer.id == "07" * 20
    assert set(await offline.issuers()) == {"issuing-1"}
    await offline.audit()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ca": False, "key_cert_sign": False}, "CA:TRUE"),
        ({"key_cert_sign": False}, "keyCertSign"),
        ({"days": -1}, "not valid now"),
    ],
)
async def test_certificates_that_do_not_fit_are_refused(offline: Home, options: dict[str, Any], match: str) -> None:
    outcome = await offline.init()
    assert outcome.request is not None
    root = OfflineRoot()
    with pytest.raises(ConfigurationError, match=match):
        await offline.take([root.answer(outcome.request, **options), root.certificate])
    assert (await offline.issuers())["issuing-1"].state == "pending"
    assert not (offline.path / "roots.pem").exists()


async def test_a_certificate_for_another_key_is_refused(offline: Home) -> None:
    await offline.init()
    root = OfflineRoot()
    stranger = root.sign(root.name, ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(ConfigurationError, match="no issuer here has"):
        await offline.take([stranger, root.certificate])


async def test_a_root_that_did_not_sign_is_refused(offline: Home) -> None:
    outcome = await offline.init()
    assert outcome.request is not None
    with pytest.raises(ConfigurationError, match="not signed by the given root"):
        await offline.take([OfflineRoot().answer(outcome.request), OfflineRoot().certificate])
    with pytest.raises(ConfigurationError, match="was not given"):
        await offline.take([OfflineRoot().answer(outcome.request), OfflineRoot("Other").certificate])
    with pytest.raises(ConfigurationError, match="was not given"):
        await offline.take([OfflineRoot().answer(outcome.request)])


async def test_an_active_issuer_gets_an_alternate_chain(home: Home) -> None:
    await home.init()
    (issuing, first_root), row = await home.chain("issuing-1"), (await home.issuers())["issuing-1"]
    root = OfflineRoot()
    cross = root.sign(issuing.subject, issuing.public_key())
    with pytest.raises(ConfigurationError, match="--alternate"):
        await home.take([cross, root.certificate])
    with pytest.raises(ConfigurationError, match="key identifier"):
        await home.take(
            [root.sign(issuing.subject, issuing.public_key(), identifier=b"\x01" * 20), root.certificate],
            alternate=True,
        )
    imported = await home.take([cross, root.certificate], alternate=True)
    assert not imported.activated
    assert imported.issuer == row
    assert await home.chain("issuing-1", 1) == [cross, root.certificate]
    assert x509.load_pem_x509_certificates((home.path / "roots.pem").read_bytes()) == [first_root, root.certificate]
    with pytest.raises(ConfigurationError, match="imported before"):
        await home.take([cross, root.certificate], alternate=True)
    assert (await home.audit()).ca_certificates == 3


async def test_retirement(home: Home) -> None:
    await home.init()

    async def end(name: str) -> Any:
        return await home.with_store(lambda store: retire(home.surroundings().transcript(store), name))

    await end("issuing-1")
    assert (await home.issuers())["issuing-1"].state == "retired"
    assert (await home.kinds())[-1] == "issuer.retired"
    for name in ("issuing-1", "root", "nobody"):
        with pytest.raises(ConfigurationError):
            await end(name)
    await home.audit()


def test_files_that_hold_no_certificate_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    for content in (b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        bad.write_bytes(content)
        with pytest.raises(ConfigurationError):
            read_certificates(bad)
    root = OfflineRoot()
    bad.write_bytes(root.certificate.public_bytes(Encoding.DER))
    assert read_certificates(bad) == [root.certificate]
