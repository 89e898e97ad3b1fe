"""OCSP answers from a real token and database: what they say, what they never say, and what is kept of them."""

import asyncio
import dataclasses
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from fakes.home import MakeSettings
from fakes.ocsp_desk import BOTH, OcspDesk, add_issuer, ocsp_desk, settings_on
from privyseal_acme.status_role import _Replaceable
from privyseal_ca.config import Settings
from privyseal_ca.ledger.entries import decode_entry
from privyseal_ca.ledger.log import entries
from privyseal_ca.revocation.ocsp_request import encode_request, parse_request
from privyseal_ca.revocation.published import OcspAnswer, OcspQuery, OcspStatus
from privyseal_ca.store.certificates import IntentRow, open_intent


@pytest.fixture(params=BOTH)
def settings(request: pytest.FixtureRequest, make_settings: MakeSettings) -> Settings:
    return settings_on(request, make_settings)


@pytest_asyncio.fixture
async def desk(settings: Settings) -> AsyncIterator[OcspDesk]:
    async with ocsp_desk(settings) as desk:
        yield desk


async def test_good_then_revoked(desk: OcspDesk) -> None:
    row = await desk.issue()
    for hash_name in ("sha1", "sha256"):
        assert await desk.status(row.serial, hash_name=hash_name) == "good"
    revocation = await desk.revoke(row, 4)
    for hash_name in ("sha1", "sha256"):
        query = desk.query(row.serial, hash_name=hash_name)
        answer = await desk.ocsp.answer(query)
        assert isinstance(answer, OcspAnswer)
        assert answer.keep
        response = desk.verified(answer, query)
        assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert response.revocation_reason is x509.ReasonFlags.superseded
        assert response.revocation_time_utc is not None
        assert response.revocation_time_utc.timestamp() == revocation.revoked_at


async def test_a_reason_that_was_not_given_is_not_invented(desk: OcspDesk) -> None:
    row = await desk.issue()
    await desk.revoke(row, 0)
    query = desk.query(row.serial)
    answer = await desk.ocsp.answer(query)
    assert isinstance(answer, OcspAnswer)
    assert desk.verified(answer, query).revocation_reason is None


async def test_what_was_never_issued_is_unknown_and_not_kept(desk: OcspDesk) -> None:
    serial = secrets.randbits(120)
    answers = [await desk.ask(serial) for _ in range(5)]
    first = answers[0]
    assert isinstance(first, OcspAnswer)
    assert answers == [first] * 5
    assert not first.keep
    assert first.next_update - first.this_update == 60
    assert desk.signed("unknown") == 1
    assert await desk.status(serial) == "unknown"
    assert await desk.kept(f"{serial:032x}") is None
    desk.clock.advance(61)
    assert await desk.status(serial) == "unknown"
    assert desk.signed("unknown") == 2


async def test_a_serial_that_is_issued_later_is_good_at_once(desk: OcspDesk) -> None:
    """The remembered `unknown` is only for what is unknown still."""
    row = await desk.issue()
    desk.ocsp._unknown[desk.query(row.serial)] = OcspAnswer(b"", 0, 1 << 40, 1 << 40, row.serial, keep=False)
    assert await desk.status(row.serial) == "good"


async def test_an_issuance_that_is_not_finished_is_unknown_and_one_given_up_is_revoked(desk: OcspDesk) -> None:
    serial = f"{secrets.randbits(120):032x}"
    row = IntentRow(serial, desk.issuer.id, b"x" * 32, int(desk.clock.now()) + 600, "account:tests", "tests", None)
    await desk.store.write(lambda tx: open_intent(tx, row))
    assert await desk.status(serial) == "unknown"
    assert await desk.authority.close_intents() == 1
    assert await desk.status(serial) == "revoked"


async def test_the_same_serial_asked_of_another_issuer_is_never_good(desk: OcspDesk) -> None:
    row = await desk.issue()
    root = next(each for each in desk.certificates if each != desk.issuer.id)
    # The root has no responder: it is no authority here.
    assert await desk.status(row.serial, issuer_id=root) == "UNAUTHORIZED"
    query = desk.query(row.serial)
    for change in (
        {"issuer_name_hash": secrets.token_bytes(20)},
        {"issuer_key_hash": secrets.token_bytes(20)},
        {"hash_name": "sha256"},
        {"serial": -query.serial},
        {"serial": 0},
        {"serial": query.serial + (1 << 160)},
    ):
        assert await desk.ocsp.answer(dataclasses.replace(query, **change)) is OcspStatus.UNAUTHORIZED  # type: ignore[arg-type]


