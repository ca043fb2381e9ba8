package record

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// A vector is a header of "key: value" lines, an empty line, and the record in hex.
// They were made once; testdata/vectors/README.md says what the keys mean.
type vector struct {
	name   string
	header map[string]string
	bytes  []byte
}

var vectorKeys = []string{
	"record", "note", "expect", "identity", "image", "hostkey", "epochs", "region", "salt", "runs", "sha256",
	"level", "index", "store", "body", "find", "operations", "offsets",
}

func readVector(t *testing.T, path string) *vector {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := &vector{name: filepath.Base(path), header: map[string]string{}}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && lines.Text() != "" {
		k, value, ok := strings.Cut(lines.Text(), ": ")
		if !ok || v.header[k] != "" || !slices.Contains(vectorKeys, k) {
			t.Fatalf("%s: header line %q", v.name, lines.Text())
		}
		v.header[k] = value
	}
	for lines.Scan() {
		b, err := hex.DecodeString(lines.Text())
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		v.bytes = append(v.bytes, b...)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vector) hex(t *testing.T, key string) []byte {
	t.Helper()
	b, err := hex.DecodeString(v.header[key])
	if err != nil {
		t.Fatalf("%s: %s: %v", v.name, key, err)
	}
	return b
}

func (v *vector) number(t *testing.T, key string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(v.header[key], 10, 64)
	if err != nil {
		t.Fatalf("%s: %s: %v", v.name, key, err)
	}
	return n
}

// vectorWorld opens the keyring that all vectors were sealed with.
func vectorWorld(t *testing.T) world {
	t.Helper()
	v := readVector(t, filepath.Join("testdata", "vectors", "keyring.txt"))
	ids, err := crypto.ParseIdentities(strings.NewReader(v.header["identity"]+"\n"), crypto.Prompt{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := crypto.OpenKeyring(v.bytes, [32]byte(v.hex(t, "image")), ids)
	if err != nil {
		t.Fatal(err)
	}
	host, err := crypto.ParseHostKey(v.hex(t, "hostkey"))
	if err != nil {
		t.Fatal(err)
	}
	return world{keys: k, seal: Seal{Suite: crypto.AES256GCM, Epoch: k.Newest()}, host: host}
}

func TestVectors(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "vectors", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	w := vectorWorld(t)
	seen := map[string]int{} // "kind expectation"
	for _, path := range files {
		v := readVector(t, path)
		if v.header["record"] == "keyring" {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			err := w.check(t, v)
			if got := expectation(err); got != v.header["expect"] {
				t.Errorf("%s (%v), want %s", got, err, v.header["expect"])
			}
		})
		seen[v.header["record"]+" "+v.header["expect"]]++
	}
	for _, kind := range []string{"segment", "leaf", "inner", "commit", "snapshots", "depmap", "catalogue", "journal"} {
		if seen[kind+" ok"] == 0 || seen[kind+" corrupt"] == 0 {
			t.Errorf("%s: %d good and %d corrupt vectors", kind, seen[kind+" ok"], seen[kind+" corrupt"])
		}
	}
}

func expectation(err error) string {
	// An error may be corrupt and auth at once: the first counts.
	for _, e := range []struct {
		text string
		is   error
	}{
		{"corrupt", blockstore.ErrCorrupt}, {"format", blockstore.ErrFormat},
		{"auth", crypto.ErrAuth}, {"no epoch", ErrNoEpoch},
	} {
		if errors.Is(err, e.is) {
			return e.text
		}
	}
	if err == nil {
		return "ok"
	}
	return err.Error()
}

// check opens a vector's record. What opens must be what the header says.
func (w world) check(t *testing.T, v *vector) error {
	switch v.header["record"] {
	case "segment":
		return w.checkSegmentVector(t, v)
	case "leaf":
		l, err := OpenLeaf(w.keys, v.bytes, v.number(t, "region"))
		if err != nil {
			return err
		}
		return v.same(t, w, blockstore.KindLeaf, crypto.Region(l.Region), func() ([]byte, error) {
			_, b, err := l.encode()
			return b, err
		})
	case "inner":
		n, err := OpenInner(w.keys, v.bytes, uint8(v.number(t, "level")), v.number(t, "index"))
		if err != nil {
			return err
		}
		return v.same(t, w, blockstore.KindInner, crypto.NoRegion, func() ([]byte, error) {
			_, b, err := n.encode()
			return b, err
		})
	case "commit":
		c, err := OpenCommit(w.keys, v.bytes)
		if err != nil {
			return err
		}
		p, err := blockstore.ParseCommit(v.bytes)
		if err != nil {
			return err
		}
		if !crypto.Verify(w.host.Public(), crypto.SignCommit, p.Signed, p.Signature) {
			return crypto.ErrAuth
		}
		return sameBody(v.hex(t, "body"), c.encode)
	case "snapshots":
		list, err := OpenSnapshots(w.keys, v.bytes)
		if err != nil {
			return err
		}
		if id, ok, err := FindSnapshot(w.keys, v.bytes, v.header["find"]); !ok || err != nil || id != list[0].Commit {
			t.Errorf("find: %v, %v, %v", id, ok, err)
		}
		return v.same(t, w, blockstore.KindSnapshotTable, crypto.NoRegion, nil)
	case "depmap":
		m, err := OpenDepMap(w.keys, v.bytes)
		if err != nil {
			return err
		}
		return v.same(t, w, blockstore.KindDepMap, crypto.NoRegion, m.encode)
	case "catalogue":
		c, err := OpenCatalogue(blockstore.StoreID(v.hex(t, "store")), w.host.CatalogueKey, v.bytes)
		if err != nil {
			return err
		}
		return sameBody(v.hex(t, "body"), c.encode)
	case "journal":
		return w.checkJournalVector(t, v)
	}
	return fmt.Errorf("a %q", v.header["record"])
}

func sameBody(want []byte, encode func() ([]byte, error)) error {
	got, err := encode()
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("body %x, want %x", got, want)
	}
	return err
}

// same checks the plaintext against the vector's, and what was read of it against both.
func (v *vector) same(t *testing.T, w world, kind blockstore.Kind, r crypto.Region, encode func() ([]byte, error)) error {
	_, body, err := open(nil, w.keys, v.bytes, kind, r)
	if err != nil {
		return err
	}
	want := v.hex(t, "body")
	if !bytes.Equal(body, want) {
		return fmt.Errorf("body %x, want %x", body, want)
	}
	if encode == nil {
		return nil
	}
	return sameBody(want, encode)
}

func (w world) checkSegmentVector(t *testing.T, v *vector) error {
	s, err := OpenSegment(w.seal.Epoch, v.number(t, "region"), crypto.Salt(v.hex(t, "salt")), v.bytes)
	if err != nil {
		return err
	}
	runs, err := s.Runs()
	if err != nil {
		return err
	}
	if err := s.Expect(total(runs)); err != nil {
		return err
	}
	data, err := readAll(s)
	if err != nil {
		return err
	}
	if got := fmt.Sprint(runs); got != v.header["runs"] {
		return fmt.Errorf("runs %s, want %s", got, v.header["runs"])
	}
	return sameDigest(v, data)
}

func sameDigest(v *vector, data []byte) error {
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != v.header["sha256"] {
		return fmt.Errorf("data of %d bytes has digest %x, want %s", len(data), got, v.header["sha256"])
	}
	return nil
}

func (w world) checkJournalVector(t *testing.T, v *vector) error {
	s, err := NewJournalScanner(w.keys, bytes.NewReader(v.bytes), int64(len(v.bytes)), nil)
	if err != nil {
		return err
	}
	var all []Op
	var data []byte
	var offsets []int64
	for {
		ops, d, off, err := s.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		all, data, offsets = append(all, ops...), append(data, d...), append(offsets, off)
	}
	if got := fmt.Sprint(all); got != v.header["operations"] {
		t.Errorf("operations %s, want %s", got, v.header["operations"])
	}
	if got := fmt.Sprint(offsets); got != v.header["offsets"] {
		t.Errorf("offsets %s, want %s", got, v.header["offsets"])
	}
	return sameDigest(v, data)
}
