package image

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// Bounds of the start-up list (docs/format.md §7, Dependency map).
const (
	traceTime   = 90 * time.Second       // after the first read
	tracePause  = 500 * time.Millisecond // a longer one begins a new burst
	traceGrain  = 64 << 10               // bytes; a range is noted once for each
	traceRanges = 16384
)

// tracer records which ranges a guest needs first, in their order. It costs a reader
// a short lock for each range that is new, and nothing after its time.
type tracer struct {
	disk *Disk
	now  func() time.Time

	mu     sync.Mutex // guards what follows
	seen   map[int64]struct{}
	list   []record.Range
	start  time.Time
	last   time.Time
	burst  uint32
	closed bool
}

// Record begins to record the start-up list, from the next read on. It ends by
// itself and is kept in the dependency map when the disk is closed.
func (d *Disk) Record() {
	if d.readOnly.Load() {
		return
	}
	d.trace.CompareAndSwap(nil, &tracer{disk: d, now: d.s.Now, seen: make(map[int64]struct{})})
}

// note notes a read.
func (t *tracer) note(off int64, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	first, last := off/traceGrain, (off+int64(n)-1)/traceGrain
	fresh := false
	for g := first; g <= last; g++ {
		if _, ok := t.seen[g]; !ok {
			t.seen[g] = struct{}{}
			fresh = true
		}
	}
	if !fresh {
		return
	}
	now := t.now()
	if t.start.IsZero() {
		t.start, t.last = now, now
	}
	if now.Sub(t.start) > traceTime || len(t.list) == traceRanges {
		t.closed, t.seen = true, nil
		return
	}
	if now.Sub(t.last) > tracePause {
		t.burst++
	}
	t.last = now
	r := record.Range{Offset: off, Length: int64(n), Burst: t.burst, Ms: uint32(now.Sub(t.start).Milliseconds())}
	if k := len(t.list); k > 0 && t.list[k-1].Burst == r.Burst && t.list[k-1].Offset+t.list[k-1].Length == off {
		t.list[k-1].Length += int64(n)
		return
	}
	t.list = append(t.list, r)
}

// traced gives the edit that keeps a recorded start-up list, nil if it says nothing
// that the dependency map does not say already.
func (d *Disk) traced(ctx context.Context) (*edit, error) {
	t := d.trace.Load()
	if t == nil {
		return nil, nil
	}
	t.mu.Lock()
	list := slices.Clone(t.list)
	t.mu.Unlock()
	if len(list) == 0 {
		return nil, nil
	}
	h := d.state()
	m, err := d.s.depmap(ctx, h)
	if err != nil {
		return nil, err
	}
	merged := refine(m.Startup, list)
	if slices.Equal(merged, m.Startup) {
		return nil, nil
	}
	return &edit{depmap: &record.DepMap{Startup: merged, Lineage: m.Lineage}}, nil
}

// refine adds to a start-up list the ranges that it does not cover, in a burst of their own at its end.
func refine(old, list []record.Range) []record.Range {
	if len(old) == 0 {
		return list
	}
	covered := make(map[int64]struct{})
	var burst uint32
	for _, r := range old {
		for g := r.Offset / traceGrain; g <= (r.Offset+r.Length-1)/traceGrain; g++ {
			covered[g] = struct{}{}
		}
		burst = max(burst, r.Burst)
	}
	merged := slices.Clone(old)
	for _, r := range list {
		fresh := false
		for g := r.Offset / traceGrain; g <= (r.Offset+r.Length-1)/traceGrain; g++ {
			_, ok := covered[g]
			fresh = fresh || !ok
		}
		if fresh && len(merged) < traceRanges {
			r.Burst += burst + 1
			merged = append(merged, r)
		}
	}
	return merged
}

