package plan

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// ruled is an analyser that answers by a function.
type ruled func(next, blockSize int64) Verdict

func (ruled) Name() string                            { return "ruled" }
func (f ruled) Depends(next, blockSize int64) Verdict { return f(next, blockSize) }

func always(v Verdict) Analyser { return ruled(func(int64, int64) Verdict { return v }) }

func TestRegionEdges(t *testing.T) {
	full := []Run{{0, SectorsPerRegion}}
	for _, tt := range []struct {
		name      string
		size      int64
		block     int64
		region    int64
		analysers []Analyser
		runs      []Run
		want      []Segment
	}{
		{name: "no data", size: Region, region: 0},
		{name: "one sector", size: 1, runs: []Run{{0, 1}}, want: []Segment{{{0, 1}}}},
		{name: "last sector", size: 2*Region + 4097, region: 2, runs: []Run{{0, 2}}, want: []Segment{{{0, 2}}}},
		{name: "nobody knows", size: Region, runs: []Run{{15, 2}}, want: []Segment{{{15, 1}}, {{16, 1}}}},
		{name: "joined", size: Region, analysers: []Analyser{always(Depends)}, runs: []Run{{15, 2}}, want: []Segment{{{15, 2}}}},
		{name: "one says so", size: Region, analysers: []Analyser{always(Independent), always(Depends), always(Independent)}, runs: []Run{{15, 2}}, want: []Segment{{{15, 2}}}},
		{name: "never wins", size: Region, analysers: []Analyser{always(Depends), always(Never)}, runs: []Run{{15, 2}}, want: []Segment{{{15, 1}}, {{16, 1}}}},
		{name: "zero sectors in a block", size: Region, runs: []Run{{0, 1}, {2, 1}, {15, 1}}, want: []Segment{{{0, 1}, {2, 1}, {15, 1}}}},
		{name: "touching runs", size: Region, runs: []Run{{0, 1}, {1, 3}}, want: []Segment{{{0, 4}}}},
		{name: "touching at a block", size: Region, analysers: []Analyser{always(Depends)}, runs: []Run{{0, 16}, {16, 3}}, want: []Segment{{{0, 19}}}},
		{name: "hole block parts", size: Region, analysers: []Analyser{always(Depends)}, runs: []Run{{0, 16}, {32, 16}}, want: []Segment{{{0, 16}}, {{32, 16}}}},
		{name: "large blocks", size: Region, block: MaxBlock, analysers: []Analyser{always(Depends)}, runs: []Run{{255, 2}, {600, 1}}, want: []Segment{{{255, 2}, {600, 1}}}},
		{name: "large full block takes none", size: Region, block: MaxBlock, analysers: []Analyser{always(Depends)}, runs: []Run{{0, 257}}, want: []Segment{{{0, 256}}, {{256, 1}}}},
		{name: "limit", size: Region, analysers: []Analyser{always(Depends)}, runs: []Run{{16, 272}}, want: []Segment{{{16, 256}}, {{272, 16}}}},
		{name: "limit counts data, not span", size: Region, analysers: []Analyser{always(Depends)}, runs: []Run{{1, 256}}, want: []Segment{{{1, 256}}}},
		{name: "one over the limit", size: Region, analysers: []Analyser{always(Depends)}, runs: []Run{{1, 257}}, want: []Segment{{{1, 255}}, {{256, 2}}}},
		{name: "full region", size: Region, analysers: []Analyser{always(Depends)}, runs: full, want: func() (s []Segment) {
			for i := range uint16(16) {
				s = append(s, Segment{{i * 256, 256}})
			}
			return s
		}()},
	} {
		p := New(Input{Size: tt.size, BlockSize: tt.block, Analysers: tt.analysers})
		got := p.Region(tt.region, tt.runs)
		if len(got) != len(tt.want) || (len(got) > 0 && !reflect.DeepEqual(got, tt.want)) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
		if rep := p.Report(); rep.Count != int64(len(got)) || rep.Planned-rep.Merged != rep.Count {
			t.Errorf("%s: report %+v for %d segments", tt.name, rep, len(got))
		}
	}
}

