"""Servers and owners of a log who want the auditor to say that all is well, or to say nothing any more."""

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fakes.outside_logs import (
    BEGIN,
    ISSUER,
    Server,
    SignedLog,
    Witness,
    answers,
    crl,
    digest,
    entry,
    life,
    serial_of,
    served,
)
from fakes.process import PRIVYSEAL, clean_environment
from fakes.service import FakeClock
from privyseal_acme.cli import cli
from privyseal_ca.issuance.record import issued_entry, serial_text
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.ledger.proofs import Receipt, inclusion_proof
from privyseal_ca.outside.alerts import Alerter
from privyseal_ca.outside.findings import Code, Finding
from privyseal_ca.outside.monitor import Monitor, Round
from privyseal_ca.outside.signed import LogKeys
from privyseal_ca.outside.source import HttpLedger, LedgerBounds
from privyseal_ca.outside.state import MonitorState
from privyseal_ca.web.fetching import new_session

SIZE = 300
SERIAL = 1 << 90


@dataclass
class Auditor:
    """Somebody with a folder, a key and the two commands."""

    log: SignedLog
    server: Server
    state: Path

    def run(self, *arguments: str | Path, expect: int = 1) -> dict[str, Any]:
        words = ["ledger", *map(str, arguments), "--json", "--vkey", self.log.vkey, self.server.url]
        done = CliRunner().invoke(cli, words, env={"PRIVYSEAL_HOME": "/nonexistent"})
        assert done.exit_code == expect, (done.output, done.stderr, done.exception)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def audit(self, *arguments: str | Path, expect: int = 1) -> dict[str, Any]:
        return self.run("audit", *arguments, expect=expect)

    def monitor(self, *arguments: str | Path, expect: int = 1) -> dict[str, Any]:
        return self.run("monitor", "--once", "--state", self.state, *arguments, expect=expect)

    def published(self, entries: list[bytes], **note: Any) -> SignedLog:
        log = SignedLog(entries)
        log.publish(self.server.folder, **note)
        return log

    def then(self, first: bytes, second: bytes) -> None:
        """The checkpoint is ``first`` when it is asked for, and ``second`` from then on."""
        notes = [first]

        def fault(handler: SimpleHTTPRequestHandler) -> None:
            answers(200, notes.pop() if notes else second)(handler)

        self.server.faults["/ledger/checkpoint"] = fault


def found(document: dict[str, Any]) -> dict[str, str]:
    return {each["code"]: each["message"] for each in document["findings"]}


@pytest.fixture
def auditor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Auditor]:
    monkeypatch.setattr("privyseal_ca.outside.audit.PAUSE", 0.0)
    monkeypatch.setattr("privyseal_ca.outside.monitor.PAUSE", 0.0)
    log = SignedLog(life(SIZE))
    with served(log.publish(tmp_path / "log")) as server:
        yield Auditor(log, server, tmp_path / "state")


