"""The only module that imports python-pkcs11: what is needed of Cryptoki, in the words of this package.

Everything here runs on a module's one thread (:mod:`privyseal_ca.hsm.worker`) and raises :data:`CryptokiError` as the
token does; :mod:`privyseal_ca.hsm.faults` says what follows from each.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11 import exceptions as codes

from privyseal_ca.errors import SignerError, SignerMisconfiguredError
from privyseal_ca.hsm import functions
from privyseal_ca.hsm.attributes import READ_BACK, SIGNING, WRAPPING, KeyAlgorithm
from privyseal_ca.hsm.keys import Scheme
from privyseal_ca.hsm.pin import Pin
from privyseal_ca.hsm.signer import PublicKey
from privyseal_ca.hsm.uri import KeyUri

__all__ = ["CryptokiError", "codes"]

CryptokiError = pkcs11.PKCS11Error

# python-pkcs11 builds the classes of its objects at run time, by what each object can do; types of ours would be a guess.
Token = Any
Session = Any
Key = Any

_P256 = bytes.fromhex("06082a8648ce3d030107")
_P384 = bytes.fromhex("06052b81040022")
_ED25519 = bytes.fromhex("06032b6570")
_CURVES: Mapping[bytes, ec.EllipticCurve] = {_P256: ec.SECP256R1(), _P384: ec.SECP384R1()}
_TAG_BITS = 128
# Longer than any signature we ask for (RSA-4096: 512 bytes).
_SIGNATURE_BUFFER = 1024


@dataclass(frozen=True)
class _Recipe:
    """How keys of one algorithm are generated and used."""

    key_type: KeyType
    generate: Mechanism
    sign: tuple[Mechanism, ...]
    bits: int
    curve: bytes | None = None


_RSA_SIGN = (Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_PSS)
_RECIPES: Mapping[KeyAlgorithm, _Recipe] = {
    "ec-p256": _Recipe(KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, (Mechanism.ECDSA,), 256, _P256),
    "ec-p384": _Recipe(KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, (Mechanism.ECDSA,), 384, _P384),
    "rsa-2048": _Recipe(KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, _RSA_SIGN, 2048),
    "rsa-3072": _Recipe(KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, _RSA_SIGN, 3072),
    "rsa-4096": _Recipe(KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, _RSA_SIGN, 4096),
    "ed25519": _Recipe(KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, (Mechanism.EDDSA,), 255, _ED25519),
}

_MECHANISMS: Mapping[Scheme, dict[str, Any]] = {
    Scheme.ECDSA: {"mechanism": Mechanism.ECDSA},
    Scheme.EDDSA: {"mechanism": Mechanism.EDDSA},
    Scheme.RSA_PKCS1: {"mechanism": Mechanism.RSA_PKCS},
    **{
        scheme: {"mechanism": Mechanism.RSA_PKCS_PSS, "mechanism_param": (hash_, mgf, salt)}
        for scheme, hash_, mgf, salt in (
            (Scheme.RSA_PSS_SHA256, Mechanism.SHA256, pkcs11.MGF.SHA256, 32),
            (Scheme.RSA_PSS_SHA384, Mechanism.SHA384, pkcs11.MGF.SHA384, 48),
            (Scheme.RSA_PSS_SHA512, Mechanism.SHA512, pkcs11.MGF.SHA512, 64),
        )
    },
}


class Library:
    """A loaded module that is initialised, or can be.

    python-pkcs11 keeps to itself whether it is: after a C_Finalize that failed it would refuse to go on for good.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = pkcs11.lib(str(path))
        except CryptokiError as error:
            if type(error) is not CryptokiError:  # it was loaded, and may be half initialised
                with suppress(SignerError):
                    functions.ModuleFunctions(path).finalize()
            raise
        self._functions = functions.ModuleFunctions(path)
        self._initialise()  # an earlier end that failed may have left it either way

    def get_slots(self, *, token_present: bool) -> list[Any]:
        """C_GetSlotList."""
        return list(self._library.get_slots(token_present=token_present))

    def init_token(self, slot: int, so_pin: Pin, label: str) -> int:
        """C_InitToken, and the CKR_ it gives."""
        return self._functions.init_token(slot, so_pin.reveal().encode(), label)

    def reinitialize(self) -> None:
        """End the module and begin anew; one that does not end is used as it is."""
        try:
            self.finalize()
        except CryptokiError:
            self._initialise()
        else:
            self._library.initialize()

    def finalize(self) -> None:
        """C_Finalize, which ends every session."""
        result = self._functions.finalize()
        if result not in {functions.OK, functions.NOT_INITIALIZED}:
            raise codes.GeneralError(f"C_Finalize: CKR 0x{result:X}")
        with suppress(CryptokiError):  # python-pkcs11 asks the module once more, and so learns that it has ended
            self._library.finalize()

    def _initialise(self) -> None:
        result = self._functions.initialize()
        if result not in {functions.OK, functions.ALREADY_INITIALIZED}:
            raise codes.GeneralError(f"C_Initialize: CKR 0x{result:X}")


