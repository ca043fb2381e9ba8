package plan

const (
	minBlockShift = 16
	maxBlockShift = 20

	pageBits = 1 << 15 // boundaries on one page of a bitmap: 2 GiB of the image
	maxPages = 1 << 14 // 64 MiB of bitmap: 32 TiB of the image without a hole
)

// boundaries is a set of multiples of 64 KiB, each the boundary between two
// blocks of the smallest size; those of larger blocks are among them. Memory
// grows with what is set: one bit per 64 KiB of data at most, and no more than
// 64 MiB, beyond which nothing is added. Once filled it may be read from
// several goroutines.
type boundaries struct {
	size  int64 // of the image; what lies beyond is not kept
	pages map[int64]*[pageBits / 64]uint64
}

func newBoundaries(size int64) *boundaries {
	return &boundaries{size: size, pages: make(map[int64]*[pageBits / 64]uint64)}
}

func (b *boundaries) has(at int64) bool {
	k := at >> minBlockShift
	page := b.pages[k/pageBits]
	return page != nil && page[k%pageBits/64]>>(k%64)&1 == 1
}

// inside gives the first and the last boundary that has bytes of the extent on
// both sides; there is none if first > last. The extent must lie in the image.
func inside(e Extent) (first, last int64) {
	return e.Off>>minBlockShift + 1, (e.Off + e.Len - 1) >> minBlockShift
}

// set adds boundaries first to last.
func (b *boundaries) set(first, last int64) {
	for first <= last {
		page := b.pages[first/pageBits]
		if page == nil {
			if len(b.pages) == maxPages {
				return
			}
			page = new([pageBits / 64]uint64)
			b.pages[first/pageBits] = page
		}
		// The part of the range that falls into one word.
		n := min(64-first%64, last-first+1)
		page[first%pageBits/64] |= (1<<n - 1) << (first % 64)
		first += n
	}
}

// spanner joins extents that touch, in the order in which they come, and adds
// the boundaries inside each. It bounds its own work and its caller's: extents
// that do not overlap cannot have more bytes than the image.
type spanner struct {
	in   *boundaries
	at   Extent // not added yet
	left int64  // bytes that may still come
}

func newSpanner(size int64) *spanner {
	return &spanner{in: newBoundaries(size), left: size}
}

// add takes the next extent, cut to the image. It returns false and ignores
// the extent if there have been more bytes than may be.
func (s *spanner) add(e Extent) bool {
	end, ok := e.end()
	if end = min(end, s.in.size); !ok || end <= e.Off {
		return true
	}
	if end-e.Off > s.left {
		return false
	}
	s.left -= end - e.Off
	if s.at.Len > 0 && s.at.Off+s.at.Len == e.Off {
		s.at.Len = end - s.at.Off
		return true
	}
	s.flush()
	s.at = Extent{e.Off, end - e.Off}
	return true
}

// flush adds what is joined so far; the next extent begins a new run.
func (s *spanner) flush() {
	if s.at.Len > 0 {
		s.in.set(inside(s.at))
	}
	s.at = Extent{}
}
