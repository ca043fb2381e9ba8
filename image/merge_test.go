package image

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
)

// TestMerge wears regions out until they are planned again, and compares.
func TestMerge(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	model := make([]byte, 24<<20)
	id := r.create(int64(len(model)))
	d := r.open(id, OpenOptions{})
	d.Record()
	rng := rand.New(rand.NewPCG(21, 22))
	copy(model, noise(len(model), 1))
	if _, err := d.WriteAt(ctx, model, 0); err != nil {
		t.Fatal(err)
	}
	merged := 0
	for range 12 {
		for range 400 {
			off := rng.IntN(len(model)/sectorSize) * sectorSize
			p := noise(sectorSize, rng.Uint64())
			if _, err := d.WriteAt(ctx, p, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], p)
		}
		d.commitMu.Lock() // the committer may be at work as well
		waiting := len(d.merges)
		d.commitMu.Unlock()
		if err := d.commitAndMerge(ctx, ragged); err != nil {
			t.Fatal(err)
		}
		merged += waiting
		same(t, d, model)
	}
	if merged == 0 {
		t.Error("no region was planned again")
	}
	w := d.view()
	for region := range uint64(2) {
		leaf, err := w.v.tree.Leaf(ctx, region)
		if err != nil {
			t.Fatal(err)
		}
		if len(leaf.Extents) > 2*maxExtents {
			t.Errorf("region %d is in %d extents", region, len(leaf.Extents))
		}
	}
	w.leave()
	r.close(d)
	d = r.open(id, OpenOptions{})
	same(t, d, model)
	if list, err := d.Startup(ctx); err != nil || len(list) == 0 {
		t.Errorf("start-up list %v, %v", list, err)
	}
	r.close(d)
}

// TestMergeOfDamaged: a region that cannot be planned again holds up no commit.
func TestMergeOfDamaged(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	id := r.create(2 * regionSize)
	d := r.open(id, OpenOptions{})
	if _, err := d.WriteAt(ctx, noise(regionSize, 1), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	w := d.view()
	leaf, err := w.v.tree.Leaf(ctx, 0)
	w.leave()
	if err != nil {
		t.Fatal(err)
	}
	bad := leaf.Objects[0].Ref
	if err := r.s.Store.PutObjects(ctx, []blockstore.Object{{ID: bad.ID, Bytes: noise(int(bad.Length), 2)}}); err != nil {
		t.Fatal(err)
	}
	d.commitMu.Lock()
	d.merges[0] = wasteful
	d.commitMu.Unlock()
	want := noise(regionSize/2, 3)
	if _, err := d.WriteAt(ctx, want, regionSize); err != nil {
		t.Fatal(err)
	}
	if err := d.commitAndMerge(ctx, wasteful); err != nil {
		t.Errorf("commit beside a region that cannot be merged: %v", err)
	}
	if n := d.dirtyBytes(); n != 0 {
		t.Errorf("%d bytes are still in no commit", n)
	}
	if d.merging() {
		t.Error("it would be tried again at once")
	}
	r.close(d)
	d = r.open(id, OpenOptions{})
	got := make([]byte, len(want))
	if _, err := d.ReadAt(ctx, got, regionSize); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written beside it: %v", err)
	}
	if _, err := d.ReadAt(ctx, make([]byte, regionSize), 0); !errors.Is(err, blockstore.ErrCorrupt) {
		t.Errorf("the damaged region: %v, want ErrCorrupt", err)
	}
	r.close(d)
}

// TestMergeForgets: a region that was overwritten whole before its turn came is left alone.
func TestMergeForgets(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	d := r.open(r.create(regionSize), OpenOptions{})
	defer r.close(d)
	d.commitMu.Lock()
	d.merges[0] = wasteful
	d.commitMu.Unlock()
	if _, err := d.WriteAt(ctx, noise(regionSize, 1), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if d.merging() {
		t.Error("a sound region is still to be merged")
	}
}

// TestUnmerged: an image that is to stay unmerged is not planned again while there is room.
func TestUnmerged(t *testing.T) {
	r := newRig(t)
	d := r.open(r.create(16<<20), OpenOptions{})
	release := d.s.Unmerged(d.id)
	again := d.s.Unmerged(d.id)
	d.commitMu.Lock()
	d.merges[0] = wasteful
	for range 2 {
		if list := d.takeMerges(wasteful); len(list) > 0 {
			t.Errorf("regions to be planned again: %v", list)
		}
		release() // the other holds
	}
	again()
	if list := d.takeMerges(wasteful); len(list) != 1 {
		t.Errorf("and when it need not stay so any more: %v", list)
	}
	d.commitMu.Unlock()
	r.close(d)
}
