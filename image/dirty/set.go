package dirty

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// Sizes are those of docs/format.md §1.
const (
	SectorSize    = 4096
	RegionSectors = 4096
	chunkSectors  = 64
	regionChunks  = RegionSectors / chunkSectors
)

// What a part of a Set costs in memory, in bytes, beyond its pages.
const (
	regionCost = 192
	tableCost  = regionChunks * 8
	chunkCost  = 40
	pagesCost  = chunkSectors * 8
)

// Page is the content of one sector.
type Page [SectorSize]byte

// Set is one generation of written sectors. All methods are safe for concurrent use.
type Set struct {
	mu      sync.RWMutex // guards regions
	regions map[uint64]*region

	queueMu sync.Mutex // guards queue and sized
	queue   []*region  // regions with sectors that no journal holds
	sized   bool       // the size below is not in a journal

	size  atomic.Int64  // new size of the disk in bytes, 0 if unchanged
	bytes atomic.Int64  // memory held
	total *atomic.Int64 // the same of all Sets together
}

// region is the part of a Set that one leaf of the map covers.
type region struct {
	number uint64
	mu     sync.RWMutex // guards what follows
	blank  bool         // sectors that no chunk holds are zero
	unsaid bool         // blank is not in a journal
	queued bool         // in Set.queue
	chunks *[regionChunks]*chunk
}

// chunk holds 64 sectors, a bit each.
type chunk struct {
	held    uint64 // data or zero
	data    uint64 // data, in pages
	pending uint64 // not in a journal
	pages   *[chunkSectors]*Page
}

// New makes an empty Set; what it holds is counted in total too, until Release.
func New(total *atomic.Int64) *Set { return &Set{regions: make(map[uint64]*region), total: total} }

// Release takes what the Set holds out of the total. Readers may still use it.
func (s *Set) Release() { s.total.Add(-s.bytes.Swap(0)) }

func (s *Set) grow(n int64) {
	s.bytes.Add(n)
	s.total.Add(n)
}

// Bytes is the memory that the Set holds.
func (s *Set) Bytes() int64 { return s.bytes.Load() }

// Empty reports whether nothing was written to the Set.
func (s *Set) Empty() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.regions) == 0 && s.size.Load() == 0
}

// Size is the disk's size in bytes as this generation set it, 0 if it did not.
func (s *Set) Size() int64 { return s.size.Load() }

// SetSize records a new size; saved says that a journal has it already.
func (s *Set) SetSize(size int64, saved bool) {
	s.queueMu.Lock()
	s.size.Store(size)
	s.sized = !saved
	s.queueMu.Unlock()
}

// Regions gives the numbers of the regions that the Set touches, ascending.
func (s *Set) Regions() []uint64 {
	s.mu.RLock()
	list := make([]uint64, 0, len(s.regions))
	for n := range s.regions {
		list = append(list, n)
	}
	s.mu.RUnlock()
	slices.Sort(list)
	return list
}

// Touches reports whether the Set holds anything of a region.
func (s *Set) Touches(number uint64) bool { return s.find(number) != nil }

func (s *Set) find(number uint64) *region {
	s.mu.RLock()
	r := s.regions[number]
	s.mu.RUnlock()
	return r
}