func TestRegionAsksWithImageOffsets(t *testing.T) {
	var asked []int64
	p := New(Input{Size: 4 * Region, BlockSize: 128 << 10, Analysers: []Analyser{ruled(func(next, size int64) Verdict {
		if size != 128<<10 {
			t.Errorf("asked with block size %d", size)
		}
		asked = append(asked, next)
		return Independent
	})}})
	p.Region(3, []Run{{0, 96}, {160, 32}, {4095, 1}})
	want := []int64{3*Region + 128<<10, 3*Region + 256<<10}
	if !slices.Equal(asked, want) {
		t.Errorf("asked at %d, want %d", asked, want)
	}
}

func TestReport(t *testing.T) {
	p := New(Input{Size: 2 * Region, Analysers: []Analyser{always(Depends)}})
	if got := p.Report(); got != (Report{}) {
		t.Errorf("empty report %+v", got)
	}
	p.Region(0, []Run{{0, 4096}})
	p.Region(1, []Run{{0, 4096}})
	got, err := json.Marshal(p.Report())
	want := `{"planned":512,"merged":480,"count":32,"reduction_percent":93.75}`
	if err != nil || string(got) != want {
		t.Errorf("report %s, %v; want %s", got, err, want)
	}
}

func TestRegionPanicsOnBadRuns(t *testing.T) {
	p := New(Input{Size: Region + 4096})
	for _, tt := range []struct {
		region int64
		runs   []Run
	}{
		{0, []Run{{0, 0}}},
		{0, []Run{{4, 2}, {5, 1}}},
		{0, []Run{{4, 2}, {0, 1}}},
		{0, []Run{{4095, 2}}},
		{0, []Run{{65535, 65535}}},
		{1, []Run{{0, 2}}},
		{1, []Run{{1, 1}}},
		{2, []Run{{0, 1}}},
		{-1, []Run{{0, 1}}},
	} {
		if !panics(func() { p.Region(tt.region, tt.runs) }) {
			t.Errorf("region %d, runs %v: no panic", tt.region, tt.runs)
		}
	}
	if !panics(func() { New(Input{BlockSize: 3}) }) || !panics(func() { New(Input{Size: -1}) }) {
		t.Error("New took a bad input")
	}
	if !panics(func() { New(Input{}).Region(0, []Run{{0, 1}}) }) {
		t.Error("an image of no bytes took a run")
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}

// drawn is a planner's input as rapid draws it.
type drawn struct {
	in      Input
	regions [][]Run
	verdict map[int64]Verdict // by boundary
}

func draw(t *rapid.T) drawn {
	block := int64(MinBlock) << rapid.IntRange(0, 4).Draw(t, "block shift")
	regions := rapid.IntRange(1, 3).Draw(t, "regions")
	d := drawn{verdict: make(map[int64]Verdict)}
	last := rapid.IntRange(1, SectorsPerRegion).Draw(t, "sectors of the last region")
	d.in = Input{Size: int64(regions-1)*Region + int64(last)*Sector, BlockSize: block}
	bias := rapid.IntRange(0, 10).Draw(t, "bias")
	for at := block; at < d.in.Size; at += block {
		switch n := rapid.IntRange(0, 11).Draw(t, "verdict"); {
		case n == 11:
			d.verdict[at] = Never
		case n >= bias:
			d.verdict[at] = Depends
		}
	}
	d.in.Analysers = []Analyser{ruled(func(next, _ int64) Verdict { return d.verdict[next] })}
	for r := range regions {
		limit := SectorsPerRegion
		if r == regions-1 {
			limit = last
		}
		var runs []Run
		longest := rapid.SampledFrom([]int{2, 40, 600, 4096}).Draw(t, "longest")
		for at := rapid.IntRange(0, longest).Draw(t, "gap"); at < limit; {
			n := min(limit-at, rapid.IntRange(1, longest).Draw(t, "run"))
			runs = append(runs, Run{uint16(at), uint16(n)})
			at += n + rapid.IntRange(0, longest).Draw(t, "gap")
		}
		d.regions = append(d.regions, runs)
	}
	return d
}

// sectorsOf lists the sectors of runs, in their order.
func sectorsOf(runs []Run) (s []int) {
	for _, r := range runs {
		for i := int(r.First); i < r.End(); i++ {
			s = append(s, i)
		}
	}
	return s
}

func checkSegment(d drawn, r int64, s Segment) error {
	if n := s.Sectors(); n < 1 || n > MaxSegment/Sector {
		return fmt.Errorf("%d sectors", n)
	}
	per := int(d.in.BlockSize / Sector)
	for i, run := range s {
		if i > 0 && int(run.First) <= s[i-1].End() {
			return fmt.Errorf("runs %v and %v are not apart", s[i-1], run)
		}
	}
	sectors := sectorsOf(s)
	for i := 1; i < len(sectors); i++ {
		before, b := sectors[i-1]/per, sectors[i]/per
		if b == before {
			continue
		}
		if at := r*Region + int64(b)*d.in.BlockSize; b != before+1 || d.verdict[at] != Depends {
			return fmt.Errorf("merged over the boundary at %d: %v", at, d.verdict[at])
		}
	}
	return nil
}

// checkRegion checks the plan of one region and counts its blocks with data.
func checkRegion(d drawn, r int64, plan []Segment) (planned int64, err error) {
	per := int(d.in.BlockSize / Sector)
	var all []Run
	for i, s := range plan {
		if err := checkSegment(d, r, s); err != nil {
			return 0, fmt.Errorf("segment %v: %w", s, err)
		}
		all = append(all, s...)
		if i > 0 && fits(d, r, plan[i-1], s) {
			return 0, fmt.Errorf("%v and the first block of %v could be one", plan[i-1], s)
		}
	}
	sectors := sectorsOf(d.regions[r])
	if !slices.Equal(sectorsOf(all), sectors) {
		return 0, fmt.Errorf("segments %v do not hold the runs %v", plan, d.regions[r])
	}
	for i, sector := range sectors {
		if i == 0 || sector/per != sectors[i-1]/per {
			planned++
		}
	}
	return planned, nil
}

// fits says whether a segment could have taken the next one's first block.
func fits(d drawn, r int64, s, next Segment) bool {
	per := int(d.in.BlockSize / Sector)
	b := int(next[0].First) / per
	if (s[len(s)-1].End()-1)/per != b-1 || d.verdict[r*Region+int64(b)*d.in.BlockSize] != Depends {
		return false
	}
	n := s.Sectors()
	for _, sector := range sectorsOf(next) {
		if sector/per == b {
			n++
		}
	}
	return n <= MaxSegment/Sector
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := draw(t)
		p := New(d.in)
		plans := make([][]Segment, len(d.regions))
		var want Report
		for r, runs := range d.regions {
			plans[r] = p.Region(int64(r), runs)
			planned, err := checkRegion(d, int64(r), plans[r])
			if err != nil {
				t.Fatalf("region %d: %v", r, err)
			}
			want.Planned += planned
			want.Count += int64(len(plans[r]))
		}
		want.Merged = want.Planned - want.Count
		if want.Planned > 0 {
			want.ReductionPercent = float64(want.Merged) / float64(want.Planned) * 100
		}
		if got := p.Report(); got != want {
			t.Fatalf("report %+v, want %+v", got, want)
		}
		// Again, all at once and backwards: the same plan and report.
		again := New(d.in)
		var wg sync.WaitGroup
		for r := len(d.regions) - 1; r >= 0; r-- {
			wg.Go(func() {
				if got := again.Region(int64(r), d.regions[r]); !reflect.DeepEqual(got, plans[r]) {
					t.Errorf("region %d: got %v, then %v", r, plans[r], got)
				}
			})
		}
		wg.Wait()
		if got := again.Report(); got != want {
			t.Fatalf("report %+v, then %+v", want, got)
		}
	})
}

// BenchmarkRegion plans 16 GiB of data, with one analyser of each kind.
func BenchmarkRegion(b *testing.B) {
	const size = 16 << 30
	parts := newPartitioned([]Extent{{1 << 20, size / 2}, {1<<20 + size/2, size/2 - 2<<20}}, size)
	files := spanned{"ext4", newBoundaries(size)}
	files.in.set(1, size>>minBlockShift-1)
	var ranges []Range
	for i := range int64(10_000) {
		ranges = append(ranges, Range{Off: i * 1_500_000, Len: 40_000, Burst: int(i / 1000)})
	}
	analysers := []Analyser{
		Allocation(size, slices.Values([]Extent{{0, size / 4}, {size / 2, size / 2}})),
		parts, files, Trace(ranges),
	}
	runs := []Run{{0, SectorsPerRegion}}
	for b.Loop() {
		p := New(Input{Size: size, Analysers: analysers})
		for r := range int64(size / Region) {
			p.Region(r, runs)
		}
		if p.Report().Planned != size/MinBlock {
			b.Fatal(p.Report())
		}
	}
}
