package plan

import (
	"cmp"
	"iter"
	"slices"
)

// Verdict is what an analyser says about two neighbouring blocks.
type Verdict uint8

const (
	Independent Verdict = iota // nothing is known that ties them
	Depends                    // the second is needed where the first is
	Never                      // they must not be merged, whatever others say
)

// Analyser knows one reason why blocks belong together.
type Analyser interface {
	// Name is one lower-case word for reports.
	Name() string
	// Depends judges the block [next−blockSize, next) and the block
	// [next, next+blockSize), in bytes of the image. next is a positive
	// multiple of blockSize, which passes CheckBlockSize. It does no I/O and
	// is safe for concurrent use.
	Depends(next, blockSize int64) Verdict
}

// Extent is a range of bytes of the image.
type Extent struct{ Off, Len int64 }

// end is the byte after the extent; ok is false unless it is a range of at
// least one byte that an int64 can address.
func (e Extent) end() (end int64, ok bool) {
	end = e.Off + e.Len
	return end, e.Off >= 0 && e.Len > 0 && end > 0
}

// spanned is an analyser that joins blocks where one extent lies on both sides.
type spanned struct {
	name string
	in   *boundaries
}

func (s spanned) Name() string { return s.name }

func (s spanned) Depends(next, _ int64) Verdict {
	if s.in.has(next) {
		return Depends
	}
	return Independent
}

// Allocation joins blocks within one run of data of a sparse or dynamic image.
// The extents are the allocated ones, in ascending order; those that touch
// count as one. An image without a hole (the fixed kind) says nothing about
// its blocks: then the verdict is always Independent. Memory is bounded by
// one bit per 64 KiB of the image.
func Allocation(size int64, extents iter.Seq[Extent]) Analyser {
	run := newSpanner(size)
	for e := range extents {
		if !run.add(e) {
			break // they overlap
		}
	}
	if run.at.Off > 0 || run.at.Len < size { // not fixed
		run.flush()
	}
	return spanned{"allocation", run.in}
}

// Range is a range of bytes that was read in a burst of a recorded start-up.
type Range struct {
	Off, Len int64
	Burst    int // number of the burst; ranges of one burst need not stand together
}

// traced holds, for each block size, the boundaries that it joins.
type traced struct {
	joined [maxBlockShift - minBlockShift + 1][]interval
}

// interval is the block boundaries lo to hi, both included, in blocks.
type interval struct{ lo, hi int64 }

// Trace joins blocks that were both touched in the same burst. Ranges that are
// empty, negative or overflow are ignored.
func Trace(ranges []Range) Analyser {
	sorted := slices.Clone(ranges)
	sorted = slices.DeleteFunc(sorted, func(r Range) bool {
		_, ok := Extent{r.Off, r.Len}.end()
		return !ok
	})
	slices.SortFunc(sorted, func(a, b Range) int {
		if a.Burst != b.Burst {
			return cmp.Compare(a.Burst, b.Burst)
		}
		return cmp.Compare(a.Off, b.Off)
	})
	t := new(traced)
	for i := range t.joined {
		t.joined[i] = joinedBy(sorted, minBlockShift+i)
	}
	return t
}

// joinedBy turns ranges, sorted by burst and offset, into the boundaries that
// have touched blocks of one burst on both sides.
func joinedBy(sorted []Range, shift int) []interval {
	var found []interval
	for i := 0; i < len(sorted); {
		burst := sorted[i].Burst
		lo, hi := sorted[i].Off>>shift, int64(-1) // touched blocks, both included
		for ; i < len(sorted) && sorted[i].Burst == burst; i++ {
			first := sorted[i].Off >> shift
			if hi >= 0 && first > hi+1 {
				found = appendTouched(found, lo, hi)
				lo, hi = first, -1
			}
			hi = max(hi, (sorted[i].Off+sorted[i].Len-1)>>shift)
		}
		found = appendTouched(found, lo, hi)
	}
	slices.SortFunc(found, func(a, b interval) int { return cmp.Compare(a.lo, b.lo) })
	union := found[:0]
	for _, iv := range found {
		if n := len(union); n > 0 && iv.lo <= union[n-1].hi+1 {
			union[n-1].hi = max(union[n-1].hi, iv.hi)
			continue
		}
		union = append(union, iv)
	}
	return slices.Clip(union)
}

// appendTouched adds the boundaries inside the touched blocks lo to hi.
func appendTouched(found []interval, lo, hi int64) []interval {
	if hi > lo {
		found = append(found, interval{lo + 1, hi})
	}
	return found
}

func (t *traced) Name() string { return "trace" }

func (t *traced) Depends(next, blockSize int64) Verdict {
	shift := minBlockShift
	for blockSize > 1<<shift {
		shift++
	}
	b := next >> shift
	joined := t.joined[shift-minBlockShift]
	_, found := slices.BinarySearchFunc(joined, b, func(iv interval, b int64) int {
		switch {
		case iv.hi < b:
			return -1
		case iv.lo > b:
			return 1
		}
		return 0
	})
	if found {
		return Depends
	}
	return Independent
}
