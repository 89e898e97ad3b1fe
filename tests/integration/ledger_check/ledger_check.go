// A second opinion on notes, tiles and proofs, with golang.org/x/mod/sumdb: ledger_check COMMAND <QUESTION >ANSWER.
// Both are JSON. An answer that is an error is {"error": "..."}.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

type hashes = []tlog.Hash

// A proof that index is in a tree of size (leaf is set), or that a tree of size began as one of old (oldRoot is set).
type proof struct {
	Size    int64      `json:"size"`
	Root    tlog.Hash  `json:"root"`
	Index   int64      `json:"index"`
	Leaf    *tlog.Hash `json:"leaf"`
	Old     int64      `json:"old"`
	OldRoot *tlog.Hash `json:"old_root"`
	Proof   hashes     `json:"proof"`
}

// The text of a note that these keys signed, and the names of the keys.
func open(question struct {
	Note  string
	Vkeys []string
}) (any, error) {
	var verifiers []note.Verifier
	for _, vkey := range question.Vkeys {
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return nil, err
		}
		verifiers = append(verifiers, verifier)
	}
	opened, err := note.Open([]byte(question.Note), note.VerifierList(verifiers...))
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, signature := range opened.Sigs {
		names = append(names, signature.Name)
	}
	return map[string]any{"text": opened.Text, "names": names}, nil
}

// A witness's key, for cosignature/v1 as C2SP tlog-cosignature has it: an Ed25519 signature over the time and the note's text.
type witness struct {
	name string
	id   uint32
	key  ed25519.PublicKey
	time uint64
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.id }
func (w *witness) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	w.time = binary.BigEndian.Uint64(signature)
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", w.time, text)
	return ed25519.Verify(w.key, []byte(message), signature[8:])
}

func newWitness(vkey string) (*witness, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("malformed witness key")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 33 || key[0] != 4 {
		return nil, errors.New("no cosignature key")
	}
	hash := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	if hex.EncodeToString(hash[:4]) != parts[1] {
		return nil, errors.New("wrong key id")
	}
	return &witness{name: parts[0], id: binary.BigEndian.Uint32(hash[:4]), key: key[1:]}, nil
}

// The text of a note that this log and these witnesses signed, and when each witness did.
func cosigned(question struct {
	Note      string
	Vkey      string
	Witnesses []string
}) (any, error) {
	verifier, err := note.NewVerifier(question.Vkey)
	if err != nil {
		return nil, err
	}
	verifiers, times := []note.Verifier{verifier}, map[string]uint64{}
	witnesses := map[string]*witness{}
	for _, vkey := range question.Witnesses {
		known, err := newWitness(vkey)
		if err != nil {
			return nil, err
		}
		verifiers, witnesses[known.name] = append(verifiers, known), known
	}
	opened, err := note.Open([]byte(question.Note), note.VerifierList(verifiers...))
	if err != nil {
		return nil, err
	}
	for _, signature := range opened.Sigs {
		if known := witnesses[signature.Name]; known != nil {
			times[signature.Name] = known.time
		}
	}
	return map[string]any{"text": opened.Text, "times": times}, nil
}

// A note with that text and a signature by a new key of each of these names.
func sign(question struct {
	Text  string
	Names []string
}) (any, error) {
	var signers []note.Signer
	vkeys := []string{}
	for _, name := range question.Names {
		skey, vkey, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			return nil, err
		}
		signer, err := note.NewSigner(skey)
		if err != nil {
			return nil, err
		}
		signers, vkeys = append(signers, signer), append(vkeys, vkey)
	}
	signed, err := note.Sign(&note.Note{Text: question.Text}, signers...)
	return map[string]any{"note": string(signed), "vkeys": vkeys}, err
}

// C2SP has left out the tile height of sumdb's paths, and calls the level of the entries otherwise.
func ours(tile tlog.Tile) string {
	path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
	return strings.Replace(path, "tile/data/", "tile/entries/", 1)
}

// Level (-1: entries), number and width of each path, or null where it is none.
func parse(question struct{ Paths []string }) (any, error) {
	tiles := []any{}
	for _, path := range question.Paths {
		theirs := strings.Replace(path, "tile/entries/", "tile/data/", 1)
		tile, err := tlog.ParseTilePath(strings.Replace(theirs, "tile/", fmt.Sprintf("tile/%d/", height), 1))
		if err != nil || ours(tile) != path {
			tiles = append(tiles, nil)
			continue
		}
		tiles = append(tiles, []any{tile.L, tile.N, tile.W})
	}
	return tiles, nil
}

// The paths of the tiles that a tree needs when it has grown to each size from the one before, and the first from 0. Sumdb
// names every partial tile on the way too: only those of the new size count.
func tiles(question struct{ Sizes []int64 }) (any, error) {
	answer := [][]string{}
	old := int64(0)
	for _, size := range question.Sizes {
		paths := []string{}
		for _, tile := range tlog.NewTiles(height, old, size) {
			grew := old>>uint(height*tile.L) < size>>uint(height*tile.L)
			last := tile.N<<height+int64(tile.W) == size>>uint(height*tile.L)
			if grew && (tile.W == 1<<height || last) {
				paths = append(paths, ours(tile))
			}
		}
		answer = append(answer, paths)
		old = size
	}
	return answer, nil
}