def leaf(folder: Path) -> tuple[Path, x509.Certificate]:
    """A certificate that this log's CA may have signed, and its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), SERIAL)
        .not_valid_before(datetime.fromtimestamp(BEGIN, UTC))
        .not_valid_after(datetime.fromtimestamp(BEGIN + 86400, UTC))
        .add_extension(x509.AuthorityKeyIdentifier(bytes.fromhex(ISSUER), None, None), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("victim.test")]), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "leaf.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    return path, made


def intent_for(certificate: x509.Certificate) -> bytes:
    payload = json.loads(issued_entry(certificate.public_bytes(Encoding.DER)))["payload"]
    del payload["certificate_sha256"]
    return entry(Kind.INTENT, {**payload, "profile": "server", "purpose": "order:1"}, actor="account:1")


# While the audit runs.


def test_a_newer_checkpoint_counts_only_with_the_quorum(auditor: Auditor, tmp_path: Path) -> None:
    """Nobody but the auditor sees the log in which the certificate is."""
    witness, now = Witness("w.test/witness"), int(time.time())
    path, certificate = leaf(tmp_path)
    entries = [*life(SIZE), intent_for(certificate), issued_entry(certificate.public_bytes(Encoding.DER))]
    shown = auditor.log.note(witnesses=[(witness, now)])
    hidden = auditor.published(entries)
    index = len(entries) - 1
    receipt = Receipt(index, tuple(inclusion_proof(hidden.tiles, index, len(entries))), hidden.note())
    auditor.server.faults[f"/ledger/proof/{serial_text(SERIAL)}"] = answers(200, receipt.text().encode())
    auditor.then(shown, hidden.note())
    report = auditor.audit("--certificate", path, "--witness", witness.vkey)
    assert "names a checkpoint that its server does not show" in found(report)["certificate"]
    assert (report["certificates"], report["size"]) == ({}, SIZE)
    # With it, or when no witness is asked for.
    auditor.then(shown, hidden.note(witnesses=[(witness, now)]))
    report = auditor.audit("--certificate", path, "--witness", witness.vkey, expect=0)
    assert report["certificates"] == {str(path): index}
    auditor.then(shown, hidden.note())
    assert auditor.audit("--certificate", path, expect=0)["size"] == len(entries)


def test_another_log_of_the_same_size_while_the_audit_runs(auditor: Auditor, tmp_path: Path) -> None:
    path, certificate = leaf(tmp_path)
    longer = SignedLog([*life(SIZE), intent_for(certificate), issued_entry(certificate.public_bytes(Encoding.DER))])
    receipt = Receipt(SIZE + 1, tuple(inclusion_proof(longer.tiles, SIZE + 1, SIZE + 2)), longer.note())
    auditor.server.faults[f"/ledger/proof/{serial_text(SERIAL)}"] = answers(200, receipt.text().encode())
    for size in (SIZE, SIZE - 1):
        entries = life(size)
        entries[10] = entry(Kind.SERVICE_STARTED, {"at": "other"})
        auditor.then(auditor.log.note(), SignedLog(entries).note())
        report = auditor.audit("--certificate", path)
        assert "rewritten" in found(report)["fork"]
        assert len(next(each for each in report["findings"] if each["code"] == "fork")["notes"]) == 2


def test_how_old_a_checkpoint_is_nobody_knows_without_witnesses(auditor: Auditor) -> None:
    for command in (auditor.audit, auditor.monitor):
        assert "--witness" in command("--freshness", "1h")["hint"]
    assert auditor.server.asked == []


# Answers that want the monitor to end.


def endless(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(65536))
    except OSError:
        pass


def test_a_checkpoint_without_an_end_is_a_finding(auditor: Auditor, tmp_path: Path) -> None:
    with served(auditor.log.publish(tmp_path / "mirror")) as mirror:
        mirror.faults["/ledger/checkpoint"] = endless
        for command in (auditor.audit, auditor.monitor):
            assert "longer than" in found(command("--also", mirror.url))["unreachable"]
    auditor.server.faults["/ledger/checkpoint"] = endless
    assert "longer than" in found(auditor.monitor())["signature"]


def test_another_place_and_a_crl_that_stay_out_of_reach(auditor: Auditor, tmp_path: Path) -> None:
    with served(tmp_path) as mirror:
        mirror.faults["/ledger/checkpoint"] = answers(500)
        assert "out of reach since" in found(auditor.monitor("--also", mirror.url))["unreachable"]
    auditor.published([*life(SIZE), crl(99, through=SIZE, scope="full")])
    auditor.server.faults[f"/crl/{ISSUER}.crl"] = answers(500)
    assert "HTTP status 500" in found(auditor.monitor())["unreachable"]


async def test_another_place_has_patience_and_then_none(auditor: Auditor, tmp_path: Path) -> None:
    clock, keys = FakeClock(BEGIN + 100), LogKeys(auditor.log.verifier)
    with served(auditor.log.publish(tmp_path / "mirror")) as mirror, MonitorState.opened(auditor.state, keys) as state:
        async with new_session() as session:
            bounds = LedgerBounds(seconds=5, attempts=1)
            source, other = (HttpLedger(each.url, session, bounds=bounds) for each in (auditor.server, mirror))
            monitor = Monitor(source, keys, state, clock=clock, freshness=1, patience=300, also=[other])

            async def codes() -> list[str]:
                return [each.code for each in (await monitor.round()).findings]

            mirror.faults["/ledger/checkpoint"] = answers(500)
            assert await codes() == []
            # However far the clock steps back.
            clock.advance(-90)
            assert await codes() == []
            clock.advance(299)
            assert await codes() == []
            clock.advance(1)
            assert await codes() == ["unreachable"]
            mirror.faults.clear()
            assert await codes() == []
            mirror.faults["/ledger/checkpoint"] = answers(500)
            assert await codes() == []


async def test_a_clock_that_steps_back_delays_no_alarm_for_long(auditor: Auditor) -> None:
    clock, keys = FakeClock(BEGIN + 100_000), LogKeys(auditor.log.verifier)
    with MonitorState.opened(auditor.state, keys) as state:
        async with new_session() as session:
            source = HttpLedger(auditor.server.url, session, bounds=LedgerBounds(seconds=5, attempts=1))
            monitor = Monitor(source, keys, state, clock=clock, freshness=1, patience=300)
            await monitor.round()
            clock.advance(-90_000)
            auditor.server.faults["/ledger/checkpoint"] = answers(500)
            assert (await monitor.round()).findings == []
            clock.advance(301)
            assert [each.code for each in (await monitor.round()).findings] == ["unreachable"]


def test_what_was_found_is_told_although_the_disk_is_full(auditor: Auditor) -> None:
    auditor.monitor(expect=0)
    (auditor.server.folder / "ledger/checkpoint").write_bytes(auditor.log.note(200))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        report = auditor.monitor()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "rolled back" in found(report)["rollback"]
    assert "could not be kept" in report["notes"][0]
    assert "rollback" in found(auditor.monitor())
    assert len(list(auditor.state.glob("evidence-*"))) == 1


_KEEP = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"


def test_somebody_is_called_although_nobody_reads_along(auditor: Auditor, tmp_path: Path) -> None:
    (auditor.server.folder / "ledger/checkpoint").write_bytes(b"nonsense")
    told = tmp_path / "told"
    words = ["ledger", "monitor", "--json", "--once", "--vkey", auditor.log.vkey, "--state", str(auditor.state)]
    words += ["--on-alert", shlex.join([sys.executable, "-c", _KEEP, str(told)]), auditor.server.url]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as output:
        done = subprocess.run(
            [str(PRIVYSEAL), *words], stdout=output, stderr=output, env=clean_environment(), timeout=60, check=False
        )
    assert done.returncode
    assert "signature" in found(json.loads(told.read_text()))


async def test_a_second_finding_of_a_kind_is_news_and_a_failed_call_is_made_again(tmp_path: Path) -> None:
    told, said = tmp_path / "told", list[str]()
    alerter = Alerter([sys.executable, "-c", _KEEP, str(told)], tell=said.append)
    one, other = Finding(Code.CRL, "of a"), Finding(Code.CRL, "of b")

    async def judged(time: float, *findings: Finding) -> int:
        await alerter.judge(Round(time, list(findings)))
        return len(told.read_text().splitlines()) if told.is_file() else 0

    told.mkdir()
    assert await judged(0, one) == 0
    assert "failed" in said[0]
    told.rmdir()
    assert [await judged(1, one), await judged(2, one), await judged(3, one, other)] == [1, 1, 2]
    # Another hour, also by a clock that steps back.
    assert [await judged(3603, one, other), await judged(10, one, other), await judged(20, one)] == [3, 4, 4]


def test_an_answer_that_breaks_off_is_asked_for_again(auditor: Auditor) -> None:
    def broken(handler: SimpleHTTPRequestHandler) -> None:
        del auditor.server.faults["/ledger/tile/0/000"]
        handler.send_response(200)
        handler.send_header("Content-Length", "8192")
        handler.end_headers()
        handler.wfile.write(bytes(100))

    auditor.server.faults["/ledger/tile/0/000"] = broken
    assert auditor.audit(expect=0)["size"] == SIZE


# A CRL that the log does not know.


def test_a_crl_that_is_never_in_the_log(auditor: Auditor, ca: "Ca") -> None:
    auditor.published([*life(SIZE), ca.certified(), ca.entry(1, SIZE)])
    ca.serve(auditor.server.folder, 7)
    for command in (auditor.audit, auditor.monitor, auditor.monitor):
        assert "newer than anything" in found(command())["crl"]


def test_a_crl_whose_entry_comes_in_a_moment(auditor: Auditor, ca: "Ca") -> None:
    before = [*life(SIZE), ca.certified(), ca.entry(1, SIZE)]
    ca.serve(auditor.server.folder, 2)
    first = auditor.published(before)
    after = auditor.published([*before, ca.entry(2, SIZE)])
    auditor.then(first.note(), after.note())
    report = auditor.monitor(expect=0)
    assert (report["size"], report["new_entries"]) == (len(after.entries), len(after.entries))


class Ca:
    """A CA that has revoked nothing."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
        self.identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        self.id = self.identifier.digest.hex()
        self.certificate = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), 9)
            .not_valid_before(datetime.fromtimestamp(BEGIN, UTC))
            .not_valid_after(datetime.fromtimestamp(BEGIN + 86400, UTC))
            .add_extension(self.identifier, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def crl(self, number: int) -> bytes:
        begin, end = (datetime.fromtimestamp(each, UTC) for each in (BEGIN, BEGIN + 20000))
        builder = x509.CertificateRevocationListBuilder(self.name, begin, end)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(self.identifier.digest, None, None), critical=False)
        # The same octets each time: RFC 6979.
        signed = builder.sign(self.key, hashes.SHA256(), ecdsa_deterministic=True)
        return signed.public_bytes(Encoding.DER)

    def serve(self, folder: Path, number: int) -> None:
        (folder / "crl").mkdir()
        (folder / f"crl/{self.id}.crl").write_bytes(self.crl(number))
        (folder / "roots.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def entry(self, number: int, through: int) -> bytes:
        sha256 = hashes.Hash(hashes.SHA256())
        sha256.update(self.crl(number))
        said = {"scope": "full", "issuer": self.id, "next_update": BEGIN + 20000, "sha256": sha256.finalize().hex()}
        return crl(number, through=through, **said)

    def certified(self) -> bytes:
        payload = {
            "certificate_sha256": self.certificate.fingerprint(hashes.SHA256()).hex(),
            "id": self.id,
            "imported": True,
            "issuer": self.id,
            "not_after": BEGIN + 86400,
            "not_before": BEGIN,
            "serial": serial_of(999_999),
            "subject": "CN=a",
            "tbs_sha256": digest("tbs"),
        }
        return entry(Kind.ISSUER_CERTIFIED, payload)


@pytest.fixture
def ca() -> Ca:
    return Ca()


# A receipt that shows something else.


def test_no_receipt_makes_a_leaf_a_ca(auditor: Auditor, tmp_path: Path, ca: Ca) -> None:
    """It is in the log, but not as what it is: whoever looks for names there would never see it."""
    path, certificate = leaf(tmp_path)
    payload = json.loads(ca.certified())["payload"]
    extra = entry(
        Kind.ISSUER_CERTIFIED, {**payload, "certificate_sha256": certificate.fingerprint(hashes.SHA256()).hex()}
    )
    log = auditor.published([*life(SIZE), extra])
    proof = tuple(inclusion_proof(log.tiles, SIZE, SIZE + 1))
    receipt = tmp_path / "receipt"
    receipt.write_text(Receipt(SIZE, proof, log.note(), extra).text())
    done = CliRunner().invoke(cli, ["ledger", "verify-proof", "--vkey", log.vkey, str(path), str(receipt)])
    assert (done.exit_code, "does not lead to the root" in done.output) == (1, True), done.output


# A state that somebody damaged.


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["journal"].update(bytes="1"),
        lambda state: state["journal"].update(bytes=-1),
        lambda state: state.update(contact=1e300),
        lambda state: state.update(contact=-1),
        # One hash of the edge: it would look as if the log had been forked.
        lambda state: state["edge"]["levels"].__setitem__(1, "A" * 43 + "="),
    ],
)
def test_a_damaged_state_accuses_nobody(auditor: Auditor, damage: Callable[[dict[str, Any]], Any]) -> None:
    auditor.monitor(expect=0)
    file = auditor.state / "state.json"
    state = json.loads(file.read_bytes())
    damage(state)
    file.write_text(json.dumps(state))
    assert "not what a monitor wrote" in auditor.monitor()["error"]
    assert list(auditor.state.glob("evidence-*")) == []