async def test_each_of_two_issuers_answers_for_its_own(settings: Settings) -> None:
    name = await asyncio.to_thread(add_issuer, settings, "--key-type", "rsa-2048")
    async with ocsp_desk(settings) as desk:
        first, other = desk.issuer, next(each for each in desk.authority.issuers if each.identity.name == name)
        for mine, yours in ((first, other), (other, first)):
            row = await desk.issue("dns:web.corp.example", issuer=mine)
            assert await desk.status(row.serial, issuer_id=mine.id) == "good"
            assert await desk.status(row.serial, issuer_id=yours.id) == "unknown"
            await desk.revoke(row)
            await desk.ocsp.follow()
            assert await desk.status(row.serial, issuer_id=mine.id, hash_name="sha256") == "revoked"
            assert await desk.status(row.serial, issuer_id=yours.id, hash_name="sha256") == "unknown"


async def test_an_expired_certificate_is_still_answered(desk: OcspDesk) -> None:
    row = await desk.issue()
    desk.clock.advance(row.not_after - desk.clock.now() + 86400)
    await desk.responders.renew_due()
    assert await desk.status(row.serial) == "good"


async def test_what_a_clock_that_was_ahead_made_is_replaced(desk: OcspDesk) -> None:
    row, other = await desk.issue(), await desk.issue()
    await desk.revoke(other)
    desk.clock.advance(4 * 86400)
    assert await desk.responders.renew_due() == 1
    assert [await desk.status(each.serial) for each in (row, other)] == ["good", "revoked"]
    desk.clock.advance(-4 * 86400)
    # `status` checks that thisUpdate and the responder's certificate have begun.
    assert await desk.responders.renew_due() == 1
    assert [await desk.status(each.serial) for each in (row, other)] == ["good", "revoked"]
    responder = desk.responders.find(desk.issuer.id)
    assert responder is not None
    assert responder.certificate.not_valid_before_utc.timestamp() <= desk.clock.now()
    for each in (row, other):
        kept = await desk.kept(each.serial)
        assert kept is not None
        assert kept.this_update <= desk.clock.now()
    assert await desk.responders.renew_due() == 0


async def test_no_revocation_is_missed_when_a_source_takes_the_place_of_another(desk: OcspDesk) -> None:
    row = await desk.issue()
    replaceable = _Replaceable()
    forgotten: list[str] = []
    replaceable.on_change(forgotten.extend)
    replaceable.replace(desk.status_only())
    assert await desk.status(row.serial) == "good"
    assert isinstance(await replaceable.answer(desk.query(row.serial)), OcspAnswer)
    await replaceable.follow()
    await desk.revoke(row)
    replaceable.replace(desk.status_only())
    await replaceable.follow()
    assert forgotten == [row.serial]


async def test_what_was_signed_is_kept_and_signed_no_second_time(desk: OcspDesk) -> None:
    row = await desk.issue()
    answers = await asyncio.gather(*(desk.ask(row.serial) for _ in range(20)))
    assert len(set(answers)) == 1
    assert desk.signed("request") == 1
    (answer,) = set(answers)
    assert isinstance(answer, OcspAnswer)
    kept = await desk.kept(row.serial)
    assert kept is not None
    assert kept.der == answer.der
    assert answer.fresh_until == kept.refresh_at
    desk.clock.advance(desk.settings.status.ocsp_lifetime / 2)
    again = await desk.ask(row.serial)
    assert isinstance(again, OcspAnswer)
    # It is about to be replaced, so nobody keeps it for the other half of its life.
    assert (again.der, again.fresh_until) == (answer.der, int(desk.clock.now()) + 60)
    desk.clock.advance(desk.settings.status.ocsp_lifetime / 2)
    assert await desk.ask(row.serial) != again
    assert desk.signed("request") == 2


async def test_a_nonce_is_repeated_and_nothing_of_it_is_kept(desk: OcspDesk) -> None:
    row = await desk.issue()
    for serial, expected in ((row.serial, "good"), (secrets.randbits(100), "unknown")):
        nonce = secrets.token_bytes(32)
        query = desk.query(serial, nonce=nonce)
        answer = await desk.ocsp.answer(query)
        assert isinstance(answer, OcspAnswer)
        assert not answer.keep
        response = desk.verified(answer, query)
        assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
        assert response.certificate_status.name.lower() == expected
    assert await desk.kept(row.serial) is None
    assert desk.signed("nonce") == 2


