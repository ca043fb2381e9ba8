package plan

import (
	"fmt"
	"sync"
)

// The grid, in bytes.
const (
	Sector     = 4 << 10
	Region     = 16 << 20
	MaxSegment = 1 << 20 // data in one segment
	MinBlock   = 64 << 10
	MaxBlock   = 1 << 20

	SectorsPerRegion = Region / Sector
	blocksPerRegion  = Region / MinBlock // at most
)

// Run is a run of sectors of one region. First counts from the region's start.
type Run struct {
	First uint16
	Count uint16 // at least 1
}

// End is the sector after the run.
func (r Run) End() int { return int(r.First) + int(r.Count) }

// Segment is what is sealed as one object: runs of data sectors of one region,
// ascending, with a hole between any two of them.
type Segment []Run

// Sectors is the number of sectors in the segment, 1 to 256.
func (s Segment) Sectors() int {
	n := 0
	for _, r := range s {
		n += int(r.Count)
	}
	return n
}

// Input is what a plan is made from.
type Input struct {
	Size      int64      // of the image, in bytes
	BlockSize int64      // see [CheckBlockSize]; 0 is MinBlock
	Analysers []Analyser // none: no block is merged
}

// Report is what the paper's segmentation table has.
type Report struct {
	Planned          int64   `json:"planned"`           // blocks that hold data
	Merged           int64   `json:"merged"`            // times that a block was merged into its left neighbour's segment
	Count            int64   `json:"count"`             // segments left: Planned − Merged
	ReductionPercent float64 `json:"reduction_percent"` // Merged ÷ Planned × 100; 0 if nothing was planned
}

// Planner makes the plan of one image, region by region. It is safe for
// concurrent use as long as its analysers are; those of this package are.
type Planner struct {
	sectors   int64 // of the image
	blockSize int64
	analysers []Analyser

	mu              sync.Mutex
	planned, merged int64
}

// New returns a planner. It panics if the block size fails [CheckBlockSize] or
// the size is negative.
func New(in Input) *Planner {
	if in.BlockSize == 0 {
		in.BlockSize = MinBlock
	}
	if err := CheckBlockSize(in.BlockSize); err != nil {
		panic(err)
	}
	if in.Size < 0 {
		panic(fmt.Sprintf("plan: size %d", in.Size))
	}
	sectors := in.Size / Sector
	if in.Size%Sector != 0 {
		sectors++
	}
	return &Planner{sectors: sectors, blockSize: in.BlockSize, analysers: in.Analysers}
}

// Region plans region r (the one at byte r × 16 MiB). The runs are its sectors
// that hold data, zero sectors left out, in ascending order without overlap;
// runs that touch count as one. The segments come in ascending order and are
// the caller's. Each call adds to the report, so a region that is planned
// again, after a guest wrote to it, needs a planner of its own.
//
// It panics if the runs are not as described or lie outside the image: to go
// on would lose data.
func (p *Planner) Region(r int64, allocated []Run) []Segment {
	p.check(r, allocated)
	perBlock := int(p.blockSize / Sector)
	var data [blocksPerRegion]int // sectors of data in each block
	for _, run := range allocated {
		for first, end := int(run.First), run.End(); first < end; {
			b := first / perBlock
			next := min(end, (b+1)*perBlock)
			data[b] += next - first
			first = next
		}
	}
	begins, planned, count := p.merge(r, &data)
	p.mu.Lock()
	p.planned += planned
	p.merged += planned - count
	p.mu.Unlock()
	return split(allocated, begins, perBlock, int(count))
}

// check panics unless the runs are ascending, apart, and inside the image.
func (p *Planner) check(r int64, allocated []Run) {
	if len(allocated) == 0 {
		return
	}
	if r < 0 || r > (p.sectors-1)/SectorsPerRegion {
		panic(fmt.Sprintf("plan: region %d is outside the image", r))
	}
	limit := int(min(SectorsPerRegion, p.sectors-r*SectorsPerRegion))
	end := 0
	for _, run := range allocated {
		if run.Count == 0 || int(run.First) < end || run.End() > limit {
			panic(fmt.Sprintf("plan: region %d: run %d+%d is empty, out of order or outside", r, run.First, run.Count))
		}
		end = run.End()
	}
}

// merge says for each block with data whether a segment begins there, and
// counts the blocks with data and the segments.
func (p *Planner) merge(r int64, data *[blocksPerRegion]int) (begins *[blocksPerRegion]bool, planned, count int64) {
	begins = new([blocksPerRegion]bool)
	open := 0 // sectors in the segment that the block before belongs to; 0 after a hole
	for b, n := range data {
		if n == 0 {
			open = 0
			continue
		}
		planned++
		next := r*Region + int64(b)*p.blockSize
		if open > 0 && open+n <= MaxSegment/Sector && p.joined(next) {
			open += n
			continue
		}
		begins[b] = true
		open = n
		count++
	}
	return begins, planned, count
}

// joined says whether the blocks on both sides of the boundary are one.
func (p *Planner) joined(next int64) bool {
	joined := false
	for _, a := range p.analysers {
		switch a.Depends(next, p.blockSize) {
		case Never:
			return false
		case Depends:
			joined = true
		}
	}
	return joined
}

// split hands the runs out to segments, cutting a run where a segment begins.
func split(allocated []Run, begins *[blocksPerRegion]bool, perBlock, count int) []Segment {
	segments := make([]Segment, 0, count)
	begun := -1 // the block at which the last segment began
	for _, run := range allocated {
		for first, end := int(run.First), run.End(); first < end; {
			b := first / perBlock
			next := min(end, (b+1)*perBlock)
			if begins[b] && b != begun {
				begun = b
				segments = append(segments, nil)
			}
			last := len(segments) - 1
			segments[last] = segments[last].extend(first, next)
			first = next
		}
	}
	return segments
}

// extend adds sectors at the end of a segment.
func (s Segment) extend(first, end int) Segment {
	if n := len(s); n > 0 && s[n-1].End() == first {
		s[n-1].Count += uint16(end - first)
		return s
	}
	return append(s, Run{First: uint16(first), Count: uint16(end - first)})
}

// Report sums up all calls of [Planner.Region] that have returned.
func (p *Planner) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	rep := Report{Planned: p.planned, Merged: p.merged, Count: p.planned - p.merged}
	if p.planned > 0 {
		rep.ReductionPercent = float64(p.merged) / float64(p.planned) * 100
	}
	return rep
}
