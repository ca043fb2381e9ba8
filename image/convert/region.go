package convert

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/image/record"
)

// Progress is told how much is done and, where it is known, of how much: both
// in bytes, total 0 if unknown. It may be called from several goroutines at once.
type Progress func(done, total int64)

// meter counts for a Progress.
type meter struct {
	report Progress
	total  int64
	done   atomic.Int64
}

func newMeter(p Progress, total int64) *meter {
	m := &meter{report: p, total: total}
	m.add(0)
	return m
}

func (m *meter) add(n int64) {
	done := m.done.Add(n)
	if m.report != nil {
		m.report(done, m.total)
	}
}

// workers is how many regions are in work at once: one more than there are
// cores, so that a core is not idle while a worker waits for a disk.
func workers() int { return runtime.GOMAXPROCS(0) + 1 }

// span is a run of whole sectors of a region, in bytes from its start.
type span struct{ off, end int }

// interval is the regions first to last, both included.
type interval struct{ first, last int64 }

// eachRegion calls work for each region of list, several at once, each time with
// a number below n that no other running call has: it selects buffers.
func eachRegion(ctx context.Context, n int, list []interval, work func(ctx context.Context, worker int, region int64) error) error {
	g, ctx := errgroup.WithContext(ctx)
	regions := make(chan int64)
	g.Go(func() error {
		defer close(regions)
		for _, iv := range list {
			for r := iv.first; r <= iv.last; r++ {
				select {
				case regions <- r:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for w := range n {
		g.Go(func() error {
			for r := range regions {
				if err := work(ctx, w, r); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// regionEnd is where the image ends in a region, in bytes from its start.
func regionEnd(region, size int64) int { return int(min(plan.Region, size-region*plan.Region)) }

// spansOf rounds extents of a region out to whole sectors and joins those that
// touch. Extents that read as zeros are left out unless zeros is set.
func spansOf(region int64, list []format.Extent, zeros bool) []span {
	var out []span
	for _, e := range list {
		if e.Length == 0 || e.Zero && !zeros {
			continue
		}
		off, end := int(e.Offset-region*plan.Region), int(e.Offset+e.Length-region*plan.Region)
		off, end = off/plan.Sector*plan.Sector, roundUp(end, plan.Sector)
		if n := len(out); n > 0 && off <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, end)
			continue
		}
		out = append(out, span{off, end})
	}
	return out
}

// extentsOf lists all extents of a region of src.
func extentsOf(ctx context.Context, src format.Source, region int64) ([]format.Extent, error) {
	off, end := region*plan.Region, region*plan.Region+int64(regionEnd(region, src.Size()))
	var all []format.Extent
	for off < end {
		list, err := src.Extents(ctx, off, end-off)
		if err != nil {
			return nil, err
		}
		next := off
		if n := len(list); n > 0 {
			next = list[n-1].Offset + list[n-1].Length
		}
		if next <= off {
			return nil, fmt.Errorf("convert: %s source lists no extent at byte %d", src.Format(), off)
		}
		all, off = append(all, list...), next
	}
	return all, nil
}

// readSpans fills the spans of buf, a whole region, from src. What of the last
// sector lies beyond the end of the image is zero.
func readSpans(ctx context.Context, src io.ReaderAt, region, size int64, spans []span, buf []byte) (read int64, err error) {
	limit := regionEnd(region, size)
	for _, s := range spans {
		if err := ctx.Err(); err != nil {
			return read, err
		}
		end := min(s.end, limit)
		off := region*plan.Region + int64(s.off)
		n, err := src.ReadAt(buf[s.off:end], off)
		if n < end-s.off {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return read, fmt.Errorf("convert: read source at byte %d: %w", off+int64(n), err)
		}
		clear(buf[end:s.end])
		read += int64(n)
	}
	return read, nil
}

// zeroSector is compared with; nothing writes it.
var zeroSector [plan.Sector]byte

func isZero(sector []byte) bool { return bytes.Equal(sector, zeroSector[:]) }

// dataRuns lists the sectors of the spans of buf that are not all zeros.
func dataRuns(spans []span, buf []byte) []plan.Run {
	var runs []plan.Run
	for _, s := range spans {
		for off := s.off; off < s.end; off += plan.Sector {
			if isZero(buf[off : off+plan.Sector]) {
				continue
			}
			sector := off / plan.Sector
			if n := len(runs); n > 0 && runs[n-1].End() == sector {
				runs[n-1].Count++
				continue
			}
			runs = append(runs, plan.Run{First: uint16(sector), Count: 1})
		}
	}
	return runs
}

// pieces joins the data of each segment. It moves data inside buf: segments are
// ascending and do not interleave, so a segment's data moves over its own holes only.
func pieces(segments []plan.Segment, buf []byte) []image.Piece {
	out := make([]image.Piece, 0, len(segments))
	for _, seg := range segments {
		runs := make([]record.Run, len(seg))
		start := int(seg[0].First) * plan.Sector
		end := start
		for i, r := range seg {
			runs[i] = record.Run{First: r.First, Count: r.Count}
			n := int(r.Count) * plan.Sector
			if from := int(r.First) * plan.Sector; from != end {
				copy(buf[end:], buf[from:from+n])
			}
			end += n
		}
		out = append(out, image.Piece{Runs: runs, Data: buf[start:end:end]})
	}
	return out
}
