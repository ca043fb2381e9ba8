package image

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// worker owns part of a disk, interleaved with the others' by sector, and knows what is in it.
type worker struct {
	d       *Disk
	n, of   int
	sectors int
	rng     *rand.Rand
	now     []uint64 // generation of each sector of its own, 0 for zeros
	flushed []uint64
}

func pattern(sector int, gen uint64) []byte {
	if gen == 0 {
		return zeros[:sectorSize]
	}
	p := bytes.Repeat(fmt.Appendf(nil, "%08d:%06d ", sector, gen), sectorSize/16+1)
	return p[:sectorSize]
}

func (w *worker) step(ctx context.Context) error {
	i := w.rng.IntN(w.sectors)
	sector := i*w.of + w.n
	off := int64(sector) * sectorSize
	switch k := w.rng.IntN(20); {
	case k < 11:
		w.now[i]++
		if _, err := w.d.WriteAt(ctx, pattern(sector, w.now[i]), off); err != nil {
			return err
		}
	case k < 12:
		w.now[i] = 0
		if err := w.d.Discard(ctx, off, sectorSize); err != nil {
			return err
		}
	case k < 13: // the same bytes again, in two parts
		p := pattern(sector, w.now[i])
		for _, part := range [][2]int{{0, 700}, {700, sectorSize}} {
			if _, err := w.d.WriteAt(ctx, p[part[0]:part[1]], off+int64(part[0])); err != nil {
				return err
			}
		}
	case k < 14:
		if err := w.d.Flush(ctx); err != nil {
			return err
		}
		copy(w.flushed, w.now)
	default:
		p := make([]byte, sectorSize)
		if _, err := w.d.ReadAt(ctx, p, off); err != nil {
			return err
		}
		if !bytes.Equal(p, pattern(sector, w.now[i])) {
			return fmt.Errorf("sector %d reads %.16q, want %.16q", sector, p, pattern(sector, w.now[i]))
		}
	}
	return nil
}

// TestStress runs writers, readers, flushes, commits and snapshots side by side, then
// crashes: each sector is as it was flushed last or as it was written after that.
func TestStress(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	r.stop()
	r.dirty = 3 << 20 // writers wait at the bound
	r.start()
	const workers, sectors = 6, 1500
	id := r.create(workers * sectors * sectorSize)
	ws := make([]*worker, workers)
	for i := range ws {
		ws[i] = &worker{n: i, of: workers, sectors: sectors, rng: rand.New(rand.NewPCG(7, uint64(i))),
			now: make([]uint64, sectors), flushed: make([]uint64, sectors)}
	}
	for round := range 3 {
		d := r.open(id, OpenOptions{})
		var done atomic.Int32
		var g errgroup.Group
		for _, w := range ws {
			w.d = d
			g.Go(func() error {
				defer done.Add(1)
				for range 700 {
					if err := w.step(ctx); err != nil {
						return err
					}
				}
				return nil
			})
		}
		g.Go(func() error {
			for n := 0; done.Load() < workers; n++ {
				name := fmt.Sprintf("s%d-%d", round, n)
				if err := d.Snapshot(ctx, name); err != nil {
					return err
				}
				if n%3 == 0 {
					if err := d.RemoveSnapshot(ctx, name); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		d.abandon()
		r.stop()
		r.start()
		d = r.open(id, OpenOptions{})
		for _, w := range ws {
			w.recover(t, d)
		}
		r.close(d)
	}
}

// recover compares the disk after a crash with what the worker knows, and goes on from there.
func (w *worker) recover(t *testing.T, d *Disk) {
	t.Helper()
	p := make([]byte, sectorSize)
	for i := range w.now {
		sector := i*w.of + w.n
		if _, err := d.ReadAt(context.Background(), p, int64(sector)*sectorSize); err != nil {
			t.Fatal(err)
		}
		switch {
		case bytes.Equal(p, pattern(sector, w.now[i])):
		case w.between(sector, i, p):
		default:
			t.Fatalf("sector %d reads %.16q; flushed was %d, last %d", sector, p, w.flushed[i], w.now[i])
		}
		w.flushed[i] = w.now[i]
	}
}

// between accepts what was written since the flush, and notes it.
func (w *worker) between(sector, i int, p []byte) bool {
	for gen := range uint64(200) {
		if (gen >= w.flushed[i] || gen == 0) && bytes.Equal(p, pattern(sector, gen)) {
			w.now[i] = gen
			return true
		}
	}
	return false
}
