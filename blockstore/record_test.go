package blockstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fill returns n bytes that count up from first: vectors must be reproducible by hand.
func fill(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func id32(first byte) [32]byte { return [32]byte(fill(first, 32)) }
func id16(first byte) [16]byte { return [16]byte(fill(first, 16)) }

func sampleCommit() *CommitPublic {
	parent := CommitID(id32(0x50))
	return &CommitPublic{
		Features:  [3]uint64{0, 1, 1 << 40},
		Image:     id32(1),
		Era:       1,
		Term:      300,
		Sequence:  70000,
		Parent:    &parent,
		Lease:     id32(2),
		Keyring:   SmallRef{ID: id32(3), Length: 900},
		Epochs:    []EpochMaster{{ID: id16(4), Master: id32(5)}, {ID: id16(6), Master: id32(7)}},
		Root:      &RootRef{Level: 2, ID: id32(8), Length: 5000, Subtree: 1 << 33},
		Snapshots: &SmallRef{ID: id32(9), Length: 300},
		Absorbed:  12,
		ImageKey:  SmallRef{ID: id32(10), Length: 800},
	}
}

func seal(h Header, body []byte) []byte { return append(AppendHeader(nil, h), body...) }

func mustEncode(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func sampleCommitRecord(c *CommitPublic) []byte {
	h := Header{Suite: SuiteAES256GCM, Kind: KindCommit, Epoch: id16(6), Salt: id32(11), Public: mustEncode(EncodeCommitPublic(c))}
	return seal(h, append(fill(0x80, 48), fill(0xc0, 64)...))
}

func firstCommit() *CommitPublic {
	c := sampleCommit()
	c.Parent, c.Root, c.Snapshots = nil, nil, nil
	c.Epochs = c.Epochs[:1]
	return c
}

func sampleNode() NodePublic {
	return NodePublic{Level: 1, Children: []Ref{
		{ID: id32(1), Length: 4000, Subtree: 4000},
		{ID: id32(2), Length: 5000, Subtree: 1 << 40},
	}}
}

func samplePatch() NodePublic {
	return NodePublic{Patch: true, Children: []Ref{{ID: id32(3), Length: 70000, Subtree: 70000}}}
}

func sampleNodeRecord(p NodePublic) []byte {
	kind := KindInner
	if p.Level == 0 {
		kind = KindLeaf
	}
	return seal(Header{Suite: SuiteChaCha20Poly1305, Kind: kind, Epoch: id16(1), Salt: id32(2), Public: AppendNodePublic(nil, p)}, fill(0x90, 100))
}

func sampleTableRecord() []byte {
	p := SnapshotPublic{{ID: id32(1), Tag: id16(2)}, {ID: id32(3), Tag: id16(4)}}
	return seal(Header{Suite: SuiteAES256GCM, Kind: KindSnapshotTable, Epoch: id16(1), Salt: id32(2), Public: AppendSnapshotPublic(nil, p)}, fill(0x90, 60))
}

func sampleLease(first bool) []byte {
	l := &Lease{Image: id32(1), Era: 1, Term: 5, Holder: id32(2)}
	if !first {
		previous, last := LeaseID(id32(3)), CommitID(id32(4))
		l.Previous, l.LastCommit = &previous, &last
	}
	return append(mustEncode(EncodeLease(l)), fill(0xc0, 64)...)
}

func sampleSegment() []byte {
	h := SegmentHeader{Suite: SuiteAES256GCM, FrameLog: 12, Epoch: id16(1), Salt: id32(2),
		Lengths: []uint32{64 + 16, EncodingZstd<<28 | 256 + 16, EncodingRaw<<28 | 4096 + 16}}
	return append(AppendSegmentHeader(nil, h), fill(0, 64+16+256+16+4096+16)...)
}

func vectors() map[string][]byte {
	return map[string][]byte{
		"commit":         sampleCommitRecord(sampleCommit()),
		"commit-first":   sampleCommitRecord(firstCommit()),
		"lease":          sampleLease(false),
		"lease-first":    sampleLease(true),
		"inner":          sampleNodeRecord(sampleNode()),
		"leaf-patch":     sampleNodeRecord(samplePatch()),
		"leaf-empty":     sampleNodeRecord(NodePublic{}),
		"snapshot-table": sampleTableRecord(),
		"segment":        sampleSegment(),
	}
}

// The vectors were written once by this encoder; from then on they decide.
func TestVectors(t *testing.T) {
	dir := filepath.Join("testdata", "vectors")
	want := vectors()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(want) {
		t.Errorf("%d files in %s, want %d", len(entries), dir, len(want))
	}
	for name, b := range want {
		text, err := os.ReadFile(filepath.Join(dir, name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		raw := readVector(t, name, string(text))
		if !bytes.Equal(b, raw) {
			t.Errorf("%s: encoded\n%x\nwant\n%x", name, b, raw)
		}
		if err := reencodes(raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// readVector reads a vector: header lines "key: value" of known keys, an empty line,
// and hex to the end.
func readVector(t *testing.T, name, text string) []byte {
	t.Helper()
	head, body, ok := strings.Cut(text, "\n\n")
	if !ok {
		t.Fatalf("%s: no empty line after the header", name)
	}
	seen := map[string]string{}
	for _, line := range strings.Split(head, "\n") {
		key, value, _ := strings.Cut(line, ": ")
		if key != "record" && key != "note" {
			t.Fatalf("%s: unknown key %q", name, key)
		}
		seen[key] = value
	}
	if seen["record"] != name {
		t.Fatalf("%s: it says it is %q", name, seen["record"])
	}
	raw, err := hex.DecodeString(strings.Join(strings.Fields(body), ""))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return raw
}

// reencodes parses a record of any kind and reports whether it encodes to the same
// bytes. Anything but an ErrCorrupt, an ErrFormat or sameness is a fault.
func reencodes(b []byte) error {
	var again []byte
	var err error
	switch {
	case bytes.HasPrefix(b, []byte("SDsg")):
		var h SegmentHeader
		var body []byte
		if h, _, _, body, err = ParseSegmentHeader(b); err == nil {
			again = append(AppendSegmentHeader(nil, h), body...)
		}
	case bytes.HasPrefix(b, []byte("SDls")):
		var l *LeaseRecord
		if l, err = ParseLease(b); err == nil {
			again, err = EncodeLease(&l.Lease)
			again = append(again, l.Signature...)
		}
	case len(b) > 6 && Kind(b[6]) == KindCommit:
		var c *CommitRecord
		if c, err = ParseCommit(b); err == nil {
			h := c.Header
			if h.Public, err = EncodeCommitPublic(&c.CommitPublic); err == nil {
				again = append(seal(h, c.Sealed), c.Signature...)
			}
		}
	default:
		var h Header
		var sealed []byte
		if h, _, sealed, err = ParseRecord(b); err == nil {
			if h.Public, err = againPublic(h); err == nil {
				again = seal(h, sealed)
			}
		}
	}
	if err == nil && !bytes.Equal(again, b) {
		return errors.New("it encodes to other bytes")
	}
	return err
}

func againPublic(h Header) ([]byte, error) {
	switch h.Kind {
	case KindLeaf, KindInner:
		p, err := ParseNodePublic(h.Public)
		return AppendNodePublic(nil, p), err
	case KindSnapshotTable:
		p, err := ParseSnapshotPublic(h.Public)
		return AppendSnapshotPublic(nil, p), err
	}
	return h.Public, nil
}

// Every cut, and every flip of a byte that a parser looks at, is refused or parses as
// something that encodes to the same bytes.
func TestDamagedRecords(t *testing.T) {
	for name, b := range vectors() {
		for n := range b {
			if err := reencodes(b[:n]); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("%s cut to %d: %v", name, n, err)
			}
		}
		for i := range min(len(b), 700) {
			for _, x := range []byte{1, 0x80, 0xff} {
				d := bytes.Clone(b)
				d[i] ^= x
				if err := reencodes(d); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
					t.Fatalf("%s, byte %d ^ %#x: %v", name, i, x, err)
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	at := func(b []byte, i int, v byte) []byte {
		b = bytes.Clone(b)
		b[i] = v
		return b
	}
	commit := func(change func(c *CommitPublic)) []byte {
		c := sampleCommit()
		change(c)
		h := Header{Suite: 1, Kind: KindCommit, Public: mustEncode(encodeCBOR(commitWire{1, *c}))}
		return seal(h, make([]byte, 80))
	}
	node := func(p NodePublic) []byte { return sampleNodeRecord(p) }
	ref := func(first byte) Ref { return Ref{ID: id32(first), Length: 10, Subtree: 10} }
	seg, inner, lease := sampleSegment(), sampleNodeRecord(sampleNode()), sampleLease(false)
	tests := []struct {
		name string
		b    []byte
		want error
	}{
		{"record version 2", at(inner, 4, 2), ErrFormat},
		{"suite 3", at(inner, 5, 3), ErrFormat},
		{"kind 7", at(inner, 6, 7), ErrFormat},
		{"reserved byte", at(inner, 7, 1), ErrCorrupt},
		{"public part beyond the end", at(inner, 56, 1), ErrCorrupt},
		{"children out of order", node(NodePublic{Children: []Ref{ref(2), ref(1)}}), ErrCorrupt},
		{"child twice", node(NodePublic{Children: []Ref{ref(2), ref(2)}}), ErrCorrupt},
		{"patch of level 1", node(NodePublic{Level: 1, Patch: true, Children: []Ref{ref(2)}}), ErrCorrupt},
		{"level 5", node(NodePublic{Level: 5, Children: []Ref{ref(2)}}), ErrCorrupt},
		{"subtree smaller than the child", node(NodePublic{Children: []Ref{{ID: id32(1), Length: 10, Subtree: 9}}}), ErrCorrupt},
		{"unknown incompatible feature", commit(func(c *CommitPublic) { c.Features[0] = 4 }), ErrFormat},
		{"no epoch", commit(func(c *CommitPublic) { c.Epochs = []EpochMaster{} }), ErrCorrupt},
		{"epoch twice", commit(func(c *CommitPublic) { c.Epochs[1] = c.Epochs[0] }), ErrCorrupt},
		{"257 epochs", commit(func(c *CommitPublic) { c.Epochs = make([]EpochMaster, 257) }), ErrCorrupt},
		{"keyring too long", commit(func(c *CommitPublic) { c.Keyring.Length = MaxTable + 1 }), ErrCorrupt},
		{"root of level 5", commit(func(c *CommitPublic) { c.Root.Level = 5 }), ErrCorrupt},
		{"commit of 64 KiB + 1", append(sampleCommitRecord(sampleCommit()), make([]byte, MaxCommit)...), ErrCorrupt},
		{"segment version 2", at(seg, 4, 2), ErrFormat},
		{"hash 2", at(seg, 6, 2), ErrFormat},
		{"frames of 2 KiB", at(seg, 7, 11), ErrCorrupt},
		{"frames of 256 KiB", at(seg, 7, 18), ErrCorrupt},
		{"one frame", at(seg, 11, 1), ErrCorrupt},
		{"258 frames", at(at(seg, 10, 1), 11, 2), ErrCorrupt},
		{"reserved of a segment", at(seg, 12, 1), ErrCorrupt},
		{"compressed runs", at(seg, 64, 0x10), ErrFormat},
		{"encoding 3", at(seg, 68, 0x30), ErrFormat},
		{"a byte too many", append(bytes.Clone(seg), 0), ErrCorrupt},
		{"lease version 2", at(lease, 4, 2), ErrFormat},
		{"reserved of a lease", at(lease, 7, 2), ErrCorrupt},
		{"lease length", at(lease, 11, 9), ErrCorrupt},
	}
	for _, test := range tests {
		if err := reencodes(test.b); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

// What a lenient CBOR reader would take for the same commit is refused.
func TestCommitEncodingIsUnique(t *testing.T) {
	good := mustEncode(EncodeCommitPublic(firstCommit()))
	swap := func(old, with string) []byte {
		o, w := mustEncode(hex.DecodeString(old)), mustEncode(hex.DecodeString(with))
		if bytes.Count(good, o) != 1 {
			t.Fatalf("%s occurs %d times", old, bytes.Count(good, o))
		}
		return bytes.Replace(good, o, w, 1)
	}
	for name, public := range map[string][]byte{
		"integer longer than needed": swap("04010519012c", "0418010519012c"),
		"keys out of order":          swap("04010519012c", "0519012c0401"),
		"key twice":                  append(append([]byte{0xb0}, good[1:]...), 0x0f, 0xf6),
		"unknown key":                append(append([]byte{0xb0}, good[1:]...), 0x18, 0x1e, 0x00),
		"missing key":                append([]byte{0xae}, good[1:bytes.LastIndex(good, []byte{0x0f, 0x82})]...),
		"trailing byte":              append(bytes.Clone(good), 0),
		"null for an integer":        swap("04010519012c", "04f60519012c"),
		"indefinite map":             append(append([]byte{0xbf}, good[1:]...), 0xff),
		"nothing":                    nil,
	} {
		raw := seal(Header{Suite: 1, Kind: KindCommit, Public: public}, make([]byte, 80))
		if _, err := ParseCommit(raw); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
	}
}

func TestPositionOrder(t *testing.T) {
	ascending := []Position{{}, {0, 0, 1}, {0, 1, 0}, {0, 1, 9}, {1, 0, 0}, {1, 0, 1}, {2, 0, 0}}
	for i, p := range ascending {
		for j, q := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := p.Compare(q); got != want {
				t.Errorf("%v and %v: got %d, want %d", p, q, got, want)
			}
		}
	}
}

func TestParseIDs(t *testing.T) {
	id := ImageID(id32(7))
	if got, err := ParseImageID(id.String()); got != id || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", "00", id.String() + "00", strings.Replace(id.String(), "0", "g", 1)} {
		if _, err := ParseImageID(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}
