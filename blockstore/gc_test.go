package blockstore

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

func sealedObject(h Header, body []byte) Object {
	b := seal(h, append(body, make([]byte, tagSize)...))
	return Object{ID: IDOf(b), Bytes: b}
}

func refs(objs []Object) []Ref {
	var rs []Ref
	for _, o := range objs {
		rs = append(rs, Ref{ID: o.ID, Length: uint32(len(o.Bytes)), Subtree: uint64(len(o.Bytes))})
	}
	slices.SortFunc(rs, func(a, b Ref) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return rs
}

func nodeObject(level uint8, patch bool, children ...Object) Object {
	kind := KindInner
	if level == 0 {
		kind = KindLeaf
	}
	p := NodePublic{Level: level, Patch: patch, Children: refs(children)}
	o := object(8) // bodies differ
	return sealedObject(Header{Suite: 1, Kind: kind, Public: AppendNodePublic(nil, p)}, o.Bytes)
}

// state is a commit with everything it names.
type state struct {
	root, keyring, imageKey Object
	objs                    []Object // all of them
	raw                     []byte
	id                      CommitID
}

// newState builds a map of two leaves, one of them a patch over a third, with segments.
func newState(image ImageID, seq Sequence, snapshots ...*state) *state {
	segs := []Object{object(5000), object(6000), object(7000), object(900)}
	base := nodeObject(0, false, segs[0], segs[1])
	patch := nodeObject(0, true, base, segs[2])
	leaf := nodeObject(0, false, segs[3])
	root := nodeObject(1, false, patch, leaf)
	st := &state{root: root, keyring: object(300), imageKey: object(301)}
	st.objs = append(segs, base, patch, leaf, root, st.keyring, st.imageKey)
	var table *SmallRef
	if len(snapshots) > 0 {
		var p SnapshotPublic
		for _, snap := range snapshots {
			p = append(p, SnapshotRef{ID: snap.id})
		}
		o := sealedObject(Header{Suite: 1, Kind: KindSnapshotTable, Public: AppendSnapshotPublic(nil, p)}, nil)
		st.objs = append(st.objs, o)
		table = &SmallRef{ID: o.ID, Length: uint32(len(o.Bytes))}
	}
	st.raw = commitRaw(image, seq, func(c *CommitPublic) {
		c.Root = &RootRef{Level: 1, ID: root.ID, Length: uint32(len(root.Bytes)), Subtree: uint64(len(root.Bytes))}
		c.Keyring = SmallRef{ID: st.keyring.ID, Length: 300}
		c.ImageKey = SmallRef{ID: st.imageKey.ID, Length: 301}
		c.Snapshots = table
	})
	st.id = CommitIDOf(st.raw)
	return st
}

func (st *state) put(t testing.TB, s *Store, image ImageID) *state {
	t.Helper()
	put(t, s, st.objs...)
	mustPutCommit(t, s, image, st.raw)
	return st
}

func wantState(t testing.TB, s *Store, st *state, there bool) {
	t.Helper()
	for _, o := range st.objs {
		if there {
			wantObject(t, s, o)
		} else {
			wantAbsent(t, s, o.ID)
		}
	}
}

func collect(t testing.TB, s *Store, o CollectOptions) CollectStats {
	t.Helper()
	st, err := s.Collect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestCollect(t *testing.T) {
	s := newStore(t)
	a, b := ImageID(id32(1)), ImageID(id32(2))
	old := newState(a, 1).put(t, s, a)
	snap := newState(a, 2).put(t, s, a)
	pinned := newState(a, 3).put(t, s, a)
	head := newState(a, 4, snap).put(t, s, a)
	other := newState(b, 1).put(t, s, b)
	loose := []Object{object(100), object(5000)}
	put(t, s, loose...)
	if err := s.MarkComplete(t.Context(), old.root.ID, head.root.ID); err != nil {
		t.Fatal(err)
	}
	pins := []Root{{a, pinned.id}}
	st := collect(t, s, CollectOptions{Pins: pins})
	if want := int64(len(old.objs) + len(loose)); st.Swept != want || st.Commits != 1 {
		t.Errorf("swept %d objects and %d commits, want %d and 1", st.Swept, st.Commits, want)
	}
	s = reopen(t, s)
	for _, live := range []*state{snap, pinned, head, other} {
		wantState(t, s, live, true)
	}
	wantState(t, s, old, false)
	wantAbsent(t, s, loose[0].ID)
	for id, want := range map[ObjectID]bool{old.root.ID: false, head.root.ID: true} {
		if got, err := s.IsComplete(id); got != want || err != nil {
			t.Errorf("complete mark of %v: %v, %v, want %v", id, got, err, want)
		}
	}
	if st := collect(t, s, CollectOptions{Pins: pins}); st.Swept != 0 || st.Commits != 0 {
		t.Errorf("a second collection swept %+v", st)
	}
	if err := s.RemoveImage(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	collect(t, s, CollectOptions{})
	wantState(t, s, head, false)
	wantState(t, s, other, true)
	if got, want := s.counts.objects.Load(), int64(len(other.objs)); got != want {
		t.Errorf("%d objects counted, want %d", got, want)
	}
}

func TestCollectRefusesIncomplete(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	st := newState(image, 1).put(t, s, image)
	loose := object(100)
	put(t, s, loose)
	for _, i := range []int{len(st.objs) - 3, 4, 0} { // root, base leaf below the patch, segment below that
		gone := st.objs[i]
		if err := s.DeleteObjects(t.Context(), []ObjectID{gone.ID}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Collect(t.Context(), CollectOptions{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("object %d absent: got %v, want ErrNotFound", i, err)
		}
		wantObject(t, s, loose)
		put(t, s, gone)
	}
	if err := s.DeleteObjects(t.Context(), []ObjectID{st.objs[0].ID}); err != nil {
		t.Fatal(err)
	}
	got := collect(t, s, CollectOptions{Partial: func(i ImageID) bool { return i == image }})
	if got.Absent != 1 || got.Swept != 1 {
		t.Errorf("partial: got %+v, want 1 absent and 1 swept", got)
	}
	wantState(t, s, &state{objs: st.objs[1:]}, true)
}

func TestCollectRefusesCorrupt(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	st := newState(image, 1)
	bad := st.root
	bad.Bytes = bytes.Clone(bad.Bytes)
	bad.Bytes[len(bad.Bytes)-1] ^= 1
	put(t, s, st.objs...)
	put(t, s, bad)
	mustPutCommit(t, s, image, st.raw)
	loose := object(100)
	put(t, s, loose)
	if _, err := s.Collect(t.Context(), CollectOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	wantObject(t, s, loose)
}

// A hostile image names another's root as if it were a segment: what lies beneath must
// still be marked through the other's own head.
func TestCollectHostileImage(t *testing.T) {
	s := newStore(t)
	victim, hostile := ImageID(id32(9)), ImageID(id32(1)) // the hostile one is marked first
	st := newState(victim, 1).put(t, s, victim)
	leaf := nodeObject(0, false, st.root)
	keys := []Object{object(300), object(301)}
	put(t, s, leaf, keys[0], keys[1])
	mustPutCommit(t, s, hostile, commitRaw(hostile, 1, func(c *CommitPublic) {
		c.Root = &RootRef{ID: leaf.ID, Length: uint32(len(leaf.Bytes)), Subtree: 1 << 20}
		c.Keyring, c.ImageKey = SmallRef{ID: keys[0].ID, Length: 300}, SmallRef{ID: keys[1].ID, Length: 301}
	}))
	if got := collect(t, s, CollectOptions{}); got.Swept != 0 {
		t.Errorf("swept %d objects, want 0", got.Swept)
	}
	wantState(t, s, st, true)
}

// What is put, found or made a head while a collection runs is kept.
func TestCollectBesideWriters(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	newState(image, 1).put(t, s, image)
	found, again, loose := object(3000), object(3001), object(3002)
	put(t, s, found, again, loose)
	revived := newState(image, 7)
	put(t, s, revived.objs...)
	var late *state
	collect(t, s, CollectOptions{Progress: func(CollectStats) {
		if late != nil {
			return
		}
		late = newState(image, 2).put(t, s, image)
		put(t, s, again)
		if ok, err := s.Has(found.ID); !ok || err != nil {
			t.Errorf("has: %v, %v", ok, err)
		}
		mustPutCommit(t, s, image, revived.raw)
	}})
	wantObject(t, s, found)
	wantObject(t, s, again)
	wantAbsent(t, s, loose.ID)
	wantState(t, s, late, true)
	wantState(t, s, revived, true)
}

// A writer that replaces its head again and again, and deletes what was there before, is in
// nobody's way, and nobody in its.
func TestCollectBesideReplacements(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	states := []*state{newState(image, 1).put(t, s, image)}
	loose := object(3000) // else there is nothing to sweep, and no need to look at what was put since
	put(t, s, loose)
	collect(t, s, CollectOptions{Progress: func(CollectStats) {
		if len(states) == 100 {
			return
		}
		old, next := states[len(states)-1], newState(image, Sequence(len(states)+1)).put(t, s, image)
		states = append(states, next)
		var ids []ObjectID
		for _, o := range old.objs {
			ids = append(ids, o.ID)
		}
		if err := errors.Join(s.DeleteCommits(t.Context(), image, old.id), s.DeleteObjects(t.Context(), ids)); err != nil {
			t.Error(err)
		}
	}})
	if len(states) < 20 {
		t.Fatalf("%d states: the collector met too few", len(states))
	}
	for i, st := range states {
		wantState(t, s, st, i == len(states)-1)
	}
	wantAbsent(t, s, loose.ID)
}

func TestHold(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	found, loose := object(3000), object(3001)
	put(t, s, found, loose)
	h := s.Hold()
	st := newState(image, 1)
	put(t, s, st.objs...)
	if ok, err := s.Has(found.ID); !ok || err != nil {
		t.Errorf("has: %v, %v", ok, err)
	}
	if _, err := s.AddCommit(t.Context(), image, st.raw); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, s, CollectOptions{}); got.Swept != 1 || got.Commits != 0 {
		t.Errorf("while held: got %+v, want 1 object swept", got)
	}
	wantState(t, s, st, true)
	wantObject(t, s, found)
	wantAbsent(t, s, loose.ID)
	h.Release()
	h.Release()
	if got := collect(t, s, CollectOptions{}); got.Swept != int64(len(st.objs)+1) || got.Commits != 1 {
		t.Errorf("after release: got %+v, want all swept", got)
	}
}

func TestCollectOneAtATime(t *testing.T) {
	s := newStore(t)
	image := ImageID(id32(1))
	newState(image, 1).put(t, s, image)
	ran := false
	collect(t, s, CollectOptions{Progress: func(CollectStats) {
		ran = true
		if _, err := s.Collect(t.Context(), CollectOptions{}); !errors.Is(err, ErrCollecting) {
			t.Errorf("got %v, want ErrCollecting", err)
		}
	}})
	if !ran {
		t.Error("no progress was reported")
	}
}