func (s *Set) region(number uint64) *region {
	if r := s.find(number); r != nil {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.regions[number]
	if r == nil {
		r = &region{number: number}
		s.regions[number] = r
		s.grow(regionCost)
	}
	return r
}

// Write puts data, whole sectors of one region from first on, into the Set.
// saved says that a journal holds it already (replay).
func (s *Set) Write(number uint64, first int, data []byte, saved bool) {
	r := s.region(number)
	r.mu.Lock()
	for i := 0; i < len(data)/SectorSize; i++ {
		c, bit := s.chunkLocked(r, first+i)
		copy(s.pageLocked(c, bit)[:], data[i*SectorSize:])
		c.held |= 1 << bit
		c.data |= 1 << bit
		mark(c, 1<<bit, saved)
	}
	s.queueLocked(r, saved)
	r.mu.Unlock()
}

// Patch changes part of a sector that the Set holds; false if it does not hold it.
func (s *Set) Patch(number uint64, sector, off int, p []byte) bool {
	r := s.find(number)
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	page, held := r.getLocked(sector)
	if !held {
		return false
	}
	c, bit := s.chunkLocked(r, sector)
	dst := s.pageLocked(c, bit)
	if page == nil {
		*dst = Page{}
	}
	copy(dst[off:], p)
	c.held |= 1 << bit
	c.data |= 1 << bit
	mark(c, 1<<bit, false)
	s.queueLocked(r, false)
	return true
}

// Zero makes count sectors of one region zero, from first on.
func (s *Set) Zero(number uint64, first, count int, saved bool) {
	r := s.region(number)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer s.queueLocked(r, saved)
	if first == 0 && count == RegionSectors {
		s.blankLocked(r, saved)
		return
	}
	for count > 0 {
		c, bit := s.chunkLocked(r, first)
		n := min(count, chunkSectors-int(bit))
		mask := ^uint64(0) >> (64 - n) << bit
		s.dropPages(c, mask)
		c.held |= mask
		mark(c, mask, saved)
		first, count = first+n, count-n
	}
}

// blankLocked makes all of a region zero.
func (s *Set) blankLocked(r *region, saved bool) {
	if r.chunks != nil {
		for i, c := range r.chunks {
			if c != nil {
				s.dropPages(c, ^uint64(0))
				s.grow(-chunkCost)
				if c.pages != nil {
					s.grow(-pagesCost)
				}
				r.chunks[i] = nil
			}
		}
	}
	r.blank = true
	r.unsaid = !saved
}

func (s *Set) dropPages(c *chunk, mask uint64) {
	for m := c.data & mask; m != 0; m &= m - 1 {
		c.pages[bits.TrailingZeros64(m)] = nil
		s.grow(-SectorSize)
	}
	c.data &^= mask
}

func (s *Set) chunkLocked(r *region, sector int) (*chunk, uint) {
	if r.chunks == nil {
		r.chunks = new([regionChunks]*chunk)
		s.grow(tableCost)
	}
	c := r.chunks[sector/chunkSectors]
	if c == nil {
		c = new(chunk)
		r.chunks[sector/chunkSectors] = c
		s.grow(chunkCost)
	}
	return c, uint(sector % chunkSectors)
}

func (s *Set) pageLocked(c *chunk, bit uint) *Page {
	if c.pages == nil {
		c.pages = new([chunkSectors]*Page)
		s.grow(pagesCost)
	}
	if c.pages[bit] == nil {
		c.pages[bit] = new(Page)
		s.grow(SectorSize)
	}
	return c.pages[bit]
}

func mark(c *chunk, mask uint64, saved bool) {
	if saved {
		c.pending &^= mask
	} else {
		c.pending |= mask
	}
}

// getLocked gives a sector's page, nil for zeros, and whether the region holds it.
func (r *region) getLocked(sector int) (*Page, bool) {
	if r.chunks != nil {
		if c := r.chunks[sector/chunkSectors]; c != nil && c.held>>(sector%chunkSectors)&1 == 1 {
			if c.data>>(sector%chunkSectors)&1 == 1 {
				return c.pages[sector%chunkSectors], true
			}
			return nil, true
		}
	}
	return nil, r.blank
}

// Each calls fn, in order, for every sector of [first, first+count) of a region
// that the Set holds; page is nil for zeros and valid only during the call. It
// reports whether all of them were held.
func (s *Set) Each(number uint64, first, count int, fn func(sector int, page *Page)) bool {
	r := s.find(number)
	if r == nil {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := true
	for i := first; i < first+count; i++ {
		if !r.blank && (r.chunks == nil || r.chunks[i/chunkSectors] == nil) {
			all = false
			i |= chunkSectors - 1
			continue
		}
		if page, held := r.getLocked(i); held {
			fn(i, page)
		} else {
			all = false
		}
	}
	return all
}

// Next is the first region at or after number that the Set touches.
func (s *Set) Next(number uint64) (next uint64, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for n := range s.regions {
		if n >= number && (!ok || n < next) {
			next, ok = n, true
		}
	}
	return next, ok
}
