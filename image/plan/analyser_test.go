package plan

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// verdicts asks at every boundary of an image and lists, in blocks, those with
// the given answer.
func verdicts(a Analyser, size, blockSize int64, v Verdict) []int64 {
	var found []int64
	for next := blockSize; next < size; next += blockSize {
		if a.Depends(next, blockSize) == v {
			found = append(found, next/blockSize)
		}
	}
	return found
}

func TestAllocation(t *testing.T) {
	const k, size = 64 << 10, 1 << 20
	for _, tt := range []struct {
		name    string
		extents []Extent
		want    []int64
	}{
		{"none", nil, nil},
		{"fixed", []Extent{{0, size}}, nil},
		{"fixed in pieces", []Extent{{0, k + 5}, {k + 5, size - k - 5}}, nil},
		{"longer than the image", []Extent{{0, size + 1}}, nil},
		{"one block", []Extent{{k, k}}, nil},
		{"a byte on each side", []Extent{{k - 1, 2}}, []int64{1}},
		{"a byte before", []Extent{{k - 1, 1}}, nil},
		{"a byte after", []Extent{{k, 1}}, nil},
		{"three blocks", []Extent{{2*k + 1, 2 * k}}, []int64{3, 4}},
		{"touching", []Extent{{0, k}, {k, k}}, []int64{1}},
		{"apart", []Extent{{0, k}, {k + 4096, k}}, []int64{2}},
		{"end", []Extent{{14 * k, 2 * k}}, []int64{15}},
		{"all but the first byte", []Extent{{1, size - 1}}, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}},
		{"beyond", []Extent{{size, k}, {15 * k, 1 << 62}, {1 << 62, 1 << 62}}, nil},
		{"overlapping", []Extent{{0, 14 * k}, {0, 4 * k}, {14 * k, 2 * k}}, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}},
		{"not extents", []Extent{{-k, 2 * k}, {k, 0}, {k, -k}, {1 << 62, 3 << 61}}, nil},
	} {
		a := Allocation(size, slices.Values(tt.extents))
		if got := verdicts(a, size, k, Depends); !slices.Equal(got, tt.want) {
			t.Errorf("%s: joined at %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestAllocationHugeImage(t *testing.T) {
	const size = 1<<63 - 1
	a := Allocation(size, slices.Values([]Extent{{0, 1 << 62}, {1<<62 + 1<<40, 1 << 30}}))
	if got := a.Depends(1<<62-MinBlock, MinBlock); got != Independent {
		t.Errorf("beyond the memory bound: %v", got)
	}
	if got := a.Depends(MinBlock, MinBlock); got != Depends {
		t.Errorf("within the memory bound: %v", got)
	}
}

func TestBoundariesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const page = pageBits << minBlockShift
		size := rapid.Int64Range(0, 3*page).Draw(t, "size")
		want := make(map[int64]bool)
		in := newBoundaries(size)
		s := &spanner{in: in, left: 1 << 40}
		for range rapid.IntRange(0, 6).Draw(t, "extents") {
			off := rapid.OneOf(rapid.Int64Range(0, 1<<20), rapid.Int64Range(page-1<<20, page+1<<20)).Draw(t, "off")
			length := rapid.OneOf(rapid.Int64Range(1, 1<<20), rapid.Int64Range(60<<16, 70<<16)).Draw(t, "len")
			s.add(Extent{off, length})
			s.flush()
			for k := off>>16 + 1; k<<16 < min(off+length, size); k++ {
				want[k<<16] = true
			}
		}
		for k := int64(1); k<<16 < size; k++ {
			if got := in.has(k << 16); got != want[k<<16] {
				t.Fatalf("boundary %d: %v, want %v", k, got, !got)
			}
			if k == 100 {
				k = page>>16 - 100
			} else if k == page>>16+200 {
				break
			}
		}
	})
}

func TestSpannerLimit(t *testing.T) {
	const k = 64 << 10
	s := newSpanner(8 * k)
	for i, tt := range []struct {
		e    Extent
		want bool
	}{
		{Extent{0, 3 * k}, true},
		{Extent{6 * k, 9 * k}, true}, // cut to two
		{Extent{8 * k, k}, true},     // outside
		{Extent{3 * k, 3 * k}, true},
		{Extent{4 * k, 1}, false}, // all bytes were there
		{Extent{5 * k, 3 * k}, false},
		{Extent{8 * k, 1}, true},
	} {
		if got := s.add(tt.e); got != tt.want {
			t.Errorf("add %d = %v, want %v", i, got, tt.want)
		}
	}
	s.flush()
	want := []int64{1, 2, 4, 5, 7}
	if got := verdicts(spanned{"", s.in}, 8*k, k, Depends); !slices.Equal(got, want) {
		t.Errorf("joined at %d, want %d", got, want)
	}
}

