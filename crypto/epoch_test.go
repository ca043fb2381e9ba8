package crypto

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestMasterIsNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := EpochID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		secret := [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret"))
		got, want := newEpoch(id, secret).Master(), naiveMaster(naiveParents(id[:], secret[:]))
		if got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// An odd last value moves up as it is, at every level.
func TestFold(t *testing.T) {
	pair := func(a, b [32]byte) [32]byte { return fold([][32]byte{a, b}) }
	v := make([][32]byte, 7)
	for i := range v {
		v[i][0] = byte(i)
	}
	leaf := func(n int) [][32]byte { return append([][32]byte(nil), v[:n]...) }
	for n, want := range map[int][32]byte{
		1: v[0],
		3: pair(pair(v[0], v[1]), v[2]),
		4: pair(pair(v[0], v[1]), pair(v[2], v[3])),
		5: pair(pair(pair(v[0], v[1]), pair(v[2], v[3])), v[4]),
		7: pair(pair(pair(v[0], v[1]), pair(v[2], v[3])), pair(pair(v[4], v[5]), v[6])),
	} {
		if got := fold(leaf(n)); got != want {
			t.Errorf("fold of %d = %x, want %x", n, got, want)
		}
	}
}

func TestConfirm(t *testing.T) {
	e := NewEpoch()
	m := e.Master()
	if err := e.Confirm(m); err != nil {
		t.Errorf("own master key: %v", err)
	}
	for i := range m {
		bad := m
		bad[i] ^= 1
		if err := e.Confirm(bad); !errors.Is(err, ErrMasterKey) {
			t.Errorf("byte %d changed: %v, want ErrMasterKey", i, err)
		}
	}
	if err := NewEpoch().Confirm(m); !errors.Is(err, ErrMasterKey) {
		t.Errorf("another epoch: %v, want ErrMasterKey", err)
	}
	sameID := newEpoch(e.ID(), [32]byte{1})
	if err := sameID.Confirm(m); !errors.Is(err, ErrMasterKey) {
		t.Errorf("another secret: %v, want ErrMasterKey", err)
	}
}

// Whatever differs in what a key is derived from, the key differs.
func TestKeysDiffer(t *testing.T) {
	e, salt := NewEpoch(), NewSalt()
	keys := make(map[Key]string)
	add := func(k Key, name string) {
		t.Helper()
		if other, ok := keys[k]; ok {
			t.Errorf("%s has the key of %s", name, other)
		}
		keys[k] = name
	}
	for _, p := range []Purpose{PurposeSegment, PurposeLeaf, PurposeInner, PurposeCommit,
		PurposeSnapshots, PurposeDepMap, PurposeJournal, PurposeSnapshotTag} {
		for _, r := range []Region{0, 1, 255, 256, 257, 512, NoRegion - 1, NoRegion} {
			add(e.Key(p, r, salt), fmt.Sprintf("%s %d", p, r))
		}
	}
	add(e.Key(PurposeSegment, 0, NewSalt()), "salt")
	add(NewEpoch().Key(PurposeSegment, 0, salt), "epoch")
	add(newEpoch(e.ID(), [32]byte{1}).Key(PurposeSegment, 0, salt), "secret")
	add(e.Key(PurposeSegment, 0, salt, []byte{0}), "context 0")
	add(e.Key(PurposeSegment, 0, salt, []byte{0, 0}), "context 00")

	same := e.Key(PurposeSegment, 0, salt, []byte("ab"), nil, []byte("c"))
	if got := e.Key(PurposeSegment, 0, salt, []byte("abc")); got != same {
		t.Error("context is not joined")
	}
}

func TestParentKeysDiffer(t *testing.T) {
	e := NewEpoch()
	e.deriveParents()
	seen := make(map[[32]byte]bool)
	for _, p := range e.parents {
		seen[p] = true
	}
	if len(seen) != 257 {
		t.Errorf("%d distinct parent keys, want 257", len(seen))
	}
}

func TestEpochConcurrent(t *testing.T) {
	e := NewEpoch()
	want := newEpoch(e.id, *e.secret)
	salt := NewSalt()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if e.Key(PurposeLeaf, Region(i), salt) != want.Key(PurposeLeaf, Region(i), salt) {
				t.Error("key differs")
			}
			if e.Master() != want.Master() {
				t.Error("master key differs")
			}
		})
	}
	wg.Wait()
}

func TestKeyAllocs(t *testing.T) {
	e, salt := NewEpoch(), NewSalt()
	header := bytes.Repeat([]byte{1}, 32)
	if n := testing.AllocsPerRun(100, func() { e.Key(PurposeSegment, 1, salt, header) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
