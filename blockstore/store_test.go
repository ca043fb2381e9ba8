package blockstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

const testReserve = 8 << 20

// newStore makes and opens a store that is closed with the test.
func newStore(t testing.TB) *Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := Create(dir, Options{Reserve: testReserve}); err != nil {
		t.Fatal(err)
	}
	return openStore(t, dir)
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir, Options{Reserve: testReserve})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
			t.Error(err)
		}
	})
	return s
}

func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return openStore(t, s.Dir())
}

// object returns n random bytes under their id.
func object(n int) Object {
	b := make([]byte, n)
	rand.Read(b)
	return Object{ID: IDOf(b), Bytes: b}
}

// cheapObject returns n bytes under an id that is not their hash, quickly.
func cheapObject(r *mrand.Rand, buf []byte) Object {
	var o Object
	for i := 0; i < len(o.ID); i += 8 {
		binary.BigEndian.PutUint64(o.ID[i:], r.Uint64())
	}
	o.Bytes = buf
	copy(o.Bytes, o.ID[:])
	return o
}

func put(t testing.TB, s *Store, objs ...Object) {
	t.Helper()
	if err := s.PutObjects(t.Context(), objs); err != nil {
		t.Fatal(err)
	}
}

func wantObject(t testing.TB, s *Store, o Object) {
	t.Helper()
	err := s.Get(t.Context(), o.ID, func(b []byte) error {
		if string(b) != string(o.Bytes) {
			t.Errorf("object %v: got %d bytes, want other %d", o.ID, len(b), len(o.Bytes))
		}
		return nil
	})
	if err != nil {
		t.Errorf("object %v: %v", o.ID, err)
	}
}

func wantAbsent(t testing.TB, s *Store, id ObjectID) {
	t.Helper()
	err := s.Get(t.Context(), id, func([]byte) error { return nil })
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("object %v: got %v, want ErrNotFound", id, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := Create(dir, Options{Reserve: testReserve}); err != nil {
		t.Fatalf("empty directory: %v", err)
	}
	if err := Create(dir, Options{Reserve: testReserve}); !errors.Is(err, ErrExists) {
		t.Errorf("a store: got %v, want ErrExists", err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "thesis.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(other, Options{}); err == nil {
		t.Error("a directory with somebody's file was taken")
	}
	if _, err := os.Stat(filepath.Join(other, "badger")); err == nil {
		t.Error("the refused directory was changed")
	}
}

func TestOpenNoStore(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), dir, Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("opening made %v", entries)
	}
}

func TestStoreIDStays(t *testing.T) {
	s := newStore(t)
	id := s.ID()
	s = reopen(t, s)
	if s.ID() != id || id == (StoreID{}) {
		t.Errorf("got %v after reopening, want %v", s.ID(), id)
	}
	if _, err := os.Stat(filepath.Join(s.Dir(), "reserve")); err != nil {
		t.Error(err)
	}
}

func TestObjects(t *testing.T) {
	s := newStore(t)
	var objs []Object
	for _, n := range []int{1, 1023, 1024, 1025, 4096, 65536, 1 << 20, MaxSegment} {
		objs = append(objs, object(n))
	}
	for range 5000 { // more than one of Badger's transactions
		objs = append(objs, object(1100))
	}
	put(t, s, objs...)
	absent := object(10)
	for range 2 {
		for _, o := range objs {
			wantObject(t, s, o)
			if n, err := s.Size(o.ID); n != int64(len(o.Bytes)) || err != nil {
				t.Fatalf("size %d, %v, want %d", n, err, len(o.Bytes))
			}
		}
		wantAbsent(t, s, absent.ID)
		if ok, err := s.Has(absent.ID); ok || err != nil {
			t.Errorf("absent: has %v, %v", ok, err)
		}
		s = reopen(t, s)
	}
	if got := s.counts.objects.Load(); got != int64(len(objs)) {
		t.Errorf("%d objects counted, want %d", got, len(objs))
	}
	ids := []ObjectID{objs[0].ID, objs[5].ID, absent.ID}
	if err := s.DeleteObjects(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		wantAbsent(t, s, id)
	}
	if got := s.counts.objects.Load(); got != int64(len(objs)-2) {
		t.Errorf("%d objects counted, want %d", got, len(objs)-2)
	}
}

