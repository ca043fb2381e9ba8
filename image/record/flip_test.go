package record

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// sample is one small record and what a reader does with it.
type sample struct {
	name  string
	bytes []byte
	open  func(b []byte) error
}

// samples returns one of each kind. The journal's ends where its second record ends.
func samples(t testing.TB, w world) []sample {
	t.Helper()
	ok := must(t)
	leaf := &Leaf{Region: 5, Base: -1, Objects: []LeafObject{
		{Ref: blockstore.Ref{ID: fill32(1), Length: 9000, Subtree: 9000}, Epoch: w.seal.Epoch.ID(), FrameLog: 15, Sectors: 2},
	}, Extents: []Extent{{0, 2, 0, 0}}}
	inner := &Inner{Level: 1, Index: 2, Children: []Child{{Ref: blockstore.Ref{Length: 100, Subtree: 200}}}}
	store := blockstore.StoreID{7}
	catalogue := &Catalogue{Counter: 5, Entries: []Entry{{Name: "web"}}}
	segment, salt, _, err := w.seal.Segment(nil, 5, []Run{{3, 1}}, make([]byte, SectorSize), 12)
	ok(segment, err)
	return []sample{
		{"segment", segment, func(b []byte) error {
			s, err := OpenSegment(w.seal.Epoch, 5, salt, b)
			if err != nil {
				return err
			}
			if _, err := s.Runs(); err != nil {
				return err
			}
			_, err = readAll(s)
			return err
		}},
		{"leaf", ok(w.seal.Leaf(leaf)), func(b []byte) error {
			_, err := OpenLeaf(w.keys, b, 5)
			return err
		}},
		{"inner node", ok(w.seal.Inner(inner)), func(b []byte) error {
			_, err := OpenInner(w.keys, b, 1, 2)
			return err
		}},
		{"commit", ok(w.seal.Commit(smallCommit(w), w.sign)), func(b []byte) error {
			if _, err := OpenCommit(w.keys, b); err != nil {
				return err
			}
			p, err := blockstore.ParseCommit(b)
			if err == nil && !crypto.Verify(w.host.Public(), crypto.SignCommit, p.Signed, p.Signature) {
				err = crypto.ErrAuth
			}
			return err
		}},
		{"snapshot table", ok(w.seal.Snapshots([]Snapshot{{Name: "a", Time: time.Unix(1, 0)}})), func(b []byte) error {
			_, err := OpenSnapshots(w.keys, b)
			return err
		}},
		{"dependency map", ok(w.seal.DepMap(&DepMap{Startup: []Range{{Length: 5}}})), func(b []byte) error {
			_, err := OpenDepMap(w.keys, b)
			return err
		}},
		{"catalogue", ok(SealCatalogue(w.seal.Suite, store, w.host.CatalogueKey, catalogue)), func(b []byte) error {
			_, err := OpenCatalogue(store, w.host.CatalogueKey, b)
			return err
		}},
	}
}

// known says that an error is one of those that callers tell apart.
func known(err error) bool {
	return errors.Is(err, blockstore.ErrCorrupt) || errors.Is(err, blockstore.ErrFormat) ||
		errors.Is(err, crypto.ErrAuth) || errors.Is(err, ErrNoEpoch)
}

func TestEveryBitFlipIsRefused(t *testing.T) {
	for _, suite := range []crypto.Suite{crypto.AES256GCM, crypto.ChaCha20Poly1305} {
		w := newWorld().withSuite(suite)
		for _, s := range samples(t, w) {
			if err := s.open(s.bytes); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			for i := range 8 * len(s.bytes) {
				s.bytes[i/8] ^= 1 << (i % 8)
				if err := s.open(s.bytes); !known(err) {
					t.Errorf("%s, %v, bit %d: %v", s.name, suite, i, err)
				}
				s.bytes[i/8] ^= 1 << (i % 8)
			}
		}
	}
}

func TestEveryCutIsRefused(t *testing.T) {
	w := newWorld()
	for _, s := range samples(t, w) {
		for n := range s.bytes {
			if err := s.open(s.bytes[:n]); !known(err) {
				t.Errorf("%s cut to %d bytes: %v", s.name, n, err)
			}
		}
		if err := s.open(append(slices.Clone(s.bytes), 0)); !known(err) {
			t.Errorf("%s with a byte more: %v", s.name, err)
		}
	}
}

// TestPartsOfVersionsDoNotMix puts the front of one version before the rest of another.
func TestPartsOfVersionsDoNotMix(t *testing.T) {
	w := newWorld()
	one, two := samples(t, w), samples(t, w)
	for i := range one {
		a, b := one[i], two[i]
		if len(a.bytes) != len(b.bytes) {
			continue
		}
		for n := range a.bytes {
			mixed := append(slices.Clone(a.bytes[:n]), b.bytes[n:]...)
			if bytes.Equal(mixed, a.bytes) || bytes.Equal(mixed, b.bytes) {
				continue
			}
			if err := a.open(mixed); !known(err) {
				t.Errorf("%s, cut at %d: %v", a.name, n, err)
			}
		}
	}
}

func TestKindsAreNotMistaken(t *testing.T) {
	w := newWorld()
	all := samples(t, w)
	for _, a := range all {
		for _, b := range all {
			if err := a.open(b.bytes); (err == nil) != (a.name == b.name) || err != nil && !known(err) {
				t.Errorf("a %s as a %s: %v", b.name, a.name, err)
			}
		}
	}
}

func TestOtherKeyringIsRefused(t *testing.T) {
	w := newWorld()
	all := samples(t, w)
	w.keys.Epochs = w.keys.Epochs[:1]
	for _, s := range all {
		if s.name == "segment" || s.name == "catalogue" {
			continue
		}
		if err := s.open(s.bytes); !errors.Is(err, ErrNoEpoch) {
			t.Errorf("%s: %v, want %v", s.name, err, ErrNoEpoch)
		}
	}
}
