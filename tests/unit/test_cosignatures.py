"""Cosignatures: keys, messages, notes with several of them, and what is no cosignature (C2SP tlog-cosignature)."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.cosignatures import (
    CosignatureVerifier,
    answered_lines,
    cosignatures,
    cosigned_message,
    merged,
)
from privyseal_ca.ledger.note import MAX_SIGNATURES, Checkpoint, NoteVerifier, encode_base64, note_with, open_note

TEXT = Checkpoint("example.com/log", 7, bytes(range(32))).text()
LOG_KEY = ed25519.Ed25519PrivateKey.generate()
LOG = NoteVerifier.for_key("example.com/log", LOG_KEY.public_key())
NOTE = note_with(TEXT, LOG, LOG_KEY.sign(TEXT.encode()))
KEYS = {name: ed25519.Ed25519PrivateKey.generate() for name in ("w1.example", "w2.example")}
VERIFIERS = {name: CosignatureVerifier.for_key(name, key.public_key()) for name, key in KEYS.items()}
ONE, TWO = VERIFIERS.values()


def line(name: str, when: int, text: str = TEXT) -> str:
    return VERIFIERS[name].line(text, when, KEYS[name].sign(cosigned_message(text, when)))


def raw(verifier: CosignatureVerifier, signature: bytes) -> str:
    return f"\u2014 {verifier.name} {encode_base64(verifier.key_id + signature)}\n"


def test_the_message_of_the_specification() -> None:
    """The example of tlog-cosignature."""
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    assert cosigned_message(text, 1679315147) == (
        b"cosignature/v1\n"
        b"time 1679315147\n"
        b"example.com/behind-the-sofa\n"
        b"20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )


def test_a_note_of_the_specification_is_read() -> None:
    """Its witness's key is not published: the line is ignored, and counted when it is merged again."""
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+"
        "xeMcTOAYQ8=\n"
    )
    cosignature = (
        "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+"
        "mbIUBkBIfZ+qnA==\n"
    )
    whole = merged(note.encode(), [cosignature])
    assert whole == (note + cosignature).encode()
    assert merged(whole, [cosignature]) == whole
    assert cosignatures(whole, [ONE]) == {}


def test_key_and_id_by_the_words_of_the_specification() -> None:
    key = b"\x04" + KEYS["w1.example"].public_key().public_bytes_raw()
    assert ONE.key_id == hashlib.sha256(b"w1.example\n" + key).digest()[:4]
    assert ONE.vkey() == f"w1.example+{ONE.key_id.hex()}+{base64.b64encode(key).decode()}"
    assert CosignatureVerifier.parse(ONE.vkey()) == ONE


def test_the_log_and_its_witnesses_are_told_apart() -> None:
    """A log's key is no witness's, also under one name; readers of either ignore the other."""
    with pytest.raises(LedgerError, match="type 4"):
        CosignatureVerifier.parse(LOG.vkey())
    with pytest.raises(LedgerError):
        NoteVerifier.parse(ONE.vkey())
    same = CosignatureVerifier.for_key(LOG.name, LOG_KEY.public_key())
    assert same.key_id != LOG.key_id
    assert cosignatures(NOTE, [same]) == {}
    whole = merged(NOTE, [line("w1.example", 5)])
    assert open_note(whole, [LOG]) == (TEXT, [LOG])


def test_several_and_their_times() -> None:
    whole = merged(NOTE, [line("w1.example", 5), line("w2.example", 9)])
    assert cosignatures(whole, VERIFIERS.values()) == {"w1.example": 5, "w2.example": 9}
    assert cosignatures(whole, [TWO]) == {"w2.example": 9}
    assert cosignatures(NOTE, VERIFIERS.values()) == {}


def test_merging_keeps_what_is_there() -> None:
    whole = merged(NOTE, [line("w1.example", 5)])
    assert merged(whole, [line("w1.example", 5), line("w1.example", 4), line("w2.example", 9)]) == (
        whole + line("w2.example", 9).encode()
    )
    assert merged(NOTE, []) == NOTE


def test_a_later_one_takes_the_place_of_the_earlier_one() -> None:
    whole = merged(NOTE, [line("w1.example", 5), line("w2.example", 9)])
    assert merged(whole, [line("w1.example", 6), line("w2.example", 10), line("w1.example", 3)]) == merged(
        NOTE, [line("w1.example", 6), line("w2.example", 10)]
    )


def test_no_cosignature_takes_the_place_of_the_log() -> None:
    """A witness that bears the log's name and, which takes a while to find, a key with the id of the log's."""
    for forged in (b"\x7f" + bytes(71), bytes(64), b"x"):
        data = encode_base64(LOG.key_id + forged)
        assert merged(NOTE, [f"\u2014 {LOG.name} {data}\n"]) == NOTE
    other = raw(ONE, b"no cosignature")
    whole = NOTE + other.encode()
    assert merged(whole, [line("w1.example", 5)]) == whole, "nor that of anything else"


