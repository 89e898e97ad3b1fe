"""Notes, tiles and proofs, checked with code that is not ours: golang.org/x/mod/sumdb and openssl (promise P6)."""

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fakes.process import clean_environment, run_command
from fakes.softhsm import SoftToken
from fakes.tree_tiles import MemoryTiles, UniformTiles, numbered
from privyseal_ca.errors import LedgerError
from privyseal_ca.hsm.signer import PrivateKey
from privyseal_ca.ledger.cosignatures import CosignatureVerifier, cosignatures, cosigned_message, merged
from privyseal_ca.ledger.note import MAX_SIZE, Checkpoint, NoteVerifier, note_with, open_note
from privyseal_ca.ledger.proofs import consistency_proof, inclusion_proof, verify_consistency, verify_inclusion
from privyseal_ca.ledger.tiles import TilePath, root_of, tiles_between

_SOURCE = Path(__file__).parent / "ledger_check" / "ledger_check.go"

Ask = Callable[..., Any]

ENTRIES = numbered(1100)
TREE = MemoryTiles(ENTRIES)
LEAVES = TREE.levels[0]
#: All small sizes, those about the ends of tiles, and some between.
SIZES = sorted(
    {*range(1, 18), *range(254, 260), *range(510, 515), *range(1022, 1027), 100, 300, 700, 767, 768, 1099, 1100}
)
#: Pairs of an index, or an old size, and a size.
INCLUSION = [
    (index, size)
    for size in SIZES
    for index in sorted({0, 1, size // 3, size // 2, 255, 256, size - 1})
    if index < size
]
GROWTH = [(old, new) for new in SIZES for old in SIZES if old <= new]


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Puts a question to the Go program, built with the sources of Debian's packages, and gives its answer."""
    folder = tmp_path_factory.mktemp("ledger-check")
    environment = clean_environment(
        GO111MODULE="off", GOPATH="/usr/share/gocode", GOCACHE=str(folder / "cache"), GOFLAGS="", GOTOOLCHAIN="local"
    )
    program, question_file = folder / "ledger_check", folder / "question"
    run_command("go", "build", "-o", program, _SOURCE, env=environment, timeout=300)

    def put(command: str, **question: Any) -> Any:
        question_file.write_text(json.dumps(question), encoding="utf-8")
        return json.loads(run_command("sh", "-c", 'exec "$0" "$1" <"$2"', program, command, question_file).stdout)

    return put


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unb64(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


def ed25519_log(name: str = "example.com/log") -> tuple[NoteVerifier, Callable[[str], bytes]]:
    """A verifier, and what makes a note that it verifies."""
    key = ed25519.Ed25519PrivateKey.generate()
    verifier = NoteVerifier.for_key(name, key.public_key())
    return verifier, lambda text: note_with(text, verifier, key.sign(text.encode()))


@pytest.mark.parametrize("name", ["example.com/log", "日本.example", "a" * 255])
@pytest.mark.parametrize(
    "text", ["text\n", "one\n\n— two AAAA\n\n\n", "é\u2028\n", Checkpoint("o", 9, LEAVES[0]).text()]
)
def test_our_notes_are_opened(ask: Ask, name: str, text: str) -> None:
    verifier, sign = ed25519_log(name)
    note = sign(text).decode()
    assert ask("open", note=note, vkeys=[verifier.vkey()]) == {"text": text, "names": [name]}
    assert "error" in ask("open", note="x" + note, vkeys=[verifier.vkey()])


def test_their_notes_are_opened_by_us(ask: Ask) -> None:
    names = [f"witness{number}.example" for number in range(20)]
    signed = ask("sign", text="one\n\ntwo\n", names=names)
    verifiers = [NoteVerifier.parse(vkey) for vkey in signed["vkeys"]]
    assert [verifier.vkey() for verifier in verifiers] == signed["vkeys"]
    assert open_note(signed["note"].encode(), verifiers) == ("one\n\ntwo\n", verifiers)
    assert open_note(signed["note"].encode(), verifiers[7:8]) == ("one\n\ntwo\n", verifiers[7:8])
    with pytest.raises(LedgerError):
        open_note(signed["note"].replace("two", "too").encode(), verifiers)


def test_we_open_no_note_that_they_do_not(ask: Ask) -> None:
    """Changed at random. What we refuse and they open is repeated or has another form of base64."""
    signed = ask("sign", text="one\n\ntwo\n", names=["a", "b"])
    verifiers = [NoteVerifier.parse(vkey) for vkey in signed["vkeys"]]
    choice = random.Random(4)  # noqa: S311 (the same notes each time)
    opened = 0
    for _ in range(150):
        lines = signed["note"].split("\n")
        for _ in range(choice.randint(1, 2)):
            at, other = choice.randrange(len(lines)), choice.choice(lines)
            lines[at : at + choice.randint(0, 2)] = [choice.choice([other, "", "\r", "— c AAAAAAA=", other + "="])]
        note = "\n".join(lines)
        try:
            text, by = open_note(note.encode(), verifiers)
        except LedgerError:
            continue
        opened += 1
        theirs = ask("open", note=note, vkeys=signed["vkeys"])
        assert theirs == {"text": text, "names": [verifier.name for verifier in by]}
    assert opened > 3


async def test_a_note_signed_in_a_token(ask: Ask, soft_token: SoftToken) -> None:
    text = Checkpoint("example.com/log", 1100, root_of(TREE, 1100)).text()
    key = await soft_token.signing_key("ed25519")
    verifier = NoteVerifier.for_key("example.com/log", key.public_key)

    def work(private: PrivateKey) -> bytes:
        assert isinstance(private, ed25519.Ed25519PrivateKey)
        return private.sign(text.encode())

    note = note_with(text, verifier, await key.run(work)).decode()
    assert ask("open", note=note, vkeys=[verifier.vkey()]) == {"text": text, "names": ["example.com/log"]}


async def test_an_ecdsa_note_signed_in_a_token(soft_token: SoftToken, tmp_path: Path) -> None:
    """Sumdb has no ECDSA; openssl has."""
    text = Checkpoint("example.com/log", 1100, root_of(TREE, 1100)).text()
    key = await soft_token.signing_key("ec-p256")
    verifier = NoteVerifier.for_key("example.com/log", key.public_key)

    def work(private: PrivateKey) -> bytes:
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        return private.sign(text.encode(), ec.ECDSA(hashes.SHA256()))

    note = note_with(text, verifier, await key.run(work))
    line = note.decode().split("\n\n")[1]
    signature = base64.b64decode(line.split(" ")[2])[4:]
    for name, data in (("text", text.encode()), ("signature", signature)):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "key").write_bytes(key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    run_command(
        "openssl",
        "dgst",
        "-sha256",
        "-verify",
        tmp_path / "key",
        "-signature",
        tmp_path / "signature",
        tmp_path / "text",
    )
    id_of_openssl = run_command(
        "sh", "-c", 'openssl pkey -pubin -in "$0" -outform DER | openssl dgst -sha256 -r', tmp_path / "key"
    ).stdout
    assert id_of_openssl.startswith(verifier.key_id.hex())


def test_paths(ask: Ask) -> None:
    tiles = [
        TilePath(level, index, width)
        for level in (None, 0, 1, 9, 10, 63)
        for index in (0, 1, 999, 1000, 1234067, 999_999_999, MAX_SIZE)
        for width in (1, 9, 112, 255, 256)
    ]
    answers = ask("parse", paths=[tile.path() for tile in tiles])
    assert answers == [[-1 if tile.level is None else tile.level, tile.index, tile.width] for tile in tiles]


def test_what_is_no_path(ask: Ask) -> None:
    wrong = ["tile/0/0", "tile/0/x000/001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/00/000", "tile/0/000.p/01", "x"]
    assert ask("parse", paths=wrong) == [None] * len(wrong)
    for path in wrong:
        with pytest.raises(LedgerError):
            TilePath.parse(path)


def test_which_tiles_there_are(ask: Ask) -> None:
    sizes = [1, 5, 255, 256, 257, 257, 512, 65_535, 65_536, 65_537, 66_000, 70_000, 131_073]
    answers = ask("tiles", sizes=sizes)
    for old, new, answer in zip([0, *sizes], sizes, answers, strict=False):
        assert [tile.path() for tile in tiles_between(old, new)] == answer


def test_their_roots_and_proofs_are_ours(ask: Ask) -> None:
    sizes = list(range(1, 1101))
    answer = ask("prove", entries=[b64(entry) for entry in ENTRIES], sizes=sizes, inclusion=INCLUSION, growth=GROWTH)
    roots = dict(zip(sizes, unb64(answer["roots"]), strict=True))
    assert roots == {size: root_of(TREE, size) for size in sizes}
    for (index, size), texts in zip(INCLUSION, answer["inclusion"], strict=True):
        proof = unb64(texts)
        assert proof == inclusion_proof(TREE, index, size)
        verify_inclusion(LEAVES[index], index, size, proof, roots[size])
    for (old, new), texts in zip(GROWTH, answer["growth"], strict=True):
        proof = unb64(texts)
        assert proof == consistency_proof(TREE, old, new)
        verify_consistency(old, new, proof, roots[old], roots[new])


def inclusion_question(index: int, size: int, proof: list[bytes]) -> dict[str, Any]:
    return {
        "leaf": b64(LEAVES[index]), "index": index, "size": size, "root": b64(root_of(TREE, size)),
        "proof": [b64(item) for item in proof],
    }  # fmt: skip


def growth_question(old: int, new: int, proof: list[bytes]) -> dict[str, Any]:
    return {
        "old": old, "old_root": b64(root_of(TREE, old)), "size": new, "root": b64(root_of(TREE, new)),
        "proof": [b64(item) for item in proof],
    }  # fmt: skip


def test_they_accept_our_proofs(ask: Ask) -> None:
    proofs = [inclusion_question(index, size, inclusion_proof(TREE, index, size)) for index, size in INCLUSION]
    proofs += [growth_question(old, new, consistency_proof(TREE, old, new)) for old, new in GROWTH]
    assert ask("check", proofs=proofs) == [True] * len(proofs)


def test_they_and_we_refuse_changed_proofs(ask: Ask) -> None:
    questions, refused = [], 0
    for index, size in INCLUSION:
        proof = inclusion_proof(TREE, index, size)
        for changed in (proof[1:], proof[:-1], [*proof, LEAVES[0]], [LEAVES[-1], *proof[1:]]):
            if changed == proof:
                continue
            questions.append(inclusion_question(index, size, changed))
            with pytest.raises(LedgerError):
                verify_inclusion(LEAVES[index], index, size, changed, root_of(TREE, size))
            refused += 1
    for old, new in GROWTH:
        proof = consistency_proof(TREE, old, new)
        for changed in (proof[1:], proof[:-1], [*proof, LEAVES[0]], [LEAVES[-1], *proof[1:]]):
            if changed == proof:
                continue
            questions.append(growth_question(old, new, changed))
            with pytest.raises(LedgerError):
                verify_consistency(old, new, changed, root_of(TREE, old), root_of(TREE, new))
            refused += 1
    for old, new in GROWTH:
        # The right proof, and a size that it is not for.
        if old < new:
            questions.append({**inclusion_question(old - 1, old, inclusion_proof(TREE, old - 1, old)), "size": new * 4})
            questions.append({**growth_question(old, new, consistency_proof(TREE, old, new)), "size": new * 4})
            with pytest.raises(LedgerError):
                verify_inclusion(
                    LEAVES[old - 1], old - 1, new * 4, inclusion_proof(TREE, old - 1, old), root_of(TREE, old)
                )
            with pytest.raises(LedgerError):
                verify_consistency(
                    old, new * 4, consistency_proof(TREE, old, new), root_of(TREE, old), root_of(TREE, new)
                )
            refused += 2
    assert ask("check", proofs=questions) == [False] * refused


def test_large_trees(ask: Ask) -> None:
    """As far as sumdb's numbers reach: it counts all the nodes."""
    sizes = [2**bit + more for bit in range(17, 61, 3) for more in (-1, 0, 1, 12345)]
    tiles = UniformTiles(max(sizes))
    assert unb64(ask("uniform", entry=b64(b"same"), sizes=sizes)) == [
        root_of(UniformTiles(size), size) for size in sizes
    ]
    proofs = []
    for size in sizes:
        tiles = UniformTiles(size)
        for at in (0, size // 3, size - 1):
            common = {"size": size, "root": b64(tiles.root(size))}
            inclusion = [b64(item) for item in inclusion_proof(tiles, at, size)]
            growth = [b64(item) for item in consistency_proof(tiles, at + 1, size)]
            proofs.append({**common, "index": at, "leaf": b64(tiles.heights[0]), "proof": inclusion})
            proofs.append({**common, "old": at + 1, "old_root": b64(tiles.root(at + 1)), "proof": growth})
    assert ask("check", proofs=proofs) == [True] * len(proofs)


def served(size: int) -> dict[str, bytes]:
    """Everything that is served for a tree of ``size`` entries, by its path."""
    found: dict[str, bytes] = {}
    for tile in tiles_between(0, size):
        found[tile.path()] = TREE.data(tile)
        if tile.level == 0:
            bundle = TilePath(None, tile.index, tile.width)
            found[bundle.path()] = TREE.data(bundle)
    return found


def audit(ask: Ask, size: int, tiles: dict[str, bytes]) -> Any:
    verifier, sign = ed25519_log()
    checkpoint = sign(Checkpoint(verifier.name, size, root_of(TREE, size)).text()).decode()
    return ask(
        "audit", vkey=verifier.vkey(), checkpoint=checkpoint, tiles={path: b64(data) for path, data in tiles.items()}
    )


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 513, 600, 1100])
def test_an_auditor_needs_the_checkpoint_and_the_tiles(ask: Ask, size: int) -> None:
    assert audit(ask, size, served(size)) == size


@pytest.mark.parametrize("path", sorted(served(600)))
def test_an_auditor_finds_a_changed_tile(ask: Ask, path: str) -> None:
    tiles = served(600)
    tiles[path] = tiles[path][:-1] + bytes([tiles[path][-1] ^ 1])
    assert "error" in audit(ask, 600, tiles)


def test_cosignatures_are_what_go_verifies(ask: Ask) -> None:
    log, make = ed25519_log()
    text = Checkpoint(log.name, 9, LEAVES[0]).text()
    keys = [ed25519.Ed25519PrivateKey.generate() for _ in range(3)]
    witnesses = [
        CosignatureVerifier.for_key(name, key.public_key())
        for name, key in zip(("w1.example", "日本.example", log.name), keys, strict=True)
    ]
    lines = [
        witness.line(text, when, key.sign(cosigned_message(text, when)))
        for witness, key, when in zip(witnesses, keys, (0, 1679315147, MAX_SIZE), strict=True)
    ]
    note = merged(make(text), lines)
    vkeys = [witness.vkey() for witness in witnesses]
    answer = ask("cosigned", note=note.decode(), vkey=log.vkey(), witnesses=vkeys)
    assert answer == {"text": text, "times": cosignatures(note, witnesses)}
    assert ask("open", note=note.decode(), vkeys=[log.vkey()])["names"] == [log.name], (
        "who knows no witnesses ignores them"
    )
    altered = note.replace(b"\n9\n", b"\n8\n")
    assert "error" in ask("cosigned", note=altered.decode(), vkey=log.vkey(), witnesses=vkeys)
    forged = merged(make(text), [lines[0].replace(lines[0][-12:], lines[1][-12:])]).decode()
    assert "error" in ask("cosigned", note=forged, vkey=log.vkey(), witnesses=vkeys)
    with pytest.raises(LedgerError):
        cosignatures(forged.encode(), witnesses)