async def test_one_who_goes_away_does_not_end_it_for_the_others(desk: OcspDesk) -> None:
    row = await desk.issue()
    leaves, stays = (asyncio.create_task(desk.ask(row.serial)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert isinstance(await stays, OcspAnswer)
    assert leaves.cancelled()
    assert desk.signed("request") == 1


async def test_more_than_the_queue_holds_is_told_to_come_later(make_settings: MakeSettings) -> None:
    async with ocsp_desk(make_settings(status={"ocsp_queue": 4})) as desk:
        rows = [await desk.issue() for _ in range(6)]
        answers = await asyncio.gather(*(desk.ask(row.serial) for row in rows))
        assert answers.count(OcspStatus.TRY_LATER) == 2
        # What nobody else can use leaves half the room.
        flood = [desk.ask(secrets.randbits(100)) for _ in range(6)]
        *unknown, late = await asyncio.gather(*flood, desk.ask(rows[0].serial, hash_name="sha256"))
        assert unknown.count(OcspStatus.TRY_LATER) == 4
        assert isinstance(late, OcspAnswer)
        assert [await desk.status(row.serial) for row in rows] == ["good"] * 6


async def test_a_revocation_while_it_is_signed_is_seen(desk: OcspDesk) -> None:
    row = await desk.issue()
    sign = desk.ocsp._maker.sign
    revoked = False

    async def revoke_then_sign(*arguments: object, **options: object) -> object:
        nonlocal revoked
        if not revoked:
            revoked = True
            await desk.revoke(row)
        return await sign(*arguments, **options)  # type: ignore[arg-type]

    desk.ocsp._maker.sign = revoke_then_sign  # type: ignore[method-assign,assignment]
    assert await desk.status(row.serial) == "revoked"
    kept = await desk.kept(row.serial)
    assert kept is not None
    assert kept.revoked


async def test_what_was_announced_while_it_was_signed_is_looked_up_again(desk: OcspDesk) -> None:
    row = await desk.issue()
    find = desk.responders.find
    sign = desk.ocsp._sign_passing
    told = False

    async def sign_then_tell(*arguments: object) -> object:
        nonlocal told
        answer = await sign(*arguments)  # type: ignore[arg-type]
        if not told:
            told = True
            await desk.revoke(row)
            await desk.ocsp.follow()
        return answer

    desk.ocsp._sign_passing = sign_then_tell  # type: ignore[method-assign,assignment]
    assert find(desk.issuer.id) is not None
    assert await desk.status(row.serial, nonce=secrets.token_bytes(32)) == "revoked"


async def test_changes_are_announced_once_and_none_is_missed(desk: OcspDesk) -> None:
    before, after = await desk.issue(), await desk.issue()
    await desk.revoke(before)
    assert await desk.status(after.serial) == "good"
    await desk.ocsp.follow()
    assert desk.forgotten == []
    await desk.revoke(after)
    await desk.ocsp.follow()
    await desk.ocsp.follow()
    assert desk.forgotten == [after.serial]


async def test_without_a_signer_what_is_kept_is_served_and_no_more(desk: OcspDesk) -> None:
    ready, revoked, never_asked = [await desk.issue() for _ in range(3)]
    for row in (ready, revoked):
        assert await desk.status(row.serial) == "good"
    reader = desk.status_only()
    kept = await reader.answer(desk.query(ready.serial))
    assert isinstance(kept, OcspAnswer)
    # RFC 9654: a responder may leave the nonce out.
    assert await reader.answer(desk.query(ready.serial, nonce=b"n" * 32)) == kept
    assert await reader.answer(desk.query(never_asked.serial)) is OcspStatus.TRY_LATER
    assert await reader.answer(desk.query(secrets.randbits(100))) is OcspStatus.UNAUTHORIZED
    await desk.revoke(revoked)
    assert await reader.answer(desk.query(revoked.serial)) is OcspStatus.TRY_LATER
    assert await desk.status(revoked.serial) == "revoked"
    answer = await reader.answer(desk.query(revoked.serial))
    assert isinstance(answer, OcspAnswer)
    assert desk.verified(answer, desk.query(revoked.serial)).certificate_status is ocsp.OCSPCertStatus.REVOKED
    desk.clock.advance(desk.settings.status.ocsp_lifetime)
    assert await reader.answer(desk.query(ready.serial)) is OcspStatus.TRY_LATER


async def test_a_restart_keeps_the_responses_and_the_responder(settings: Settings) -> None:
    async with ocsp_desk(settings) as desk:
        row = await desk.issue()
        answer = await desk.ask(row.serial)
        signer = desk.responders.find(desk.issuer.id)
    async with ocsp_desk(settings, clock=desk.clock) as again:
        assert await again.ask(row.serial) == answer
        assert again.signed("request") == 0
        found = again.responders.find(again.issuer.id)
        assert found is not None
        assert signer is not None
        assert (found.key.uri, found.certificate) == (signer.key.uri, signer.certificate)


async def test_the_responder_is_renewed_at_half_of_its_life_and_outlives_what_it_signs(desk: OcspDesk) -> None:
    status = desk.settings.status
    row = await desk.issue()
    first = desk.responders.find(desk.issuer.id)
    assert first is not None
    assert first.not_after == int(desk.clock.now()) + status.responder_lifetime - 1
    assert await desk.responders.renew_due() == 0
    # Nobody renews it: what it signs ends with it.
    desk.clock.advance(status.responder_lifetime - 120)
    answer = await desk.ask(row.serial)
    assert isinstance(answer, OcspAnswer)
    assert answer.next_update == first.not_after
    desk.verified(answer, desk.query(row.serial))
    desk.clock.advance(120)
    assert desk.responders.find(desk.issuer.id) is None
    assert await desk.ask(row.serial) is OcspStatus.TRY_LATER
    assert await desk.responders.renew_due() == 1
    assert await desk.status(row.serial) == "good"
    second = desk.responders.find(desk.issuer.id)
    assert second is not None
    assert second.key.public_key == first.key.public_key
    desk.clock.advance(status.responder_lifetime / 2)
    assert await desk.responders.renew_due() == 1


async def test_the_last_responder_ends_with_its_issuer(desk: OcspDesk) -> None:
    desk.clock.advance(desk.issuer.identity.not_after - desk.clock.now() - 7200)
    assert await desk.responders.renew_due() == 1
    last = desk.responders.find(desk.issuer.id)
    assert last is not None
    assert last.not_after == desk.issuer.identity.not_after
    desk.clock.advance(3600)
    assert await desk.responders.renew_due() == 0


async def test_a_responders_certificate_is_recorded_like_any_other(desk: OcspDesk) -> None:
    responder = desk.responders.find(desk.issuer.id)
    assert responder is not None
    serial = f"{responder.certificate.serial_number:032x}"
    ledger = await desk.store.read(lambda tx: [decode_entry(row.entry) for row in entries(tx, count=10_000)])
    kinds = [entry["kind"] for entry in ledger if entry["payload"].get("serial") == serial]
    assert kinds == ["certificate.intent", "certificate.issued"]
    labels = [entry["payload"]["label"] for entry in ledger if entry["kind"] == "key.generated"]
    assert any(label.startswith(f"{desk.issuer.identity.name}-ocsp-") for label in labels)
    extensions = responder.certificate.extensions
    assert extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert {type(each.value) for each in extensions}.isdisjoint(
        {x509.AuthorityInformationAccess, x509.CRLDistributionPoints, x509.SubjectAlternativeName}
    )


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
async def test_openssl_believes_the_answers(desk: OcspDesk, tmp_path: Path, hash_name: str) -> None:
    good, revoked = await desk.issue(), await desk.issue()
    await desk.revoke(revoked)
    chain = tmp_path / "issuer.pem"
    chain.write_bytes(desk.certificates[desk.issuer.id].public_bytes(Encoding.PEM))
    roots = desk.settings.home / "roots.pem"
    for row, expected in ((good, "good"), (revoked, "revoked")):
        leaf, request, response = (tmp_path / f"{expected}.{kind}" for kind in ("pem", "req", "resp"))
        leaf.write_bytes(x509.load_der_x509_certificate(row.der).public_bytes(Encoding.PEM))
        about = [f"-{hash_name}", "-issuer", str(chain), "-cert", str(leaf)]
        run("ocsp", *about, "-reqout", str(request))
        query = parse_request(request.read_bytes())
        assert isinstance(query, OcspQuery)
        assert query.nonce is not None  # openssl sends one
        for asked in (query, dataclasses.replace(query, nonce=None)):
            answer = await desk.ocsp.answer(asked)
            assert isinstance(answer, OcspAnswer)
            response.write_bytes(answer.der)
            about_it = ["-reqin", str(request)] if asked.nonce else [*about, "-no_nonce"]
            said = run(
                *("ocsp", *about_it, "-respin", str(response), "-CAfile", str(roots), "-verify_other", str(chain))
            )
            assert "Response verify OK" in said
            assert asked.nonce or f"{leaf}: {expected}" in said
        text = run("ocsp", "-respin", str(response), "-resp_text", "-noverify")
        assert f"{int(row.serial, 16):X}" in text
        run("ocsp", *about, "-no_nonce", "-reqout", str(request))
        assert encode_request(query) == request.read_bytes()


def run(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, check=True, timeout=20)
    return (done.stdout + done.stderr).decode()


async def test_answers_are_byte_for_byte_about_what_was_asked(desk: OcspDesk) -> None:
    row = await desk.issue()
    issuer = desk.certificates[desk.issuer.id]
    algorithms: tuple[Callable[[], hashes.HashAlgorithm], ...] = (hashes.SHA1, hashes.SHA256)
    for algorithm in algorithms:
        builder = ocsp.OCSPRequestBuilder().add_certificate(
            x509.load_der_x509_certificate(row.der), issuer, algorithm()
        )  # type: ignore[arg-type]
        request = builder.build().public_bytes(Encoding.DER)
        query = parse_request(request)
        assert isinstance(query, OcspQuery)
        answer = await desk.ocsp.answer(query)
        assert isinstance(answer, OcspAnswer)
        cert_id = request[-(len(request) - 8) :]
        assert cert_id in answer.der
