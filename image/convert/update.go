package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
)

// Target is a disk that is brought up to date; *image.Disk is one.
type Target interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Discard(ctx context.Context, off, n int64) error
	Resize(ctx context.Context, size int64) error
	Next(ctx context.Context, off int64) (image.Extent, error)
	Commit(ctx context.Context) error
}

// UpdateOptions say what an update looks at.
type UpdateOptions struct {
	// OwnOnly looks only at what the source's top layer holds itself: the disk
	// must hold what its backing file does everywhere else.
	OwnOnly  bool
	Progress Progress // may be nil
}

// Updated is what an update did.
type Updated struct {
	Changed int64 // bytes of sectors that were written or discarded
	Read    int64 // bytes read from the source
}

// Update makes d hold what src holds, writes only the sectors that differ, and
// commits. A source larger than d makes it grow; a smaller one is
// image.ErrShrink. Nobody else may write d meanwhile.
func Update(ctx context.Context, d Target, src format.Source, o UpdateOptions) (Updated, error) {
	size := src.Size()
	if size < d.Size() {
		return Updated{}, fmt.Errorf("convert: source of %d bytes, disk of %d: %w", size, d.Size(), image.ErrShrink)
	}
	if size > d.Size() {
		if err := d.Resize(ctx, size); err != nil {
			return Updated{}, fmt.Errorf("convert: %w", err)
		}
	}
	u := &updater{d: d, src: src, own: o.OwnOnly, m: newMeter(o.Progress, size)}
	n := workers()
	u.bufs = make([]pair, n)
	var all []interval
	if size > 0 {
		all = []interval{{0, (size - 1) / plan.Region}}
	}
	if err := eachRegion(ctx, n, all, u.region); err != nil {
		return Updated{}, err
	}
	if err := d.Commit(ctx); err != nil {
		return Updated{}, fmt.Errorf("convert: %w", err)
	}
	return Updated{Changed: u.changed.Load(), Read: u.read.Load()}, nil
}

// pair is a region as the source has it and as the disk has it.
type pair struct{ src, disk []byte }

type updater struct {
	d             Target
	src           format.Source
	own           bool
	m             *meter
	bufs          []pair
	changed, read atomic.Int64
}

func (u *updater) region(ctx context.Context, worker int, region int64) error {
	want, data, err := u.spans(ctx, region)
	if err != nil {
		return fmt.Errorf("convert: find data: %w", err)
	}
	have, err := diskSpans(ctx, u.d, region)
	if err != nil {
		return err
	}
	defer u.m.add(int64(regionEnd(region, u.src.Size())))
	if !u.own {
		// What only the disk holds must go.
		want = join(want, have)
	}
	if len(want) == 0 {
		return nil
	}
	b := &u.bufs[worker]
	if b.src == nil {
		b.src, b.disk = make([]byte, plan.Region), make([]byte, plan.Region)
	}
	clear(b.src)
	clear(b.disk)
	n, err := readSpans(ctx, u.src, region, u.src.Size(), data, b.src)
	u.read.Add(n)
	if err != nil {
		return err
	}
	if _, err := readSpans(ctx, readerAt{ctx, u.d}, region, u.src.Size(), have, b.disk); err != nil {
		return err
	}
	return u.write(ctx, region, want, b)
}

// spans lists what of a region is to be compared, and what of that is data.
func (u *updater) spans(ctx context.Context, region int64) (want, data []span, err error) {
	if !u.own {
		list, err := extentsOf(ctx, u.src, region)
		data := spansOf(region, list, false)
		return data, data, err
	}
	var all []format.Extent
	off, end := region*plan.Region, region*plan.Region+int64(regionEnd(region, u.src.Size()))
	for off < end {
		list, done, err := u.src.Own(ctx, off, end-off)
		if err != nil {
			return nil, nil, err
		}
		if done <= off {
			return nil, nil, fmt.Errorf("%s source stops at byte %d: %w", u.src.Format(), off, io.ErrUnexpectedEOF)
		}
		all, off = append(all, list...), done
	}
	// Spans are rounded out to sectors, so all of them are read: beside an
	// explicit zero the same sector may hold the backing file's data.
	want = spansOf(region, all, true)
	return want, want, nil
}

// write writes the sectors of the spans that differ.
func (u *updater) write(ctx context.Context, region int64, spans []span, b *pair) error {
	limit := regionEnd(region, u.src.Size())
	base := region * plan.Region
	for _, s := range spans {
		for off := s.off; off < s.end; {
			kind := u.verdict(b, off)
			end := off + plan.Sector
			for end < s.end && u.verdict(b, end) == kind {
				end += plan.Sector
			}
			stop := min(end, limit)
			var err error
			switch kind {
			case differs:
				_, err = u.d.WriteAt(ctx, b.src[off:stop], base+int64(off))
			case nowZero:
				err = u.d.Discard(ctx, base+int64(off), int64(stop-off))
			}
			if err != nil {
				return fmt.Errorf("convert: write: %w", err)
			}
			if kind != same {
				u.changed.Add(int64(stop - off))
			}
			off = end
		}
	}
	return nil
}

type verdict int

const (
	same verdict = iota
	differs
	nowZero
)

func (u *updater) verdict(b *pair, off int) verdict {
	src, disk := b.src[off:off+plan.Sector], b.disk[off:off+plan.Sector]
	switch {
	case bytes.Equal(src, disk):
		return same
	case isZero(src):
		return nowZero
	}
	return differs
}

// readerAt binds a disk's reads to a context.
type readerAt struct {
	ctx context.Context
	d   interface {
		ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	}
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.d.ReadAt(r.ctx, p, off) }

// diskSpans lists the data of a region of d.
func diskSpans(ctx context.Context, d Source, region int64) ([]span, error) {
	var list []format.Extent
	off, end := region*plan.Region, min((region+1)*plan.Region, d.Size())
	for off < end {
		e, err := d.Next(ctx, off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("convert: find data: %w", err)
		}
		next := min(e.Offset+e.Length, end)
		if next <= off {
			return nil, fmt.Errorf("convert: find data: no extent at byte %d", off)
		}
		if e.Data {
			list = append(list, format.Extent{Offset: off, Length: next - off})
		}
		off = next
	}
	return spansOf(region, list, false), nil
}

// join merges two ascending lists of spans.
func join(a, b []span) []span {
	var out []span
	for len(a) > 0 || len(b) > 0 {
		if len(a) == 0 || len(b) > 0 && b[0].off < a[0].off {
			a, b = b, a
		}
		s := a[0]
		a = a[1:]
		if n := len(out); n > 0 && s.off <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}