// depmap opens the dependency map of a head, an empty one if it has none.
func (s *Shared) depmap(ctx context.Context, h *head) (*record.DepMap, error) {
	if h.commit.DepMap == nil {
		return &record.DepMap{}, nil
	}
	b, err := s.small(ctx, h.commit.Image, *h.commit.DepMap)
	if err != nil {
		return nil, err
	}
	return record.OpenDepMap(h.keys, b)
}

// startup is the start-up list of a head; a clone goes without if it cannot be read.
func (s *Shared) startup(ctx context.Context, h *head) []record.Range {
	m, err := s.depmap(ctx, h)
	if err != nil {
		s.Log.Warn("dependency map", "image", h.commit.Image, "error", err)
		return nil
	}
	return m.Startup
}

// StartupLeaves names the leaves of the map that the start-up list of an image needs.
func (s *Shared) StartupLeaves(ctx context.Context, id blockstore.ImageID) ([]blockstore.SmallRef, error) {
	t, list, err := s.startupList(ctx, id)
	if err != nil {
		return nil, err
	}
	var refs []blockstore.SmallRef
	seen := make(map[uint64]bool)
	for _, r := range list {
		for region := uint64(r.Offset) / regionSize; region <= uint64(r.Offset+r.Length-1)/regionSize; region++ {
			if seen[region] {
				continue
			}
			seen[region] = true
			ref, ok, err := t.LeafRef(ctx, region)
			if err != nil {
				return nil, err
			}
			if ok {
				refs = append(refs, ref)
			}
		}
	}
	return refs, nil
}

// StartupSegments names the segments that the start-up list of an image needs, in order.
func (s *Shared) StartupSegments(ctx context.Context, id blockstore.ImageID) ([]blockstore.SmallRef, error) {
	t, list, err := s.startupList(ctx, id)
	if err != nil {
		return nil, err
	}
	var refs []blockstore.SmallRef
	seen := make(map[blockstore.ObjectID]bool)
	for _, r := range list {
		for sector, end := uint64(r.Offset)/sectorSize, uint64(r.Offset+r.Length-1)/sectorSize; sector <= end; {
			region := sector / record.RegionSectors
			leaf, err := t.Leaf(ctx, region)
			if err != nil {
				return nil, err
			}
			last := min(end, (region+1)*record.RegionSectors-1)
			if leaf != nil {
				refs = appendSegments(refs, seen, leaf, uint16(sector%record.RegionSectors), uint16(last%record.RegionSectors))
			}
			sector = last + 1
		}
	}
	return refs, nil
}

// appendSegments appends the segments of sectors first to last of a leaf that are not seen yet.
func appendSegments(refs []blockstore.SmallRef, seen map[blockstore.ObjectID]bool, leaf *record.Leaf, first, last uint16) []blockstore.SmallRef {
	for i := leaf.Find(first); i < len(leaf.Extents) && leaf.Extents[i].First <= last; i++ {
		x := leaf.Extents[i]
		if x.Object == record.ZeroObject {
			continue
		}
		if o := leaf.Objects[x.Object].Ref; !seen[o.ID] {
			seen[o.ID] = true
			refs = append(refs, blockstore.SmallRef{ID: o.ID, Length: o.Length})
		}
	}
	return refs
}

func (s *Shared) startupList(ctx context.Context, id blockstore.ImageID) (tree.Tree, []record.Range, error) {
	h, _, err := s.load(ctx, id)
	if err != nil {
		return tree.Tree{}, nil, err
	}
	m, err := s.depmap(ctx, h)
	if err != nil {
		return tree.Tree{}, nil, err
	}
	return tree.Tree{Loader: s.loader, Keys: h.keys, Root: h.commit.Root}, m.Startup, nil
}

// Startup gives the recorded start-up list: what a guest needs first, in order.
func (d *Disk) Startup(ctx context.Context) ([]record.Range, error) {
	m, err := d.s.depmap(ctx, d.state())
	if err != nil {
		return nil, err
	}
	return m.Startup, nil
}
