package convert

import (
	"context"
	"fmt"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
)

// Source is a disk that is read; *image.Disk is one.
type Source interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	Next(ctx context.Context, off int64) (image.Extent, error)
}

// exportGrid is what qcow2 wants its writes aligned to, in bytes.
const exportGrid = 64 << 10

// Export writes what d holds to w, region by region, several at once, and leaves
// committing w to the caller. It returns how many bytes of data it read.
func Export(ctx context.Context, d Source, w format.Writer, report Progress) (int64, error) {
	regions, data, err := surveyDisk(ctx, d)
	if err != nil {
		return 0, err
	}
	size := d.Size()
	at := int64(0) // where the zeros between regions with data begin
	for _, iv := range append(regions, interval{(size + plan.Region - 1) / plan.Region, -1}) {
		if n := min(iv.first*plan.Region, size) - at; n > 0 {
			if err := w.WriteZeros(at, n); err != nil {
				return 0, fmt.Errorf("convert: write: %w", err)
			}
		}
		at = min((iv.last+1)*plan.Region, size)
	}
	e := exporter{d: d, w: w, bufs: make([][]byte, workers()), m: newMeter(report, data)}
	err = eachRegion(ctx, len(e.bufs), regions, e.region)
	return e.m.done.Load(), err
}

type exporter struct {
	d    Source
	w    format.Writer
	bufs [][]byte
	m    *meter
}

func (e *exporter) region(ctx context.Context, worker int, region int64) error {
	if e.bufs[worker] == nil {
		e.bufs[worker] = make([]byte, plan.Region)
	}
	buf := e.bufs[worker]
	spans, err := diskSpans(ctx, e.d, region)
	if err != nil {
		return err
	}
	clear(buf)
	read, err := readSpans(ctx, readerAt{ctx, e.d}, region, e.d.Size(), spans, buf)
	if err != nil {
		return err
	}
	if err := e.write(region, spans, buf); err != nil {
		return fmt.Errorf("convert: write: %w", err)
	}
	e.m.add(read)
	return nil
}

// write covers the region once: the spans, rounded out to the grid, as data.
func (e *exporter) write(region int64, spans []span, buf []byte) error {
	limit, base := regionEnd(region, e.d.Size()), region*plan.Region
	at := 0
	for i := 0; i < len(spans); {
		off, end := spans[i].off/exportGrid*exportGrid, spans[i].end
		for i++; i < len(spans) && spans[i].off < roundUp(end, exportGrid); i++ {
			end = spans[i].end
		}
		end = min(roundUp(end, exportGrid), limit)
		if off > at {
			if err := e.w.WriteZeros(base+int64(at), int64(off-at)); err != nil {
				return err
			}
		}
		if _, err := e.w.WriteAt(buf[off:end], base+int64(off)); err != nil {
			return err
		}
		at = end
	}
	if at < limit {
		return e.w.WriteZeros(base+int64(at), int64(limit-at))
	}
	return nil
}

func roundUp(n, grid int) int { return (n + grid - 1) / grid * grid }

// surveyDisk finds the regions of d that hold data and how much that is.
func surveyDisk(ctx context.Context, d Source) ([]interval, int64, error) {
	var regions []interval
	var data int64
	for off, size := int64(0), d.Size(); off < size; {
		e, err := d.Next(ctx, off)
		if err != nil {
			return nil, 0, fmt.Errorf("convert: find data: %w", err)
		}
		end := min(e.Offset+e.Length, size)
		if end <= off {
			return nil, 0, fmt.Errorf("convert: find data: no extent at byte %d", off)
		}
		if e.Data {
			data += end - off
			regions = withRegions(regions, off, end)
		}
		off = end
	}
	return regions, data, nil
}

// withRegions adds the regions that [off, end) touches; calls ascend.
func withRegions(list []interval, off, end int64) []interval {
	first, last := off/plan.Region, (end-1)/plan.Region
	if n := len(list); n > 0 && first <= list[n-1].last+1 {
		list[n-1].last = max(list[n-1].last, last)
		return list
	}
	return append(list, interval{first, last})
}