def test_of_two_by_one_witness_the_later_counts() -> None:
    whole = NOTE + "".join([line("w1.example", 5), line("w1.example", 9), line("w1.example", 7)]).encode()
    assert cosignatures(whole, [ONE]) == {"w1.example": 9}


@given(st.integers(0, 2**63 - 1))
def test_every_time(when: int) -> None:
    assert cosignatures(merged(NOTE, [line("w1.example", when)]), [ONE]) == {"w1.example": when}


@pytest.mark.parametrize("when", [-1, 2**63])
def test_times_that_there_are_not(when: int) -> None:
    with pytest.raises(LedgerError):
        cosigned_message(TEXT, when)


def test_a_cosignature_is_over_time_and_text() -> None:
    signature = KEYS["w1.example"].sign(cosigned_message(TEXT, 5))
    wrong = {
        "another time": (6).to_bytes(8) + signature,
        "no time": signature,
        "a plain signature": (5).to_bytes(8) + KEYS["w1.example"].sign(TEXT.encode()),
        "another text": (5).to_bytes(8) + KEYS["w1.example"].sign(cosigned_message(TEXT.replace("7", "8"), 5)),
        "another key": (5).to_bytes(8) + KEYS["w2.example"].sign(cosigned_message(TEXT, 5)),
        "something behind": (5).to_bytes(8) + signature + b"\0",
        "too late a time": (2**63).to_bytes(8) + signature,
    }
    for data in wrong.values():
        with pytest.raises(LedgerError, match="wrong cosignature"):
            cosignatures(NOTE + raw(ONE, data).encode(), [ONE])
    with pytest.raises(LedgerError, match="not by the witness"):
        ONE.line(TEXT, 6, signature)


def test_answers() -> None:
    mine = line("w1.example", 5)
    assert answered_lines(mine.encode(), NOTE, [ONE]) == {"w1.example": (5, mine)}
    assert answered_lines((line("w2.example", 4) + mine).encode(), NOTE, [ONE]) == {"w1.example": (5, mine)}
    assert answered_lines(line("w2.example", 4).encode(), NOTE, [ONE]) == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\n",
        b"text\n",
        line("w1.example", 5).encode()[:-1],
        b"\n" + line("w1.example", 5).encode(),
        b"example.com/log\n8\n\n" + line("w1.example", 5).encode(),
        line("w1.example", 5, TEXT.replace("7", "8")).encode(),
        line("w1.example", 5).encode() * (MAX_SIGNATURES + 1),
        b"\xe2\x80\x94 w1.example " + b"A" * 70_000 + b"\n",
        b"\xff\n",
    ],
)
def test_answers_that_are_none(answer: bytes) -> None:
    with pytest.raises(LedgerError):
        answered_lines(answer, NOTE, [ONE])


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "w1.example+" + ONE.key_id.hex(),
        ONE.vkey() + "A",
        ONE.vkey() + "\n",
        ONE.vkey().replace("w1", "w9"),
        ONE.vkey().replace(ONE.key_id.hex(), "0" * 8),
        ONE.vkey().replace(ONE.key_id.hex(), ONE.key_id.hex().upper() + "0"),
        "w+00000000+BA==",
        "w 1+00000000+" + ONE.vkey().split("+", 2)[2],
        "w" * 2000,
    ],
    ids=range(11),  # the key is another in each process
)
def test_keys_that_are_none(vkey: str) -> None:
    with pytest.raises(LedgerError):
        CosignatureVerifier.parse(vkey)


def test_other_kinds_of_keys_and_names() -> None:
    with pytest.raises(LedgerError, match="Ed25519"):
        CosignatureVerifier.for_key("w", ec.generate_private_key(ec.SECP256R1()).public_key())
    for name in ("", "a b", "a+b", "a\nb", "a" * 256):
        with pytest.raises(LedgerError):
            CosignatureVerifier.for_key(name, KEYS["w1.example"].public_key())


def test_two_witnesses_with_one_name() -> None:
    other = CosignatureVerifier.for_key("w1.example", KEYS["w2.example"].public_key())
    with pytest.raises(LedgerError, match="name"):
        cosignatures(NOTE, [ONE, other])


def test_two_witnesses_with_one_key() -> None:
    """A cosignature does not say by whom it is: whoever has two names would be two of a quorum."""
    other = CosignatureVerifier.for_key("other.example", KEYS["w1.example"].public_key())
    twice = NOTE + line("w1.example", 5).encode()
    with pytest.raises(LedgerError, match="same key"):
        cosignatures(twice, [ONE, other])
    assert cosignatures(twice, [ONE, ONE]) == {"w1.example": 5}


def test_a_note_has_room_for_so_many() -> None:
    lines = [f"\u2014 w{number} {encode_base64(b'1234x')}\n" for number in range(MAX_SIGNATURES - 1)]
    whole = merged(NOTE, lines)
    assert open_note(whole, [LOG])[1] == [LOG]
    with pytest.raises(LedgerError, match="signatures"):
        merged(whole, [line("w1.example", 5)])
    with pytest.raises(LedgerError):
        merged(NOTE, ["no line\n"])
