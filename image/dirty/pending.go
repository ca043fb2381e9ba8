package dirty

import "math/bits"

// queueLocked remembers that a region has sectors for the journal. The region's lock is held.
func (s *Set) queueLocked(r *region, saved bool) {
	if saved || r.queued {
		return
	}
	r.queued = true
	s.queueMu.Lock()
	s.queue = append(s.queue, r)
	s.queueMu.Unlock()
}

// A Sink takes what a journal must hold. Its methods are called with a region
// locked and report whether there is room: after false nothing more comes, and
// what was refused stays pending. The page is valid only during the call.
type Sink interface {
	Resize(size int64) bool
	Zero(sector uint64, count int) bool
	Write(sector uint64, page *Page) bool
}

// Drain hands every sector that no journal holds to the sink, and counts it as
// held. It reports whether all was taken. One Drain runs at a time; writes may go on.
func (s *Set) Drain(sink Sink) bool {
	for {
		if !s.drainSize(sink) {
			return false
		}
		s.queueMu.Lock()
		if len(s.queue) == 0 {
			s.queue = nil
			s.queueMu.Unlock()
			return true
		}
		r := s.queue[0]
		s.queueMu.Unlock()

		r.mu.Lock()
		// A write beyond the old end is in the region only if the new size is here by now,
		// and the journal must tell of the size first.
		done := s.drainSize(sink) && r.drainLocked(sink)
		if done {
			// Nobody else takes from the head: a region queued meanwhile stands behind it.
			s.queueMu.Lock()
			s.queue = s.queue[1:]
			s.queueMu.Unlock()
			r.queued = false
		}
		r.mu.Unlock()
		if !done {
			return false
		}
	}
}

func (s *Set) drainSize(sink Sink) bool {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	if s.sized && !sink.Resize(s.size.Load()) {
		return false
	}
	s.sized = false
	return true
}

func (r *region) drainLocked(sink Sink) bool {
	base := r.number * RegionSectors
	if r.unsaid {
		if !sink.Zero(base, RegionSectors) {
			return false
		}
		r.unsaid = false
	}
	if r.chunks == nil {
		return true
	}
	for i, c := range r.chunks {
		for c != nil && c.pending != 0 {
			bit := bits.TrailingZeros64(c.pending)
			sector := base + uint64(i*chunkSectors+bit)
			if c.data>>bit&1 == 1 {
				if !sink.Write(sector, c.pages[bit]) {
					return false
				}
				c.pending &^= 1 << bit
				continue
			}
			n := bits.TrailingZeros64(^((c.pending &^ c.data) >> bit))
			if !sink.Zero(sector, n) {
				return false
			}
			c.pending &^= ^uint64(0) >> (64 - n) << bit
		}
	}
	return true
}
