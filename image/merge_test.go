package image

import (
	"context"
	"math/rand/v2"
	"testing"
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
