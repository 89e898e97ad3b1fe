"""`ledger verify` finds a CA whose key no token attested, or whose attestation was changed (promise P1)."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from fakes.audited import Authority, opened_authority, refused, spki
from privyseal_ca.hsm.attributes import PROTECTION
from privyseal_ca.ledger.entries import Kind

UNATTESTED = "no key.generated entry attests"


@pytest_asyncio.fixture
async def authority(tmp_path: Path) -> AsyncIterator[Authority]:
    """One certificate."""
    async with opened_authority(tmp_path / "audit.db") as authority:
        await authority.issue("a.test")
        yield authority


def rewrite_row(authority: Authority, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the CA's row says of its key."""
    attestation = {
        "uri": "pkcs11:object=k",
        "algorithm": "ec-p256",
        "spki_sha256": authority.entry(authority.index(Kind.KEY_GENERATED))["payload"]["spki_sha256"],  # type: ignore[index]
        "attributes": dict(PROTECTION),
    }
    change(attestation)
    authority.tamper(("UPDATE issuer SET attestation = ?", (json.dumps(attestation),)))


async def test_a_key_that_was_attested_is_counted(authority: Authority) -> None:
    await authority.store.write(
        lambda tx: authority.record(tx, Kind.KEY_GENERATED, {"label": "wrapping-1", "uri": "u", "algorithm": "aes-256"})
    )
    assert (await authority.audit()).keys == 1


@pytest.mark.parametrize("name", sorted(PROTECTION))
@pytest.mark.parametrize("told", [True, False], ids=["wrong", "not-told"])
async def test_a_key_that_may_leave_its_token_is_named(authority: Authority, name: str, told: bool) -> None:
    def change(members: dict[str, Any]) -> None:
        attributes = members["payload"]["attributes"]
        if told:
            attributes[name] = not attributes[name]
        else:
            del attributes[name]

    index = authority.index(Kind.KEY_GENERATED)
    authority.rewrite(index, change)
    assert await refused(authority, f"is for a key that is not protected: CKA_{name}") == index


async def test_a_certificate_for_another_key_is_named(authority: Authority) -> None:
    """As when somebody certifies a key of their own, with an entry that tells of another."""
    authority.rewrite(
        authority.index(Kind.KEY_GENERATED),
        lambda members: members["payload"].update(spki_sha256="00" * 32),  # type: ignore[attr-defined]
    )
    assert await refused(authority, "no entry before it attests") == authority.index(Kind.ISSUER_CERTIFIED)


async def test_an_attestation_that_comes_later_is_none(authority: Authority) -> None:
    index = authority.index(Kind.KEY_GENERATED)
    payload = authority.entry(index)["payload"]
    authority.rewrite(index, lambda members: members.update(kind=Kind.SERVICE_STOPPED, payload={}))
    await authority.store.write(lambda tx: authority.record(tx, Kind.KEY_GENERATED, payload))  # type: ignore[arg-type]
    assert await refused(authority, "no entry before it attests") == authority.index(Kind.ISSUER_CERTIFIED)


async def test_entries_without_attributes_are_malformed(authority: Authority) -> None:
    index = authority.index(Kind.KEY_GENERATED)
    authority.rewrite(index, lambda members: members["payload"].pop("attributes"))  # type: ignore[attr-defined]
    assert await refused(authority, "lacks a member that its kind has") == index


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(spki_sha256=spki(ec.generate_private_key(ec.SECP256R1()).public_key()).hex()[:64]),
        lambda row: row.update(uri="pkcs11:object=another"),
        lambda row: row.update(algorithm="rsa-4096"),
        lambda row: row["attributes"].update(EXTRACTABLE=True),
        lambda row: row["attributes"].pop("LOCAL"),
        lambda row: row.pop("attributes"),
    ],
    ids=["key", "uri", "algorithm", "extractable", "not-told", "no-attributes"],
)
async def test_a_row_that_says_something_else_is_found(
    authority: Authority, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite_row(authority, dict.copy)
    assert (await authority.audit()).keys == 1
    rewrite_row(authority, change)
    await refused(authority, UNATTESTED)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE issuer SET key_uri = 'pkcs11:object=another'",
        "UPDATE issuer SET algorithm = 'ed25519'",
        "UPDATE issuer SET attestation = '{}'",
        "UPDATE issuer SET attestation = '['",
        "UPDATE issuer SET attestation = 'null'",
    ],
)
async def test_columns_that_differ_are_found(authority: Authority, statement: str) -> None:
    authority.tamper((statement, ()))
    await refused(authority, UNATTESTED)
