package blockstore

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// commitRaw is a commit record of an image; nothing that it names need exist.
func commitRaw(image ImageID, seq Sequence, change func(c *CommitPublic)) []byte {
	c := firstCommit()
	c.Image, c.Sequence = image, seq
	if change != nil {
		change(c)
	}
	return sampleCommitRecord(c)
}

func mustPutCommit(t testing.TB, s *Store, image ImageID, raw []byte) CommitID {
	t.Helper()
	id, err := s.PutCommit(t.Context(), image, raw)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCommits(t *testing.T) {
	s := newStore(t)
	a, b := ImageID(id32(1)), ImageID(id32(2))
	if _, _, err := s.Head(a); !errors.Is(err, ErrNotFound) {
		t.Errorf("no head yet: got %v", err)
	}
	first, second, other := commitRaw(a, 1, nil), commitRaw(a, 2, nil), commitRaw(b, 1, nil)
	id1 := mustPutCommit(t, s, a, first)
	id2 := mustPutCommit(t, s, a, second)
	mustPutCommit(t, s, b, other)
	old, err := s.AddCommit(t.Context(), a, commitRaw(a, 0, nil))
	if err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if id, raw, err := s.Head(a); id != id2 || !bytes.Equal(raw, second) || err != nil {
		t.Errorf("head: got %v, %v, want %v", id, err, id2)
	}
	if raw, err := s.Commit(a, id1); !bytes.Equal(raw, first) || err != nil {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Commit(b, id1); !errors.Is(err, ErrNotFound) {
		t.Errorf("commit under another image: got %v, want ErrNotFound", err)
	}
	ids, err := s.Commits(a)
	want := []CommitID{id1, id2, old}
	slices.SortFunc(want, func(x, y CommitID) int { return bytes.Compare(x[:], y[:]) })
	if !slices.Equal(ids, want) || err != nil {
		t.Errorf("commits: got %v, %v, want %v", ids, err, want)
	}
	if images, err := s.Images(); !slices.Equal(images, []ImageID{a, b}) || err != nil {
		t.Errorf("images: got %v, %v", images, err)
	}
	if err := s.SetHead(t.Context(), a, id1); err != nil {
		t.Fatal(err)
	}
	if id, _, _ := s.Head(a); id != id1 {
		t.Errorf("head after SetHead: %v, want %v", id, id1)
	}
	if err := s.SetHead(t.Context(), a, CommitID{9}); !errors.Is(err, ErrNotFound) {
		t.Errorf("head of an absent commit: got %v, want ErrNotFound", err)
	}
	if err := s.DeleteCommits(t.Context(), a, id1); err == nil {
		t.Error("the head was deleted")
	}
	if err := s.DeleteCommits(t.Context(), a, id2, old); err != nil {
		t.Fatal(err)
	}
	if ids, _ := s.Commits(a); !slices.Equal(ids, []CommitID{id1}) {
		t.Errorf("commits left: %v", ids)
	}
}

func TestCommitOfAnotherImage(t *testing.T) {
	s := newStore(t)
	if _, err := s.PutCommit(t.Context(), ImageID{1}, commitRaw(ImageID{2}, 1, nil)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if _, err := s.PutCommit(t.Context(), ImageID{1}, []byte("junk")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("junk: got %v, want ErrCorrupt", err)
	}
}

func leaseRaw(image ImageID, era Era, term Term, holder byte) []byte {
	l := &Lease{Image: image, Era: era, Term: term, Holder: id32(holder)}
	return append(mustEncode(EncodeLease(l)), make([]byte, 64)...)
}

func TestLeases(t *testing.T) {
	s := newStore(t)
	a, b := ImageID(id32(1)), ImageID(id32(2))
	want := [][]byte{leaseRaw(a, 1, 1, 1), leaseRaw(a, 1, 2, 2), leaseRaw(a, 1, 256, 1), leaseRaw(a, 2, 3, 1)}
	for _, i := range []int{2, 0, 3, 1, 1} {
		if id, err := s.PutLease(t.Context(), want[i]); id != LeaseIDOf(want[i]) || err != nil {
			t.Fatalf("lease %d: %v", i, err)
		}
	}
	if _, err := s.PutLease(t.Context(), leaseRaw(b, 1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutLease(t.Context(), leaseRaw(a, 1, 2, 9)); !errors.Is(err, ErrExists) {
		t.Errorf("a second record for a term: got %v, want ErrExists", err)
	}
	s = reopen(t, s)
	got, err := s.Leases(a)
	if !slices.EqualFunc(got, want, bytes.Equal) || err != nil {
		t.Errorf("got %x, %v\nwant %x", got, err, want)
	}
}

func TestRemoveImage(t *testing.T) {
	s := newStore(t)
	a, b := ImageID(id32(1)), ImageID(id32(2))
	for _, image := range []ImageID{a, b} {
		mustPutCommit(t, s, image, commitRaw(image, 1, nil))
		mustPutCommit(t, s, image, commitRaw(image, 2, nil))
		if _, err := s.PutLease(t.Context(), leaseRaw(image, 1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		newJournal(t, s, image, 7).Close()
	}
	for range 2 { // repeating it is harmless
		if err := s.RemoveImage(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, s)
		for image, want := range map[ImageID]int{a: 0, b: 1} {
			commits, err1 := s.Commits(image)
			leases, err2 := s.Leases(image)
			journals, err3 := s.Journals(image)
			if err := errors.Join(err1, err2, err3); err != nil {
				t.Fatal(err)
			}
			if len(commits) != 2*want || len(leases) != want || len(journals) != want {
				t.Errorf("%v: %d commits, %d leases, %d journals", image, len(commits), len(leases), len(journals))
			}
		}
	}
	if _, _, err := s.Head(a); !errors.Is(err, ErrNotFound) {
		t.Errorf("head: got %v, want ErrNotFound", err)
	}
}

func TestCatalogue(t *testing.T) {
	s := newStore(t)
	if _, err := s.Catalogue(); !errors.Is(err, ErrNotFound) {
		t.Errorf("none yet: got %v, want ErrNotFound", err)
	}
	raw := seal(Header{Suite: 1, Kind: KindCatalogue, Epoch: s.ID()}, make([]byte, 100_000))
	if err := s.PutCatalogue(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if got, err := s.Catalogue(); !bytes.Equal(got, raw) || err != nil {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	foreign := seal(Header{Suite: 1, Kind: KindCatalogue, Epoch: id16(1)}, make([]byte, 100))
	if err := s.PutCatalogue(t.Context(), foreign); !errors.Is(err, ErrCorrupt) {
		t.Errorf("of another store: got %v, want ErrCorrupt", err)
	}
}