def load(path: Path) -> Library:
    """The module at ``path``, initialised."""
    return Library(path)


# --- tokens ---------------------------------------------------------------------------------------------------------


def find_token(library: Library, uri: KeyUri) -> Token | None:
    """The one token that ``uri`` names, or ``None``. A slot that fails does no harm to those beside it.

    Raises:
        CryptokiError: it is not found, and a slot failed where it may be.
        SignerMisconfiguredError: several tokens match.
    """
    tokens, failures = _tokens(library)
    found = [
        token
        for token in tokens
        if TokenFlag.TOKEN_INITIALIZED in token.flags
        and uri.token in {None, token.label}
        and uri.serial in {None, serial_of(token)}
        and uri.manufacturer in {None, token.manufacturer_id}
        and uri.model in {None, token.model}
    ]
    if len(found) > 1:
        raise SignerMisconfiguredError(
            f"{len(found)} tokens match {uri.token_uri}.", hint="Add serial=NUMBER to the URI; it tells them apart."
        )
    if failures and not found:
        raise failures[0]
    return found[0] if found else None


def serial_of(token: Token) -> str:
    """The token's serial number as text."""
    return str(token.serial.decode(errors="replace").strip("\0 "))


def has_user_pin(token: Token) -> bool:
    """Whether the token's user PIN has been set."""
    return TokenFlag.USER_PIN_INITIALIZED in token.flags


def one_try_left(token: Token) -> bool:
    """Whether the token would be locked by one more wrong PIN, or is already, as far as it tells."""
    return bool(token.flags & (TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED))


def open_session(token: Token, pin: Pin) -> Session:
    """A session on which the user is logged in. The login is the whole application's (PKCS#11 section 5.6)."""
    try:
        return token.open(user_pin=pin.reveal())
    except codes.UserAlreadyLoggedIn:
        return token.open()


def initialise_token(library: Library, path: Path, label: str, so_pin: Pin) -> None:
    """C_InitToken on the first slot whose token is blank.

    Raises:
        SignerMisconfiguredError: no token is blank, or the token refuses.
    """
    blank = next((t for t in _tokens(library)[0] if TokenFlag.TOKEN_INITIALIZED not in t.flags), None)
    if blank is None:
        raise SignerMisconfiguredError(
            f"No blank token is left in {path}.", hint="Add one with the maker's tool, or name a token that is set up."
        )
    result = library.init_token(blank.slot.slot_id, so_pin, label)
    if result != functions.OK:
        raise SignerMisconfiguredError(
            f"The token in slot {blank.slot.slot_id} cannot be initialised (CKR 0x{result:X}).",
            hint="Look the code up in PKCS#11 section 5.1; 0xA0 to 0xA4 are about the PIN.",
        )


def set_user_pin(token: Token, so_pin: Pin, user_pin: Pin) -> None:
    """Set the user PIN of a token that has none yet."""
    session = token.open(rw=True, so_pin=so_pin.reveal())
    try:
        session.init_pin(user_pin.reveal())
    finally:
        session.close()


def supports(token: Token, algorithm: KeyAlgorithm) -> bool:
    """Whether the token generates and signs with keys of ``algorithm``."""
    recipe = _RECIPES[algorithm]
    offered = token.slot.get_mechanisms()
    if not {recipe.generate, *recipe.sign} <= offered:
        return False
    info = token.slot.get_mechanism_info(recipe.generate)
    # Tokens that do not state a size give 0; Edwards keys are stated as 255 or 256 bits.
    largest = info.max_key_length or recipe.bits
    return (info.min_key_length or 0) <= recipe.bits + 1 and recipe.bits <= largest


def _tokens(library: Library) -> tuple[list[Token], list[CryptokiError]]:
    """The tokens in all slots, and what slots failed with instead. One that goes away meanwhile is left out."""
    tokens, failures = [], []
    for slot in library.get_slots(token_present=True):
        try:
            tokens.append(slot.get_token())
        except (codes.TokenNotPresent, codes.TokenNotRecognised):
            continue
        except CryptokiError as error:
            failures.append(error)
    return tokens, failures


# --- keys -----------------------------------------------------------------------------------------------------------


def find_signing_key(session: Session, uri: KeyUri) -> Key | None:
    """The one private key that ``uri`` names, or ``None``."""
    return _find(session, uri, ObjectClass.PRIVATE_KEY)


def find_wrapping_key(session: Session, uri: KeyUri) -> Key | None:
    """The one secret key that ``uri`` names, or ``None``."""
    return _find(session, uri, ObjectClass.SECRET_KEY)


def label_taken(session: Session, label: str) -> bool:
    """Whether any object has this label."""
    return bool(list(session.get_objects({Attribute.LABEL: label})))


def drop_public_half(token: Token, label: str, key_id: bytes) -> bool:
    """Remove the public half of a key pair that never got its private one, which tokens make after it; whether that was all.

    Only what has this very CKA_ID is removed, and nothing when anything else has the label.
    """
    session = token.open(rw=True)
    try:
        found = list(session.get_objects({Attribute.LABEL: label}))
        if any(each[Attribute.CLASS] is not ObjectClass.PUBLIC_KEY or identifier_of(each) != key_id for each in found):
            return False
        for each in found:
            each.destroy()
    finally:
        session.close()
    return True


