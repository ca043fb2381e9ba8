package image

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/record"
)

// zeros is what holes are read from; nobody writes to it.
var zeros = make([]byte, 1<<20)

// ReadAt reads like io.ReaderAt: short only at the end of the disk, with io.EOF.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		vec, err := d.ReadVector(ctx, off+int64(n), min(len(p)-n, len(zeros)))
		if err != nil {
			return n, err
		}
		if len(vec) == 0 {
			return n, io.EOF
		}
		for _, b := range vec {
			n += copy(p[n:], b)
		}
	}
	return n, nil
}

// ReadVector gives up to n bytes at off as slices, in order. They stay valid and
// unchanged; the caller must not change them. Fewer than n bytes come only at the end of the disk.
func (d *Disk) ReadVector(ctx context.Context, off int64, n int) ([][]byte, error) {
	if d.closed.Load() {
		return nil, ErrClosed
	}
	if off < 0 || n < 0 {
		return nil, fmt.Errorf("image: read of %d bytes at %d", n, off)
	}
	n = int(min(int64(n), d.Size()-off))
	if n <= 0 {
		return nil, nil
	}
	if t := d.trace.Load(); t != nil {
		t.note(off, n)
	}
	var vec [][]byte
	err := d.look(func(w view) (err error) {
		vec, err = w.readAll(ctx, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return trim(vec, int(off%sectorSize), n), nil
}

// readAll gives the slices of all sectors that n bytes at off touch.
func (w view) readAll(ctx context.Context, off int64, n int) (vec [][]byte, err error) {
	first := off / sectorSize
	last := (off + int64(n) - 1) / sectorSize
	vec = make([][]byte, 0, n>>record.RawFrameLog+2)
	for first <= last {
		region, sector := uint64(first/record.RegionSectors), int(first%record.RegionSectors)
		count := int(min(last-first+1, int64(record.RegionSectors-sector)))
		if vec, err = w.read(ctx, region, sector, count, vec); err != nil {
			return nil, err
		}
		first += int64(count)
	}
	return vec, nil
}

// trim drops skip bytes in front and what lies beyond n bytes.
func trim(vec [][]byte, skip, n int) [][]byte {
	vec[0] = vec[0][skip:]
	for i, b := range vec {
		if len(b) >= n {
			vec[i] = b[:n]
			return vec[:i+1]
		}
		n -= len(b)
	}
	return vec
}

// read appends slices for count sectors of one region.
func (w view) read(ctx context.Context, region uint64, first, count int, vec [][]byte) ([][]byte, error) {
	over, all := w.overlay(region, first, count)
	if all {
		return append(vec, over...), nil
	}
	leaf, err := w.v.tree.Leaf(ctx, region)
	if err != nil {
		return nil, err
	}
	for i := 0; i < count; {
		if over != nil && over[i] != nil {
			vec = append(vec, over[i])
			i++
			continue
		}
		end := i + 1 // sectors that only the map knows
		for end < count && (over == nil || over[end] == nil) {
			end++
		}
		if vec, err = w.mapped(ctx, leaf, region, first+i, end-i, vec); err != nil {
			return nil, err
		}
		i = end
	}
	return vec, nil
}

// overlay gives the sectors that are not in the map yet, nil where it must be asked;
// all says that no sector is left for it.
func (w view) overlay(region uint64, first, count int) (over [][]byte, all bool) {
	for _, set := range []*dirty.Set{w.active, w.frozen} {
		if set == nil || !set.Touches(region) {
			continue
		}
		if over == nil {
			over = make([][]byte, count)
		}
		all = set.Each(region, first, count, func(sector int, page *dirty.Page) {
			switch {
			case over[sector-first] != nil:
			case page == nil:
				over[sector-first] = zeros[:sectorSize]
			default:
				over[sector-first] = append([]byte(nil), page[:]...)
			}
		})
		if all {
			return over, true
		}
	}
	return over, false
}

// piece is a run of sectors that the map has in one place.
type piece struct {
	span   span // if not a hole
	hole   bool
	count  int
	opened [][]byte
}

// pieces passes the pieces of a run of sectors of a region to fn, in order.
func (w view) pieces(leaf *record.Leaf, region uint64, first, count int, fn func(p piece) error) error {
	end := first + count
	next := 0
	if leaf != nil {
		next = leaf.Find(uint16(first))
	}
	for first < end {
		p := piece{hole: true, count: end - first}
		if leaf != nil && next < len(leaf.Extents) {
			x := leaf.Extents[next]
			if int(x.First) > first {
				p.count = min(int(x.First), end) - first
			} else {
				skip := first - int(x.First)
				p = piece{count: min(int(x.Count)-skip, end-first)}
				p.span = span{object: &leaf.Objects[x.Object], region: region, offset: int(x.Offset) + skip, count: p.count, once: w.once}
				next++
			}
		}
		if err := fn(p); err != nil {
			return err
		}
		first += p.count
	}
	return nil
}

// parallelSectors is the least that is read in parallel, parallelOpens in how many parts.
const (
	parallelSectors = 64
	parallelOpens   = 4
)

// mapped appends slices for sectors as the map has them.
func (w view) mapped(ctx context.Context, leaf *record.Leaf, region uint64, first, count int, vec [][]byte) ([][]byte, error) {
	if count >= parallelSectors {
		return w.mappedLarge(ctx, leaf, region, first, count, vec)
	}
	err := w.pieces(leaf, region, first, count, func(p piece) (err error) {
		if p.hole {
			vec = hole(vec, p.count)
			return nil
		}
		vec, err = w.d.s.read(ctx, w.v.tree.Keys, p.span, vec)
		return err
	})
	return vec, err
}

// mappedLarge is mapped for many sectors: what is not in memory is read and opened in
// parallel, so that the device and the cores work at the same time.
func (w view) mappedLarge(ctx context.Context, leaf *record.Leaf, region uint64, first, count int, vec [][]byte) ([][]byte, error) {
	list := make([]piece, 0, 32)
	var last *span
	_ = w.pieces(leaf, region, first, count, func(p piece) error { // fails if fn does
		list = append(list, p)
		if !p.hole {
			last = &list[len(list)-1].span
		}
		return nil
	})
	keys := w.v.tree.Keys
	if last == nil || len(list) == 1 || w.d.s.keeps(last) {
		for i := range list {
			var err error
			if p := &list[i]; p.hole {
				vec = hole(vec, p.count)
			} else if vec, err = w.d.s.read(ctx, keys, p.span, vec); err != nil {
				return nil, err
			}
		}
		return vec, nil
	}
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(parallelOpens)
	for i := range list {
		if p := &list[i]; !p.hole {
			g.Go(func() (err error) {
				p.opened, err = w.d.s.read(group, keys, p.span, nil)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range list {
		if p := &list[i]; p.hole {
			vec = hole(vec, p.count)
		} else {
			vec = append(vec, p.opened...)
		}
	}
	return vec, nil
}

func hole(vec [][]byte, sectors int) [][]byte {
	for n := sectors * sectorSize; n > 0; {
		k := min(n, len(zeros))
		vec = append(vec, zeros[:k])
		n -= k
	}
	return vec
}

// Extent is a run of bytes that holds data or reads as zeros.
type Extent struct {
	Offset, Length int64
	Data           bool
}

// Next gives the extent that begins at off, as far as one look tells: neighbours may
// be alike, and what it calls data may hold zeros. io.EOF at or past the size.
func (d *Disk) Next(ctx context.Context, off int64) (Extent, error) {
	if d.closed.Load() {
		return Extent{}, ErrClosed
	}
	size := d.Size()
	if off >= size || off < 0 {
		return Extent{}, io.EOF
	}
	var x Extent
	err := d.look(func(w view) (err error) {
		x, err = w.next(ctx, off, size)
		return err
	})
	return x, err
}

// next gives the extent that begins at off.
func (w view) next(ctx context.Context, off, size int64) (Extent, error) {
	region := uint64(off / regionSize)
	if !w.dirtyIn(region) {
		next, ok, err := w.nextRegion(ctx, region)
		if err != nil {
			return Extent{}, err
		}
		if !ok {
			return Extent{Offset: off, Length: size - off}, nil
		}
		if next > region {
			return Extent{Offset: off, Length: min(int64(next)*regionSize, size) - off}, nil
		}
	}
	leaf, err := w.v.tree.Leaf(ctx, region)
	if err != nil {
		return Extent{}, err
	}
	held := w.allocation(leaf, region)
	first := int(off % regionSize / sectorSize)
	end := first + 1
	for end < record.RegionSectors && held[end] == held[first] {
		end++
	}
	to := min(int64(region)*regionSize+int64(end)*sectorSize, size)
	return Extent{Offset: off, Length: to - off, Data: held[first]}, nil
}

// nextRegion is the first region at or after region that may hold data.
func (w view) nextRegion(ctx context.Context, region uint64) (uint64, bool, error) {
	next, ok, err := w.v.tree.Next(ctx, region)
	if err != nil {
		return 0, false, err
	}
	for _, set := range []*dirty.Set{w.active, w.frozen} {
		if set == nil {
			continue
		}
		if n, found := set.Next(region); found && (!ok || n < next) {
			next, ok = n, true
		}
	}
	return next, ok, nil
}

func (w view) dirtyIn(region uint64) bool {
	return w.active != nil && w.active.Touches(region) || w.frozen != nil && w.frozen.Touches(region)
}

// allocation says of each sector of a region whether it holds data.
func (w view) allocation(leaf *record.Leaf, region uint64) *[record.RegionSectors]bool {
	var held [record.RegionSectors]bool
	if leaf != nil {
		for _, x := range leaf.Extents {
			for i := range int(x.Count) {
				held[int(x.First)+i] = x.Object != record.ZeroObject
			}
		}
	}
	for _, set := range []*dirty.Set{w.frozen, w.active} {
		if set != nil {
			set.Each(region, 0, record.RegionSectors, func(sector int, page *dirty.Page) { held[sector] = page != nil })
		}
	}
	return &held
}