// The roots of the sizes and the proofs for the pairs (index or old size, size) over the entries.
func prove(question struct {
	Entries   [][]byte
	Sizes     []int64
	Inclusion [][2]int64
	Growth    [][2]int64
}) (any, error) {
	var stored hashes
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found hashes
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	for number, entry := range question.Entries {
		more, err := tlog.StoredHashes(int64(number), entry, reader)
		if err != nil {
			return nil, err
		}
		stored = append(stored, more...)
	}
	roots := hashes{}
	for _, size := range question.Sizes {
		root, err := tlog.TreeHash(size, reader)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	inclusion, growth := []hashes{}, []hashes{}
	for _, pair := range question.Inclusion {
		proof, err := tlog.ProveRecord(pair[1], pair[0], reader)
		if err != nil {
			return nil, err
		}
		inclusion = append(inclusion, append(hashes{}, proof...))
	}
	for _, pair := range question.Growth {
		proof, err := tlog.ProveTree(pair[1], pair[0], reader)
		if err != nil {
			return nil, err
		}
		growth = append(growth, append(hashes{}, proof...))
	}
	return map[string]any{"roots": roots, "inclusion": inclusion, "growth": growth}, nil
}

// Whether each proof holds.
func check(question struct{ Proofs []proof }) (any, error) {
	answer := []bool{}
	for _, p := range question.Proofs {
		var err error
		if p.Leaf != nil {
			err = tlog.CheckRecord(p.Proof, p.Size, p.Root, p.Index, *p.Leaf)
		} else {
			err = tlog.CheckTree(p.Proof, p.Size, p.Root, p.Old, *p.OldRoot)
		}
		answer = append(answer, err == nil)
	}
	return answer, nil
}

// The root of a tree of each size whose entries are all the same.
func uniform(question struct {
	Entry []byte
	Sizes []int64
}) (any, error) {
	heights := hashes{tlog.RecordHash(question.Entry)}
	for len(heights) < 64 {
		top := heights[len(heights)-1]
		heights = append(heights, tlog.NodeHash(top, top))
	}
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found hashes
		for _, index := range indexes {
			level, _ := tlog.SplitStoredHashIndex(index)
			found = append(found, heights[level])
		}
		return found, nil
	})
	roots := hashes{}
	for _, size := range question.Sizes {
		root, err := tlog.TreeHash(size, reader)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	return roots, nil
}

// Tiles as they are served, by path.
type served map[string][]byte

func (s served) Height() int                         { return height }
func (s served) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (s served) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, tile := range tiles {
		found, ok := s[ours(tile)]
		if !ok {
			return nil, fmt.Errorf("%s is not served", ours(tile))
		}
		data = append(data, found)
	}
	return data, nil
}

// What an auditor does: opens the checkpoint, authenticates the tiles against its root, and finds every entry of the bundles
// in them, each with a proof. Gives how many entries there were.
func audit(question struct {
	Vkey       string
	Checkpoint string
	Tiles      served
}) (any, error) {
	verifier, err := note.NewVerifier(question.Vkey)
	if err != nil {
		return nil, err
	}
	opened, err := note.Open([]byte(question.Checkpoint), note.VerifierList(verifier))
	if err != nil {
		return nil, err
	}
	// Sumdb's own checkpoints have a fixed first line.
	origin, rest, _ := strings.Cut(opened.Text, "\n")
	if origin != verifier.Name() {
		return nil, errors.New("another origin")
	}
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n" + rest))
	if err != nil {
		return nil, err
	}
	reader := tlog.TileHashReader(tree, question.Tiles)
	for first := int64(0); first < tree.N; first += 1 << height {
		bundle := tlog.Tile{H: height, L: -1, N: first >> height, W: 1 << height}
		if tree.N-first < 1<<height {
			bundle.W = int(tree.N - first)
		}
		data := question.Tiles[ours(bundle)]
		for number := 0; number < bundle.W; number++ {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("%s is cut off", ours(bundle))
			}
			length := 2 + int(binary.BigEndian.Uint16(data))
			index, leaf := first+int64(number), tlog.RecordHash(data[2:length])
			data = data[length:]
			proof, err := tlog.ProveRecord(tree.N, index, reader)
			if err != nil {
				return nil, err
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, leaf); err != nil {
				return nil, fmt.Errorf("entry %d: %w", index, err)
			}
		}
		if len(data) != 0 {
			return nil, fmt.Errorf("%s is too long", ours(bundle))
		}
	}
	return tree.N, nil
}

func answer[Question any](work func(Question) (any, error)) func() (any, error) {
	return func() (any, error) {
		var question Question
		decoder := json.NewDecoder(os.Stdin)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&question); err != nil {
			log.Fatal(err)
		}
		return work(question)
	}
}

func main() {
	commands := map[string]func() (any, error){
		"open": answer(open), "sign": answer(sign), "parse": answer(parse), "tiles": answer(tiles), "prove": answer(prove),
		"check": answer(check), "cosigned": answer(cosigned), "uniform": answer(uniform), "audit": answer(audit),
	}
	result, err := commands[os.Args[1]]()
	if err != nil {
		result = map[string]string{"error": err.Error()}
	}
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(result); err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(out.Bytes())
}