func TestTrace(t *testing.T) {
	const k, size = 64 << 10, 1 << 20
	for _, tt := range []struct {
		name   string
		ranges []Range
		want   []int64
	}{
		{"none", nil, nil},
		{"one block", []Range{{k, k, 0}}, nil},
		{"across", []Range{{2*k - 1, 2, 0}}, []int64{2}},
		{"neighbours in a burst", []Range{{0, 1, 7}, {k + 9, 1, 7}}, []int64{1}},
		{"neighbours in two bursts", []Range{{0, 1, 7}, {k + 9, 1, 8}}, nil},
		{"out of order", []Range{{3 * k, 1, 0}, {9 * k, 1, 1}, {2 * k, 1, 0}}, []int64{3}},
		{"a block between", []Range{{0, 1, 0}, {2 * k, 1, 0}}, nil},
		{"inside a larger one", []Range{{0, 3 * k, 0}, {k, 1, 0}, {3 * k, 1, 0}}, []int64{1, 2, 3}},
		{"bursts overlap", []Range{{0, 3 * k, 1}, {2 * k, 2 * k, 0}, {8 * k, 2 * k, 5}}, []int64{1, 2, 3, 9}},
		{"not ranges", []Range{{-k, 3 * k, 0}, {0, 0, 0}, {0, -1, 0}, {1 << 62, 3 << 61, 0}}, nil},
	} {
		if got := verdicts(Trace(tt.ranges), size, k, Depends); !slices.Equal(got, tt.want) {
			t.Errorf("%s: joined at %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestTraceModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 8 << 20
		ranges := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Range {
			return Range{
				Off:   rapid.Int64Range(0, size-1).Draw(t, "off"),
				Len:   rapid.OneOf(rapid.Int64Range(1, 8192), rapid.Int64Range(1, 1<<20)).Draw(t, "len"),
				Burst: rapid.IntRange(-1, 2).Draw(t, "burst"),
			}
		}), 0, 12).Draw(t, "ranges")
		a := Trace(ranges)
		for block := int64(MinBlock); block <= MaxBlock; block *= 2 {
			touched := func(at int64, burst int) bool {
				return slices.ContainsFunc(ranges, func(r Range) bool {
					return r.Burst == burst && r.Off < at+block && r.Off+r.Len > at
				})
			}
			for next := block; next < size; next += block {
				want := Independent
				for burst := -1; burst <= 2; burst++ {
					if touched(next-block, burst) && touched(next, burst) {
						want = Depends
					}
				}
				if got := a.Depends(next, block); got != want {
					t.Fatalf("block size %d, boundary %d: got %v, want %v", block, next, got, want)
				}
			}
		}
	})
}

func TestPartitioned(t *testing.T) {
	const k, size = 64 << 10, 1 << 20
	for _, tt := range []struct {
		name  string
		parts []Extent
		block int64
		want  []int64
	}{
		{"none", nil, k, nil},
		{"whole image", []Extent{{0, size}}, k, nil},
		{"aligned", []Extent{{2 * k, 4 * k}}, k, []int64{2, 6}},
		{"neighbours", []Extent{{2 * k, 4 * k}, {6 * k, 2 * k}}, k, []int64{2, 6, 8}},
		{"inside a block: merged with no neighbour", []Extent{{2*k + 512, size}}, k, []int64{2, 3}},
		{"last byte of a block", []Extent{{3*k - 1, size}}, k, []int64{2, 3}},
		{"first block", []Extent{{512, size}}, k, []int64{1}},
		{"last block", []Extent{{0, size - 512}}, k, []int64{15}},
		{"large blocks", []Extent{{k, size - k}}, 4 * k, []int64{1}},
		{"large blocks, on the grid", []Extent{{8 * k, 8 * k}}, 4 * k, []int64{2}},
	} {
		if got := verdicts(newPartitioned(tt.parts, size), size, tt.block, Never); !slices.Equal(got, tt.want) {
			t.Errorf("%s: parted at %d, want %d", tt.name, got, tt.want)
		}
	}
}
