"""Revoking everything of a private key that is out."""

import sys
from pathlib import Path

import click

from privyseal_ca.cli.frame import Invocation
from privyseal_ca.cli.home import opened_store, run, settings_of, surroundings_of
from privyseal_ca.cli.selecting import read_key_file
from privyseal_ca.errors import KeyRefusedError
from privyseal_ca.revocation.compromise import revoke_rest
from privyseal_ca.revocation.possession import prove_possession
from privyseal_ca.revocation.revoke import MAX_WITH_KEY, block_compromised_key, revoke_alive_with_key
from privyseal_ca.store.certificates import blocked_key_reason
from privyseal_ca.store.revoking import count_alive_with_key
from privyseal_ca.store.statement import Transaction


def revoke_private_key(invocation: Invocation, path: Path, *, dry_run: bool, yes: bool) -> None:
    """Prove that the key is out, block it, and revoke what was issued for it."""
    surroundings = surroundings_of(invocation)
    clock, actor, correlation = surroundings.clock, surroundings.actor, surroundings.correlation
    shown = prove_possession(read_key_file(path), passphrase=_ask_passphrase, random_bytes=surroundings.random_bytes)
    key = shown.spki_sha256

    def look(transaction: Transaction) -> tuple[int, bool]:
        count = count_alive_with_key(transaction, key, now=int(clock.now()))
        return count, blocked_key_reason(transaction, key) is not None

    def unit(transaction: Transaction) -> tuple[int, bool]:
        fresh = block_compromised_key(
            transaction, key, actor=actor, correlation=correlation, now=clock.now(), proof=shown.proof
        )
        rows = revoke_alive_with_key(
            transaction, key, actor=actor, correlation=correlation, now=clock.now(), count=MAX_WITH_KEY
        )
        return len(rows), not fresh

    async def work() -> tuple[int, bool]:
        async with opened_store(settings_of(invocation)) as store:
            count, known = await store.read(look)
            if dry_run:
                return count, known
            invocation.confirm(f"Block the key {key.hex()} for good and revoke its {count} certificates?", yes=yes)
            count, known = await store.write(unit)
            return count + await revoke_rest(store, clock, key, actor=actor, correlation=correlation), known

    revoked, known = run(work())
    document = {"spki_sha256": key.hex(), "blocked_before": known, "dry_run": dry_run, "revoked": revoked}
    verb = "would be" if dry_run else "is"
    again = " (it was before)" if known else ""
    invocation.result(
        {**document, "proof": shown.proof},
        f"The key {key.hex()} {verb} blocked{again}; certificates with it that {'would be' if dry_run else 'are'} revoked: {revoked}.",
    )


def _ask_passphrase() -> str:
    if not sys.stdin.isatty():
        raise KeyRefusedError(
            "The private key is encrypted, and nobody is there to be asked for its passphrase.",
            hint="Run the command on a terminal; a passphrase is never an argument.",
        )
    return str(click.prompt("Passphrase of the private key", hide_input=True, err=True))
