"""Signed notes and checkpoints: C2SP signed-note and tlog-checkpoint."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from privyseal_ca.errors import LedgerError
from privyseal_ca.ledger.note import MAX_NOTE, MAX_SIZE, Checkpoint, NoteVerifier, note_with, open_note

# The example of C2SP signed-note.
EXAMPLE_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_TEXT = "This is an example message.\n"
EXAMPLE = (
    EXAMPLE_TEXT
    + "\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
# The documentation of golang.org/x/mod/sumdb/note.
GO_VKEYS = (
    "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop",
)
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    GO_TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    + "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
).encode()
# The tests of github.com/transparency-dev/formats, and a later checkpoint of the same log with an extension line.
ECDSA_VKEY = (
    "rekor.sigstore.dev+c0d23d6a+AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNhtmPtrWm3U1eQXBogSMdGvXwBcK5AW5i0hrZLOC96l"
    "+smGNM7nwZ4QvFK/4sueRoVj//QP22Ni4Qt9DPfkWLc="
)
ECDSA_NOTES = (
    (
        "Rekor\n798034\nf+7CoKgXKE/tNys9TTXcr/ad6U/K3xvznmzew9y6SP0=\n\n— rekor.sigstore.dev "
        "wNI9ajBEAiARInWIWyCdyG27CO6LPnPekyw20qO0YJfoaPaowGp/XgIgc+qEHS3+GKVClgqq20uDLet7MCoTURUCRdxwWBHHufk=\n"
    ),
    (
        "rekor.sigstore.dev - 2605736670972794746\n21428036\nrxnoKyFZlJ7/R6bMh/d3lcqwKqAy5CL1LcNBJP17kgQ=\n"
        "Timestamp: 1688058656037355364\n\n— rekor.sigstore.dev "
        "wNI9ajBFAiEAuDk7uu5Ae8Own/MjhSZNuVzbLuYH2jBMxbSA0WaNDNACIDV4reKpYiOpkwtvazCClnpUuduF2o/th2xR3gRZAUU4\n"
    ),
)

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ROOT = bytes(range(32))
EMPTY_ROOT = hashlib.sha256(b"").digest()


def verifier(key: ed25519.Ed25519PrivateKey = KEY, name: str = "example.com/log") -> NoteVerifier:
    return NoteVerifier.for_key(name, key.public_key())


def signed(text: str, key: ed25519.Ed25519PrivateKey = KEY, name: str = "example.com/log") -> bytes:
    return note_with(text, verifier(key, name), key.sign(text.encode()))


def line(name: str, key_id: bytes, signature: bytes) -> bytes:
    return f"— {name} {base64.b64encode(key_id + signature).decode()}\n".encode()


def test_the_example_of_the_specification() -> None:
    example = NoteVerifier.parse(EXAMPLE_VKEY)
    assert (example.name, example.key_id.hex()) == ("example.com/foo", "530d903a")
    assert example.vkey() == EXAMPLE_VKEY
    assert open_note(EXAMPLE, [example]) == (EXAMPLE_TEXT, [example])


def test_the_example_of_go() -> None:
    keys = [NoteVerifier.parse(vkey) for vkey in GO_VKEYS]
    assert [key.vkey() for key in keys] == list(GO_VKEYS)
    assert open_note(GO_NOTE, keys) == (GO_TEXT, keys)
    assert open_note(GO_NOTE, keys[1:]) == (GO_TEXT, keys[1:])


@pytest.mark.parametrize("note", ECDSA_NOTES)
def test_ecdsa_checkpoints_of_another_log(note: str) -> None:
    key = NoteVerifier.parse(ECDSA_VKEY)
    assert key.vkey() == ECDSA_VKEY
    text, by = open_note(note.encode(), [key])
    assert by == [key]
    assert Checkpoint.parse(text).text() == text
    with pytest.raises(LedgerError):
        open_note(note.replace("8", "9", 1).encode(), [key])


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_ecdsa_keys(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    ours = NoteVerifier.for_key("example.com/log", key.public_key())
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert ours.key_id == hashlib.sha256(der).digest()[:4]
    assert NoteVerifier.parse(ours.vkey()) == ours
    note = note_with("text\n", ours, key.sign(b"text\n", ec.ECDSA(hashes.SHA256())))
    assert open_note(note, [ours]) == ("text\n", [ours])
    assert not ours.verify(b"text\n", key.sign(b"text\n", ec.ECDSA(hashes.SHA512())))
    assert not ours.verify(b"text\n", b"")


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048).public_key(), ec.generate_private_key(ec.SECP256K1()).public_key()],
    ids=["rsa", "secp256k1"],
)
def test_other_keys_sign_no_notes(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> None:
    with pytest.raises(LedgerError):
        NoteVerifier.for_key("example.com/log", key)
    by_hand = NoteVerifier("example.com/log", b"\x00" * 4, key)
    assert not by_hand.verify(b"text\n", b"signature")
    with pytest.raises(LedgerError):
        by_hand.vkey()


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32) if c != 10]))
names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="+"), min_size=1, max_size=60
)


@given(texts, names)
def test_what_is_signed_is_opened(text: str, name: str) -> None:
    text += "\n"
    assert open_note(signed(text, name=name), [verifier(name=name)]) == (text, [verifier(name=name)])
    assert NoteVerifier.parse(verifier(name=name).vkey()) == verifier(name=name)


@given(st.data())
def test_no_changed_byte_is_accepted(data: st.DataObject) -> None:
    note = bytearray(signed("example.com/log\n3\nroot\n"))
    at = data.draw(st.integers(0, len(note) - 1))
    note[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(LedgerError):
        open_note(bytes(note), [verifier()])


@given(st.integers(0, len(EXAMPLE) - 1))
def test_no_truncated_note_is_accepted(length: int) -> None:
    with pytest.raises(LedgerError):
        open_note(EXAMPLE[:length], [NoteVerifier.parse(EXAMPLE_VKEY)])


@given(st.binary(max_size=200) | st.text(alphabet="\n— aZ=+\r\x00é", max_size=60).map(str.encode))
def test_whatever_comes_is_an_error_of_the_ledger(note: bytes) -> None:
    for shape in (note, note + EXAMPLE[EXAMPLE.index(b"\n\n") :], EXAMPLE + note + b"\n"):
        if shape not in {EXAMPLE, EXAMPLE + b"\n"}:
            with pytest.raises(LedgerError):
                open_note(shape, [NoteVerifier.parse(EXAMPLE_VKEY)])


@pytest.mark.parametrize(
    "text",
    ["", "no end", "a\r\n", "a\x00\n", "a\tb\n", "\ud800\n", "a\x1f\n", "a" * MAX_NOTE + "\n"],
    ids=["empty", "no end", "CR", "NUL", "tab", "surrogate", "control", "huge"],
)
def test_texts_that_no_note_has(text: str) -> None:
    with pytest.raises(LedgerError):
        note_with(text, verifier(), KEY.sign(text.encode(errors="surrogatepass")))
    if text:
        raw = text.encode(errors="surrogatepass")
        with pytest.raises(LedgerError):
            open_note(raw + b"\n" + line("example.com/log", verifier().key_id, KEY.sign(raw)), [verifier()])


def test_a_note_is_not_made_with_a_signature_of_another_key() -> None:
    with pytest.raises(LedgerError, match="not by the key"):
        note_with("text\n", verifier(), OTHER.sign(b"text\n"))


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a+b", "a\u00a0b", "a\u2003b", "a\u2028b", "a\nb", "a\x00b", "\ud800", "é" * 128, "a" * 256],
    ids=ascii,
)
def test_names_that_no_key_has(name: str) -> None:
    with pytest.raises(LedgerError):
        verifier(name=name)
    with pytest.raises(LedgerError):
        NoteVerifier.parse(verifier().vkey().replace("example.com/log", name))
    if name != "\ud800":
        with pytest.raises(LedgerError):
            open_note(signed("text\n") + line(name, b"\x00" * 4, b"\x00" * 64), [verifier()])


def test_the_longest_name() -> None:
    name = "é" * 127 + "a"
    assert open_note(signed("text\n", name=name), [verifier(name=name)])[0] == "text\n"


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        "example.com/foo+530d903a",
        "example.com/foo+530d903a+",
        "example.com/foo+530D903A+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/bar+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+0530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+\u066530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        EXAMPLE_VKEY + "\n",
        EXAMPLE_VKEY + "=",
        EXAMPLE_VKEY + "+",
        EXAMPLE_VKEY[:-4],
        " " + EXAMPLE_VKEY,
        EXAMPLE_VKEY.replace("+Ae", "+BO"),
        EXAMPLE_VKEY.replace("+Ae", "+Au"),
        ECDSA_VKEY.replace("+Aj", "+AT"),
        ECDSA_VKEY[:-1],
        ECDSA_VKEY[:-2] + "d=",
        "example.com/foo+530d903a+" + "A" * 2000,
    ],
    ids=lambda vkey: vkey[:60],
)
def test_verifier_keys_that_are_none(vkey: str) -> None:
    with pytest.raises(LedgerError):
        NoteVerifier.parse(vkey)


def test_a_verifier_key_with_the_id_of_another() -> None:
    with pytest.raises(LedgerError, match="id is not that of its key"):
        NoteVerifier.parse(EXAMPLE_VKEY.replace("530d903a", "530d903b"))


def test_a_key_has_one_verifier_key() -> None:
    """Compressed points and RSA keys are not written into verifier keys, and are not read."""
    key = NoteVerifier.parse(ECDSA_VKEY).key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    prefix = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)[:23]
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes([0x30, 57]) + prefix[2:23] + bytes([0x03, 34, 0x00]) + point
    rsa_key = rsa.generate_private_key(65537, 2048).public_key()
    for der in (compressed, rsa_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)):
        encoded = base64.b64encode(b"\x02" + der).decode()
        with pytest.raises(LedgerError):
            NoteVerifier.parse(f"name+{hashlib.sha256(der).hexdigest()[:8]}+{encoded}")
        with pytest.raises(LedgerError):
            NoteVerifier.parse(f"name+c0d23d6a+{encoded}")


def test_signatures_by_unknown_keys_are_ignored() -> None:
    ours = verifier()
    junk = line("witness.example", ours.key_id, b"\x01" * 64)
    same_name = line(ours.name, b"\x00" * 4, b"\x01" * 5000)
    note = signed("text\n")
    with_others = note.replace("— ".encode(), junk + junk + "— ".encode()) + same_name
    assert open_note(with_others, [ours]) == ("text\n", [ours])
    with pytest.raises(LedgerError, match="no signature by a known key"):
        open_note(with_others, [verifier(OTHER)])
    with pytest.raises(LedgerError, match="no signature by a known key"):
        open_note(with_others, [])


def test_a_wrong_signature_by_a_known_key_spoils_the_note() -> None:
    ours, witness = verifier(), verifier(OTHER, "witness.example")
    note = signed("text\n") + line(witness.name, witness.key_id, OTHER.sign(b"other text\n"))
    assert open_note(note, [ours])[1] == [ours]
    with pytest.raises(LedgerError, match=r"wrong signature by the key witness\.example"):
        open_note(note, [ours, witness])


def test_a_key_signs_once() -> None:
    ours = verifier()
    note = signed("text\n")
    twice = note + line(ours.name, ours.key_id, KEY.sign(b"text\n"))
    with pytest.raises(LedgerError, match="two signatures"):
        open_note(twice, [ours])
    wrong = note + line(ours.name, ours.key_id, OTHER.sign(b"text\n"))
    with pytest.raises(LedgerError):
        open_note(wrong, [ours])


def test_two_keys_with_one_name_and_id() -> None:
    ours = verifier()
    forged = NoteVerifier(ours.name, ours.key_id, OTHER.public_key())
    assert open_note(signed("text\n"), [ours, verifier()])[1] == [ours]
    with pytest.raises(LedgerError, match="Two known keys"):
        open_note(signed("text\n"), [ours, forged])


@pytest.mark.parametrize(("others", "accepted"), [(15, True), (99, True), (100, False), (5000, False)])
def test_how_many_signatures_a_note_may_have(others: int, accepted: bool) -> None:
    note = b"".join((signed("text\n"), *(line(f"witness{n}", b"\x01" * 4, b"\x02" * 64) for n in range(others))))
    if accepted:
        assert open_note(note, [verifier()])[0] == "text\n"
    else:
        with pytest.raises(LedgerError, match="more than 100"):
            open_note(note, [verifier()])


def test_sixteen_known_signatures_of_the_largest_kind() -> None:
    keys = [ed25519.Ed25519PrivateKey.generate() for _ in range(16)]
    verifiers = [verifier(key, f"witness{n}") for n, key in enumerate(keys)]
    note = b"text\n\n" + b"".join(
        line(by.name, by.key_id, key.sign(b"text\n")) + line(by.name, b"\x00" * 4, b"\x01" * 5000)
        for by, key in zip(verifiers, keys, strict=True)
    )
    assert open_note(note, verifiers) == ("text\n", verifiers)


def test_huge_notes_are_refused_before_they_are_read() -> None:
    with pytest.raises(LedgerError, match="at most"):
        open_note(signed("text\n") + b"\x00" * MAX_NOTE, [verifier()])


def test_the_last_empty_line_ends_the_text() -> None:
    text = "one\n\n— example.com/log AAAA\n\n\n"
    assert open_note(signed(text), [verifier()])[0] == text


@pytest.mark.parametrize(
    "change",
    [
        (b"\xe2\x80\x94 ", b"- "),
        (b"\xe2\x80\x94 ", b"\xe2\x80\x94"),
        (b"\xe2\x80\x94 ", b"\xe2\x80\x94  "),
        (b"\xe2\x80\x94 ", b" \xe2\x80\x94 "),
        (b"foo ", b"foo  "),
        (b"foo ", b"foo\t"),
        (b"aQM=\n", b"aQM=\r\n"),
        (b"aQM=\n", b"aQM= \n"),
        (b"aQM=\n", b"aQM\n"),
        (b"aQM=\n", b"aQN=\n"),
        (b"aQM=\n", b"aQM==\n"),
        (b"aQM=\n", b"aQM="),
        (b"aQM=\n", b"aQM=\n\n"),
        (b"aQM=\n", b"aQM=\ntext\n"),
        (b"aQM=\n", b"aQM=\n\xff"),
        (b"/foo Uw", b"/foo U-"),
        (b"\n\n", b"\n"),
    ],
)
def test_malformed_signature_lines(change: tuple[bytes, bytes]) -> None:
    note = EXAMPLE.replace(*change)
    assert note != EXAMPLE
    with pytest.raises(LedgerError):
        open_note(note, [NoteVerifier.parse(EXAMPLE_VKEY)])


@pytest.mark.parametrize("prefix", ["", "- ", "\u2013 ", "\u2014", "\u2014\u00a0", " \u2014 "], ids=ascii)
def test_every_signature_line_begins_with_a_dash(prefix: str) -> None:
    """Also one by a key that nobody knows."""
    witness = line("witness", b"\x00" * 4, b"\x01" * 64)
    assert open_note(signed("text\n") + witness, [verifier()])[0] == "text\n"
    with pytest.raises(LedgerError):
        open_note(signed("text\n") + prefix.encode() + witness.removeprefix("\u2014 ".encode()), [verifier()])


def test_signatures_without_a_signature() -> None:
    for data in (b"", b"\x00" * 4):
        with pytest.raises(LedgerError):
            open_note(signed("text\n") + line("witness", data, b""), [verifier()])


def test_the_checkpoint_of_the_specification() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root[:4].hex() == "0ac5186a"
    assert checkpoint.text() == text


origins = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32)]), min_size=1, max_size=60
)


@given(origins, st.integers(1, MAX_SIZE), st.binary(min_size=32, max_size=32), st.lists(origins, max_size=3))
def test_checkpoints_have_one_form(origin: str, size: int, root: bytes, extensions: list[str]) -> None:
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.parse(checkpoint.text()) == checkpoint


def test_the_empty_tree_has_one_root() -> None:
    assert Checkpoint.parse(Checkpoint("log", 0, EMPTY_ROOT).text()).size == 0
    with pytest.raises(LedgerError):
        Checkpoint("log", 0, ROOT).text()
    with pytest.raises(LedgerError):
        Checkpoint.parse(Checkpoint("log", 1, ROOT).text().replace("1", "0", 1))


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 1, ROOT),
        Checkpoint("a\nb", 1, ROOT),
        Checkpoint("a\rb", 1, ROOT),
        Checkpoint("\ud800", 1, ROOT),
        Checkpoint("a" * 256, 1, ROOT),
        Checkpoint("a", -1, ROOT),
        Checkpoint("a", MAX_SIZE + 1, ROOT),
        Checkpoint("a", 1, ROOT[1:]),
        Checkpoint("a", 1, b""),
        Checkpoint("a", 1, ROOT, ("",)),
        Checkpoint("a", 1, ROOT, ("b\n",)),
        Checkpoint("a", 1, ROOT, ("b" * MAX_NOTE,)),
    ],
    ids=lambda checkpoint: repr(checkpoint)[:40],
)
def test_checkpoints_that_are_not_written(checkpoint: Checkpoint) -> None:
    with pytest.raises(LedgerError):
        checkpoint.text()


GOOD = Checkpoint("log", 17, ROOT).text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "log\n17\n",
        GOOD[:-1],
        GOOD + "\n",
        GOOD + "extension",
        "\n" + GOOD,
        GOOD.replace("\n", "\r\n"),
        *(
            GOOD.replace("17", size)
            for size in (
                "",
                "017",
                "+17",
                "-17",
                " 17",
                "17 ",
                "1_7",
                "0x11",
                "1.7",
                "\u0661\u0667",
                "9" * 19,
                "9" * 400,
            )
        ),
        GOOD.replace("=", ""),
        GOOD.replace("8=", "9="),
        GOOD.replace("8=", "8=="),
        GOOD.replace("A", "-", 1),
        GOOD.replace("AAEC", "AAECAAEC"),
        "x" * (MAX_NOTE + 1),
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_checkpoints_that_are_not_read(text: str) -> None:
    with pytest.raises(LedgerError):
        Checkpoint.parse(text)