def identifier_of(key: Key) -> bytes:
    """The key's CKA_ID."""
    return bytes(key[Attribute.ID])


def read_attributes(key: Key) -> dict[str, bool]:
    """The attributes of ``READ_BACK`` that the token tells."""
    told = key.get_attributes([Attribute[name] for name in READ_BACK])
    return {name: bool(told[Attribute[name]]) for name in READ_BACK if Attribute[name] in told}


def read_public_key(session: Session, key: Key) -> PublicKey:
    """The public half of a private key.

    Raises:
        SignerMisconfiguredError: the token does not keep it beside the private key, or it is of a kind that is not used.
    """
    kind = key[Attribute.KEY_TYPE]
    if kind is KeyType.RSA:  # the private object has the public numbers too (PKCS#11 section 6.1.3)
        modulus, exponent = key[Attribute.MODULUS], key[Attribute.PUBLIC_EXPONENT]
        return rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key()
    wanted = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.KEY_TYPE: kind, Attribute.ID: key[Attribute.ID]}
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise SignerMisconfiguredError(
            f"The token has {len(found)} public keys for a private key, not one.",
            hint="The public key must have the CKA_ID of the private key, and no other key may have it.",
        )
    point = found[0][Attribute.EC_POINT]
    if kind is KeyType.EC and (curve := _CURVES.get(found[0][Attribute.EC_PARAMS])) is not None:
        return ec.EllipticCurvePublicKey.from_encoded_point(
            curve, _unwrapped(point, 2 * ((curve.key_size + 7) // 8) + 1)
        )
    if kind is KeyType.EC_EDWARDS and len(_unwrapped(point, 32)) == 32:
        return ed25519.Ed25519PublicKey.from_public_bytes(_unwrapped(point, 32))
    raise SignerMisconfiguredError(
        "The key is of a kind that is not used here.", hint="P-256, P-384, RSA and Ed25519 keys sign."
    )


def generate_signing_key(token: Token, algorithm: KeyAlgorithm, label: str, key_id: bytes) -> None:
    """Make a key pair in the token. The user is logged in already; that holds for every session."""
    recipe = _RECIPES[algorithm]
    common = {
        "id": key_id,
        "label": label,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "mechanism": recipe.generate,
        "public_template": {Attribute.PRIVATE: False, Attribute.MODIFIABLE: False},
        "private_template": {Attribute[name]: value for name, value in SIGNING.items()},
    }
    session = token.open(rw=True)
    try:
        if recipe.curve is None:
            session.generate_keypair(recipe.key_type, recipe.bits, **common)
        else:
            parameters = {Attribute.EC_PARAMS: recipe.curve}
            session.create_domain_parameters(recipe.key_type, parameters, local=True).generate_keypair(**common)
    finally:
        session.close()


def generate_wrapping_key(token: Token, label: str, key_id: bytes) -> None:
    """Make an AES-256 key in the token. The user is logged in already."""
    session = token.open(rw=True)
    try:
        session.generate_key(
            KeyType.AES,
            256,
            id=key_id,
            label=label,
            store=True,
            capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
            template={Attribute[name]: value for name, value in WRAPPING.items()},
        )
    finally:
        session.close()


def sign(key: Key, scheme: Scheme, data: bytes) -> bytes:
    """C_SignInit and C_Sign."""
    return bytes(key.sign(data, buffer_size=_SIGNATURE_BUFFER, **_MECHANISMS[scheme]))


def encrypt(key: Key, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-GCM: the ciphertext with its tag of 16 bytes."""
    parameters = GCMParams(nonce, associated, _TAG_BITS)
    return bytes(key.encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def decrypt(key: Key, nonce: bytes, ciphertext: bytes, associated: bytes) -> bytes:
    """What :func:`encrypt` was given."""
    parameters = GCMParams(nonce, associated, _TAG_BITS)
    return bytes(key.decrypt(ciphertext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))


def _find(session: Session, uri: KeyUri, object_class: ObjectClass) -> Key | None:
    wanted: dict[Attribute, Any] = {Attribute.CLASS: object_class}
    if uri.object is not None:
        wanted[Attribute.LABEL] = uri.object
    if uri.id is not None:
        wanted[Attribute.ID] = uri.id
    found = list(session.get_objects(wanted))
    if len(found) > 1:
        raise SignerMisconfiguredError(
            f"{len(found)} keys match {uri}.", hint="Name the key by both object=LABEL and id=%01 in its URI."
        )
    return found[0] if found else None


def _unwrapped(point: bytes, size: int) -> bytes:
    """A point of ``size`` bytes. CKA_EC_POINT is a DER OCTET STRING; for Edwards keys some tokens give it bare."""
    if len(point) == size + 2 and point[:2] == bytes((0x04, size)):
        return point[2:]
    return point
