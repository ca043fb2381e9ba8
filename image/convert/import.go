package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/image/record"
)

// ImportOptions say how a new image is made.
type ImportOptions struct {
	// Create describes the image. Size and Plan are filled in here; a
	// BlockSize of 0 follows from Link.
	Create   image.CreateOptions
	Link     *plan.Link // the path over which it will travel; nil: none
	Progress Progress   // may be nil
}

// Imported is what an import made.
type Imported struct {
	ID   blockstore.ImageID
	Size int64 // of the disk, in bytes
	Read int64 // bytes read from the source
	Plan plan.Report
}

// ErrEmpty: the source has no bytes, and a disk has at least one.
var ErrEmpty = errors.New("the source is empty")

// sink takes regions of an image; image.Builder is one.
type sink interface {
	AddRegion(region uint64, pieces []image.Piece) error
}

// Import makes a new image of all that src holds, backing files included. The
// blocks that the analysers find to depend on each other are sealed together
// (the paper's VDSS). When it returns nil the image is durable, and nothing
// names it yet; on an error nothing refers to what was stored.
func Import(ctx context.Context, sh *image.Shared, src format.Source, o ImportOptions) (Imported, error) {
	if src.Size() == 0 {
		return Imported{}, fmt.Errorf("convert: %w", ErrEmpty)
	}
	o.prepare(src.Size())
	survey, err := look(ctx, src)
	if err != nil {
		return Imported{}, err
	}
	planner := plan.New(plan.Input{Size: src.Size(), BlockSize: o.Create.BlockSize, Analysers: survey.analysers})
	b, err := sh.Build(ctx, o.Create)
	if err != nil {
		return Imported{}, fmt.Errorf("convert: %w", err)
	}
	defer b.Close()
	read, err := copyIn(ctx, src, survey, planner, b, o.Progress)
	if err != nil {
		return Imported{}, err
	}
	return finish(ctx, b, o, Imported{Size: src.Size(), Read: read, Plan: planner.Report()})
}

func (o *ImportOptions) prepare(size int64) {
	o.Create.Size = size
	if o.Create.BlockSize == 0 {
		o.Create.BlockSize = plan.BlockSize(o.Link)
	}
}

func finish(ctx context.Context, b *image.Builder, o ImportOptions, done Imported) (Imported, error) {
	stats := record.PlanStats{Planned: uint64(done.Plan.Planned), Merged: uint64(done.Plan.Merged), Count: uint64(done.Plan.Count)}
	if o.Link != nil {
		stats.LinkBits, stats.RTT = o.Link.BitsPerSecond, o.Link.RTT
	}
	b.SetPlan(stats)
	id, err := b.Finish(ctx)
	if err != nil {
		return Imported{}, fmt.Errorf("convert: %w", err)
	}
	done.ID = id
	return done, nil
}

// survey is what a first look at a source tells.
type survey struct {
	analysers []plan.Analyser
	regions   []interval // those that hold data
	data      int64      // bytes of data extents
}

// look asks src for its extents and searches it for partitions and file systems.
func look(ctx context.Context, src format.Source) (survey, error) {
	var s survey
	var failed error
	allocation := plan.Allocation(src.Size(), s.extents(ctx, src, &failed))
	if failed != nil {
		return s, fmt.Errorf("convert: find data: %w", failed)
	}
	found, err := plan.Analyse(ctx, src, src.Size())
	if err != nil {
		return s, fmt.Errorf("convert: %w", err)
	}
	s.analysers = append(found, allocation)
	return s, nil
}

// extents walks the data extents of src and notes where they lie.
func (s *survey) extents(ctx context.Context, src format.Source, failed *error) iter.Seq[plan.Extent] {
	return func(yield func(plan.Extent) bool) {
		for off, size := int64(0), src.Size(); off < size; {
			list, err := src.Extents(ctx, off, size-off)
			if err == nil && len(list) == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				*failed = err
				return
			}
			for _, e := range list {
				off = e.Offset + e.Length
				if e.Zero || e.Length == 0 {
					continue
				}
				s.note(e)
				if !yield(plan.Extent{Off: e.Offset, Len: e.Length}) {
					return
				}
			}
		}
	}
}

func (s *survey) note(e format.Extent) {
	s.data += e.Length
	s.regions = withRegions(s.regions, e.Offset, e.Offset+e.Length)
}

// copyIn reads, plans and hands over each region that holds data.
func copyIn(ctx context.Context, src format.Source, s survey, p *plan.Planner, to sink, report Progress) (int64, error) {
	m := newMeter(report, s.data)
	n := workers()
	bufs := make([][]byte, n)
	err := eachRegion(ctx, n, s.regions, func(ctx context.Context, worker int, region int64) error {
		if bufs[worker] == nil {
			bufs[worker] = make([]byte, plan.Region)
		}
		buf := bufs[worker]
		list, err := extentsOf(ctx, src, region)
		if err != nil {
			return fmt.Errorf("convert: find data: %w", err)
		}
		spans := spansOf(region, list, false)
		read, err := readSpans(ctx, src, region, src.Size(), spans, buf)
		if err != nil {
			return err
		}
		segments := p.Region(region, dataRuns(spans, buf))
		if len(segments) > 0 {
			if err := to.AddRegion(uint64(region), pieces(segments, buf)); err != nil {
				return fmt.Errorf("convert: %w", err)
			}
		}
		m.add(read)
		return nil
	})
	return m.done.Load(), err
}
