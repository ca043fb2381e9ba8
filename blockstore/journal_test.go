package blockstore

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const testJournal = 1 << 20

func journalHeader(first byte) []byte { return append(fill(first, 176), make([]byte, 4096-176)...) }

func newJournal(t testing.TB, s *Store, image ImageID, n JournalNumber) *Journal {
	t.Helper()
	j, err := s.CreateJournal(image, n, journalHeader(byte(n)), testJournal)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func readJournal(t testing.TB, s *Store, image ImageID, n JournalNumber) []byte {
	t.Helper()
	r, err := s.OpenJournal(image, n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestJournal(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	j := newJournal(t, s, image, 3)
	want := journalHeader(3)
	for _, n := range []int{4096, 8192, testJournal, 4096} { // the third outgrows the file
		b := bytes.Repeat([]byte{byte(n >> 12)}, n)
		off, err := j.Append(b)
		if off != int64(len(want)) || err != nil {
			t.Fatalf("append: offset %d, %v, want %d", off, err, len(want))
		}
		want = append(want, b...)
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := j.Append(make([]byte, 100)); err == nil {
		t.Error("an append of 100 bytes was taken")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(make([]byte, 4096)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: got %v, want ErrClosed", err)
	}
	s = reopen(t, s)
	got := readJournal(t, s, image, 3)
	if !bytes.Equal(got[:len(want)], want) {
		t.Error("the journal reads back differently")
	}
	if rest := got[len(want):]; !bytes.Equal(rest, make([]byte, len(rest))) {
		t.Error("room of a new file is not zero")
	}
}

func TestJournalsAreListed(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	if ns, err := s.Journals(image); len(ns) != 0 || err != nil {
		t.Errorf("none: got %v, %v", ns, err)
	}
	for _, n := range []JournalNumber{10, 9, 1 << 63} {
		newJournal(t, s, image, n).Close()
	}
	if ns, err := s.Journals(image); !slices.Equal(ns, []JournalNumber{9, 10, 1 << 63}) || err != nil {
		t.Errorf("got %v, %v", ns, err)
	}
	if _, err := s.CreateJournal(image, 9, journalHeader(1), testJournal); !errors.Is(err, ErrExists) {
		t.Errorf("created again: got %v, want ErrExists", err)
	}
	if got := readJournal(t, s, image, 9); got[0] != 9 {
		t.Error("the refused creation changed the journal")
	}
	if _, err := s.OpenJournal(image, 11); !errors.Is(err, ErrNotFound) {
		t.Errorf("open: got %v, want ErrNotFound", err)
	}
	if err := s.RemoveJournal(image, 11); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove: got %v, want ErrNotFound", err)
	}
	if err := os.WriteFile(filepath.Join(s.journalDir(image), "notes"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Journals(image); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a foreign file: got %v, want ErrCorrupt", err)
	}
}

func TestJournalFilesAreRecycled(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	j := newJournal(t, s, image, 1)
	if _, err := j.Append(bytes.Repeat([]byte{7}, 4096)); err != nil {
		t.Fatal(err)
	}
	j.Close()
	before, err := os.Stat(filepath.Join(s.journalDir(image), JournalNumber(1).String()))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveJournal(image, 1); err != nil {
		t.Fatal(err)
	}
	if ns, _ := s.Journals(image); len(ns) != 0 {
		t.Errorf("journals left: %v", ns)
	}
	newJournal(t, s, image, 2).Close()
	after, err := os.Stat(filepath.Join(s.journalDir(image), JournalNumber(2).String()))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the retired file was not taken: %v", err)
	}
	if got := readJournal(t, s, image, 2); !bytes.Equal(got[:4096], journalHeader(2)) {
		t.Error("the header is not the new one")
	}
	for n := range JournalNumber(2 * poolFiles) {
		newJournal(t, s, image, 100+n).Close()
	}
	for n := range JournalNumber(2 * poolFiles) {
		if err := s.RemoveJournal(image, 100+n); err != nil {
			t.Fatal(err)
		}
	}
	if entries, _ := os.ReadDir(s.pool()); len(entries) != poolFiles {
		t.Errorf("%d files in the pool, want %d", len(entries), poolFiles)
	}
}

func TestFailedSyncEndsJournalAndStore(t *testing.T) {
	s := newStore(t)
	j := newJournal(t, s, ImageID{1}, 1)
	j.f.Close() // the next fdatasync fails
	if err := j.Sync(); !errors.Is(err, ErrFailed) {
		t.Errorf("sync: got %v, want ErrFailed", err)
	}
	if _, err := j.Append(make([]byte, 4096)); !errors.Is(err, ErrFailed) {
		t.Errorf("append: got %v, want ErrFailed", err)
	}
	if err := s.PutObjects(t.Context(), []Object{object(10)}); !errors.Is(err, ErrFailed) {
		t.Errorf("put: got %v, want ErrFailed", err)
	}
	if err := s.Close(); !errors.Is(err, ErrFailed) {
		t.Errorf("close: got %v, want ErrFailed", err)
	}
}
