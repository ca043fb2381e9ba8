package convert

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/image/record"
)

// ImportStream makes a new image of a raw disk that comes as a stream. Its size
// is known at its end only, so nothing can be looked at ahead: blocks are merged
// where data runs on across them. Nothing is written anywhere but sealed. Like
// [Import] otherwise. The caller makes reading r fail when ctx ends.
func ImportStream(ctx context.Context, sh *image.Shared, r io.Reader, o ImportOptions) (Imported, error) {
	o.prepare(record.MaxImageSize)
	b, err := sh.Build(ctx, o.Create)
	if err != nil {
		return Imported{}, fmt.Errorf("convert: %w", err)
	}
	defer b.Close()
	size, report, err := streamIn(ctx, r, o.Create.BlockSize, b, o.Progress)
	if err != nil {
		return Imported{}, err
	}
	if size == 0 {
		return Imported{}, fmt.Errorf("convert: %w", ErrEmpty)
	}
	b.SetSize(size)
	return finish(ctx, b, o, Imported{Size: size, Read: size, Plan: report})
}

// chunk is the n first bytes of a region, in a buffer of a whole region.
type chunk struct {
	region int64
	n      int
	buf    []byte
}

// streamIn reads regions one after another while workers seal those before.
func streamIn(ctx context.Context, r io.Reader, blockSize int64, to sink, report Progress) (int64, plan.Report, error) {
	g, ctx := errgroup.WithContext(ctx)
	n := workers()
	free, full := make(chan []byte, n+1), make(chan chunk)
	for range n + 1 {
		free <- nil // made when first used
	}
	stream := format.OpenStream(r)
	m := newMeter(report, 0)
	g.Go(func() error {
		defer close(full)
		return readChunks(ctx, stream, free, full, m)
	})
	var mu sync.Mutex
	var sum plan.Report
	for range n {
		g.Go(func() error {
			for c := range full {
				rep, err := addChunk(ctx, c, blockSize, to)
				if err != nil {
					return err
				}
				free <- c.buf // never blocks: there is room for all buffers
				mu.Lock()
				sum.Planned, sum.Merged, sum.Count = sum.Planned+rep.Planned, sum.Merged+rep.Merged, sum.Count+rep.Count
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, sum, err
	}
	if sum.Planned > 0 {
		sum.ReductionPercent = float64(sum.Merged) / float64(sum.Planned) * 100
	}
	return stream.Offset(), sum, nil
}

func readChunks(ctx context.Context, s *format.Stream, free <-chan []byte, full chan<- chunk, m *meter) error {
	for region := int64(0); ; region++ {
		var buf []byte
		select {
		case buf = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if buf == nil {
			buf = make([]byte, plan.Region)
		}
		n, err := s.Next(buf)
		if err != nil && err != io.EOF {
			return fmt.Errorf("convert: %w", err)
		}
		if s.Offset() > record.MaxImageSize {
			return fmt.Errorf("convert: stream of more than %d bytes: %w", int64(record.MaxImageSize), image.ErrTooLarge)
		}
		m.add(int64(n))
		if n > 0 {
			select {
			case full <- chunk{region, n, buf}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// addChunk plans one region by itself and hands it over.
func addChunk(ctx context.Context, c chunk, blockSize int64, to sink) (plan.Report, error) {
	whole := span{0, roundUp(c.n, plan.Sector)}
	clear(c.buf[c.n:whole.end])
	runs := dataRuns([]span{whole}, c.buf)
	extents := make([]plan.Extent, len(runs))
	for i, r := range runs {
		extents[i] = plan.Extent{Off: c.region*plan.Region + int64(r.First)*plan.Sector, Len: int64(r.Count) * plan.Sector}
	}
	p := plan.New(plan.Input{
		Size:      record.MaxImageSize,
		BlockSize: blockSize,
		Analysers: []plan.Analyser{plan.Allocation(record.MaxImageSize, slices.Values(extents))},
	})
	segments := p.Region(c.region, runs)
	if len(segments) == 0 {
		return p.Report(), nil
	}
	if err := to.AddRegion(uint64(c.region), pieces(segments, c.buf)); err != nil {
		return plan.Report{}, fmt.Errorf("convert: %w", err)
	}
	return p.Report(), nil
}
