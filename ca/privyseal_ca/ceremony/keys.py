"""Making keys in tokens so that an interrupted ceremony neither loses one nor makes two."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Final

from privyseal_ca.ceremony.transcript import Transcript
from privyseal_ca.errors import ConfigurationError, SignerMisconfiguredError
from privyseal_ca.hsm.attributes import KeyAlgorithm, KeyAttestation
from privyseal_ca.hsm.pkcs11 import Hsm
from privyseal_ca.hsm.signer import WrappingKey
from privyseal_ca.hsm.uri import KeyUri
from privyseal_ca.ledger.entries import Kind
from privyseal_ca.store.issuers import IssuerRow, find_fact, set_fact
from privyseal_ca.store.statement import Transaction

#: The fact that names the key that wraps secrets.
WRAPPING_KEY_FACT: Final = "wrapping-key"
_KEY_ID_OCTETS: Final = 8


class KeyMaker:
    """Generates keys in tokens and records what the tokens say about them (promise P1)."""

    def __init__(self, hsm: Hsm, transcript: Transcript, random_bytes: Callable[[int], bytes]) -> None:
        self._hsm = hsm
        self._transcript = transcript
        self._random_bytes = random_bytes

    async def signing_key(self, token: KeyUri, label: str, algorithm: KeyAlgorithm) -> KeyAttestation:
        """The key ``label`` in ``token``, generated unless an earlier run has done so.

        Raises:
            ConfigurationError: the token cannot make such keys, or has lost the one that an earlier run made.
            SignerError: the token is away, refuses the PIN, or made a key that breaks promise P1.
        """
        key_id = await self._key_id(label)
        uri = str(replace(token, object=label, id=key_id, type="private"))
        attestation = await self._hsm.find_key(uri)
        if attestation is None:
            await self._refuse_lost(label, uri)
            if not await self._hsm.supports(str(token), algorithm):
                raise ConfigurationError(
                    f"The token {token.token} cannot make {algorithm} keys.", hint="Choose another kind of key."
                )
            attestation = await self._hsm.generate_signing_key(str(token), label, algorithm, key_id=key_id)
        await self._transcript.record_once(_step(label), Kind.KEY_GENERATED, {"label": label, **asdict(attestation)})
        return attestation

    async def wrapping_key(self, token: KeyUri, label: str) -> WrappingKey:
        """The AES key ``label`` in ``token``, generated unless an earlier run has done so; its URI becomes a fact.

        Raises the errors of :meth:`signing_key`.
        """
        key_id = await self._key_id(label)
        uri = str(replace(token, object=label, id=key_id, type="secret-key"))
        try:
            key = await self._hsm.open_wrapping_key(uri)
        except SignerMisconfiguredError:
            # Not there. What else this may mean, such as a refused PIN, stops the generation too.
            await self._refuse_lost(label, uri)
            key = await self._hsm.open_wrapping_key(
                await self._hsm.generate_wrapping_key(str(token), label, key_id=key_id)
            )
        await self._transcript.record_once(
            _step(label),
            Kind.KEY_GENERATED,
            {"label": label, "uri": uri, "algorithm": "aes-256"},
            lambda tx: set_fact(tx, WRAPPING_KEY_FACT, uri),
        )
        return key

    async def _key_id(self, label: str) -> bytes:
        """The CKA_ID of the key, chosen at random and kept, so that a stranger's key with the same label is not taken for it."""
        fact = f"key-id:{label}"

        def unit(transaction: Transaction) -> str:
            kept = find_fact(transaction, fact)
            if kept is None:
                kept = self._random_bytes(_KEY_ID_OCTETS).hex()
                set_fact(transaction, fact, kept)
            return kept

        return bytes.fromhex(await self._transcript.store.write(unit))

    async def _refuse_lost(self, label: str, uri: str) -> None:
        if await self._transcript.has(_step(label)):
            raise ConfigurationError(
                f"The key {uri} was generated earlier and is no longer in its token.",
                hint="Bring the token back, or begin anew with another home and database.",
            )


def attestation_text(attestation: KeyAttestation) -> str:
    """The attestation as an issuer's row keeps it."""
    return json.dumps(asdict(attestation), sort_keys=True)


def attested_spki_sha256(issuer: IssuerRow) -> str:
    """The hash of the issuer's SubjectPublicKeyInfo in hex, from its attestation."""
    return str(json.loads(issuer.attestation)["spki_sha256"])


def _step(label: str) -> str:
    return f"key:{label}"