func TestPutRefusesSizes(t *testing.T) {
	s := newStore(t)
	for _, n := range []int{0, MaxSegment + 1} {
		if err := s.PutObjects(t.Context(), []Object{{Bytes: make([]byte, n)}}); err == nil {
			t.Errorf("%d bytes were taken", n)
		}
	}
	if err := s.PutObjects(t.Context(), nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

func TestPutRepairs(t *testing.T) {
	s := newStore(t)
	o := object(5000)
	bad := Object{ID: o.ID, Bytes: append([]byte("x"), o.Bytes...)}
	put(t, s, bad)
	put(t, s, o)
	wantObject(t, s, o)
	if got := s.counts.objects.Load(); got != 1 {
		t.Errorf("%d objects counted, want 1", got)
	}
}

func TestGetPassesErrorsOn(t *testing.T) {
	s := newStore(t)
	o := object(5000)
	put(t, s, o)
	mine := errors.New("mine")
	if err := s.Get(t.Context(), o.ID, func([]byte) error { return mine }); err != mine {
		t.Errorf("got %v, want the callback's error", err)
	}
	func() {
		defer func() {
			if r := recover(); r != "bug" {
				t.Errorf("recovered %v, want the callback's panic", r)
			}
		}()
		s.Get(t.Context(), o.ID, func([]byte) error { panic("bug") })
	}()
	wantObject(t, s, o)
}

func TestComplete(t *testing.T) {
	s := newStore(t)
	a, b := object(2000), object(2000)
	put(t, s, a, b)
	if err := s.MarkComplete(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if ok, err := s.IsComplete(a.ID); !ok || err != nil {
			t.Errorf("a: %v, %v", ok, err)
		}
		if ok, err := s.IsComplete(b.ID); ok || err != nil {
			t.Errorf("b: %v, %v", ok, err)
		}
		s = reopen(t, s)
	}
	if err := s.DeleteObjects(t.Context(), []ObjectID{a.ID}); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.IsComplete(a.ID); ok || err != nil {
		t.Errorf("after deletion: %v, %v", ok, err)
	}
}

func TestClosed(t *testing.T) {
	s := newStore(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.PutObjects(t.Context(), []Object{object(10)}); !errors.Is(err, ErrClosed) {
		t.Errorf("put: got %v, want ErrClosed", err)
	}
	if _, err := s.Has(ObjectID{}); !errors.Is(err, ErrClosed) {
		t.Errorf("has: got %v, want ErrClosed", err)
	}
}

func TestFailedStoreStops(t *testing.T) {
	s := newStore(t)
	(&badgerLog{s: s, log: s.opt.Logger}).Errorf("Error while curlf sync: %v\n", errors.New("I/O"))
	o := object(10)
	for name, err := range map[string]error{
		"put":    s.PutObjects(t.Context(), []Object{o}),
		"get":    s.Get(t.Context(), o.ID, func([]byte) error { return nil }),
		"delete": s.DeleteObjects(t.Context(), []ObjectID{o.ID}),
		"err":    s.Err(),
		"close":  s.Close(),
	} {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("%s: got %v, want ErrFailed", name, err)
		}
	}
}

// A buffer of a batch is not used again before what is in it was stored.
func TestBatchBuffers(t *testing.T) {
	s := newStore(t)
	b := NewBatch(t.Context(), s)
	var want []Object
	for i := range 60 { // more than two batches of 8 MiB
		o := object(300_000 + i)
		buf := append(b.Buffer(len(o.Bytes)), o.Bytes...)
		if err := b.AddBuffer(Object{ID: o.ID, Bytes: buf}); err != nil {
			t.Fatal(err)
		}
		want = append(want, o)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, o := range want {
		wantObject(t, s, o)
	}
}

// A put that failed beside its gatherer is told to it, and to Flush.
func TestBatchTellsOfFailure(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := NewBatch(ctx, s)
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		err = b.Add(object(1_000_000 + i))
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Add: %v, want %v", err, context.Canceled)
	}
	if err := b.Flush(); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush: %v, want %v", err, context.Canceled)
	}
	if err := b.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	if st, err := s.Stats(); err != nil || st.Objects != 0 {
		t.Errorf("%d objects, %v", st.Objects, err)
	}
}

// TestFind: an object's place gives the bytes that Get shows, also after the store was
// opened again; small objects, which Badger keeps elsewhere, and absent ones have none.
func TestFind(t *testing.T) {
	s := newStore(t)
	objects := []Object{object(100), object(valueThreshold - 1), object(valueThreshold), object(16383), object(20_000), object(MaxSegment)}
	put(t, s, objects...)
	for range 2 {
		for _, o := range objects {
			p, ok, err := s.Find(o.ID)
			if err != nil || ok != (len(o.Bytes) >= valueThreshold) {
				t.Fatalf("object of %d bytes: %v, %v", len(o.Bytes), ok, err)
			}
			if !ok {
				continue
			}
			got := make([]byte, p.Size())
			if err := p.ReadAt(got, 0); err != nil || !bytes.Equal(got, o.Bytes) {
				t.Errorf("object of %d bytes: %d bytes that are others, %v", len(o.Bytes), len(got), err)
			}
		}
		if _, ok, err := s.Find(ObjectID{1}); ok || err != nil {
			t.Errorf("an absent object: %v, %v", ok, err)
		}
		s = reopen(t, s)
	}
}

// TestHasOf: an object is not taken for one of another length, wherever Badger keeps it.
func TestHasOf(t *testing.T) {
	s := newStore(t)
	for _, n := range []int{30, 100, 1000, 1 << 16, 1 << 20} {
		b := make([]byte, n)
		o := Object{ID: IDOf(b), Bytes: b}
		if here, err := s.HasOf(o.ID, uint32(n)); here || err != nil {
			t.Errorf("%d bytes that are not there: %v, %v", n, here, err)
		}
		if err := s.PutObjects(context.Background(), []Object{o}); err != nil {
			t.Fatal(err)
		}
		if here, err := s.HasOf(o.ID, uint32(n)); !here || err != nil {
			t.Errorf("%d bytes: %v, %v", n, here, err)
		}
		for _, other := range []int{n - 11, n + 11, 1 << 31} {
			if here, err := s.HasOf(o.ID, uint32(other)); here || !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d bytes said to be %d: %v, %v", n, other, here, err)
			}
		}
	}
}
