package blockstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// scattered fills value logs with objects and deletes three of four of them, here and there.
func scattered(t *testing.T, s *Store, n int) (kept, gone []Object) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	for range n {
		o := object(200_000 + rng.IntN(300_000))
		put(t, s, o)
		if rng.IntN(4) == 0 {
			kept = append(kept, o)
		} else {
			gone = append(gone, o)
		}
	}
	if err := s.DeleteObjects(t.Context(), ids(gone)); err != nil {
		t.Fatal(err)
	}
	return kept, gone
}

func valueLogs(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "badger", "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestReclaimEmpties: what lives in value logs that are mostly dead is moved, and comes through
// starts after that.
func TestReclaimEmpties(t *testing.T) {
	s := newStore(t)
	kept, gone := scattered(t, s, 600) // about 200 MiB
	before := len(valueLogs(t, s.Dir()))
	if _, err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.DeadBytes > st.LiveBytes {
		t.Errorf("live %d MiB, dead %d MiB, in %d value logs of %d", st.LiveBytes>>20, st.DeadBytes>>20, len(valueLogs(t, s.Dir())), before)
	}
	for range 2 {
		for _, o := range kept {
			wantObject(t, s, o)
		}
		for _, o := range gone {
			if ok, err := s.Has(o.ID); ok || err != nil {
				t.Fatalf("a deleted object is back: %v, %v", ok, err)
			}
		}
		s = reopen(t, s)
	}
}

// TestReclaimBesideDeletion: what is deleted while it is moved does not come back, and what is
// read meanwhile is right.
func TestReclaimBesideDeletion(t *testing.T) {
	s := newStore(t)
	kept, _ := scattered(t, s, 600)
	half := len(kept) / 2
	done := make(chan error, 1)
	go func() {
		_, err := s.Reclaim(context.WithoutCancel(t.Context()))
		done <- err
	}()
	for i := range half {
		if err := s.DeleteObjects(t.Context(), []ObjectID{kept[i].ID}); err != nil {
			t.Fatal(err)
		}
		wantObject(t, s, kept[half+i])
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i, o := range kept {
		if ok, err := s.Has(o.ID); ok != (i >= half) || err != nil {
			t.Errorf("object %d: %v, %v", i, ok, err)
		}
	}
}

// TestReclaimOfDamaged: a value log with a flipped bit in what lives is left alone, and so
// is all else that lives in it.
func TestReclaimOfDamaged(t *testing.T) {
	s := newStore(t)
	s.reclaiming.Lock() // else the store itself may have moved it already
	kept, _ := scattered(t, s, 600)
	path := flipBit(t, s, kept[0])
	before := len(valueLogs(t, s.Dir()))
	s.reclaiming.Unlock()
	if _, err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := len(valueLogs(t, s.Dir())); after >= before {
		t.Errorf("%d value logs of %d are left: the damaged one is in the way of the others", after, before)
	}
	if !slices.Contains(valueLogs(t, s.Dir()), path) {
		t.Error("the damaged value log is gone")
	}
	for _, o := range kept[1:] {
		wantObject(t, s, o)
	}
	err := s.Get(t.Context(), kept[0].ID, func(b []byte) error {
		if IDOf(b) == kept[0].ID {
			return errors.New("not damaged")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// flipBit changes an object where it lies in a value log, and says in which.
func flipBit(t *testing.T, s *Store, o Object) string {
	t.Helper()
	for _, path := range valueLogs(t, s.Dir()) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(raw, o.Bytes[:64])
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{o.Bytes[1000] ^ 1}, int64(at)+1000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Fatal("the object is in no value log")
	return ""
}

// TestLivesComparesValues: Badger may give a version again that a crash took back, so what is
// not named by its content lives only if the value is the same.
func TestLivesComparesValues(t *testing.T) {
	s := newStore(t)
	key, value := []byte("l-test"), bytes.Repeat([]byte{1}, 2*valueThreshold)
	err := s.batch(t.Context(), 1<<20, true, func(wb *badger.WriteBatch) error { return wb.Set(key, value) })
	if err != nil {
		t.Fatal(err)
	}
	txn := s.db.NewTransaction(false)
	defer txn.Discard()
	item, err := txn.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	version := item.Version()
	for _, tt := range []struct {
		key     string
		value   []byte
		version uint64
		want    bool
	}{
		{"l-test", value, version, true},
		{"l-test", value, version + 1, false},
		{"l-test", value[1:], version, false},
		{"l-none", value, version, false},
	} {
		if got, err := s.lives(txn, []byte(tt.key), tt.value, tt.version); got != tt.want || err != nil {
			t.Errorf("%s, %d bytes, version %d: %v, %v, want %v", tt.key, len(tt.value), tt.version, got, err, tt.want)
		}
	}
}
