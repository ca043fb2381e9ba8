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

// Pass goes once over the sectors that no journal holds. What is written meanwhile it may
// leave for the next: writers cannot keep it from ending.
type Pass struct {
	set  *Set
	left int // regions of the queue that it has not seen
	next int // first sector, in the one at the head, that it has not seen
}

// Pass begins a pass. One at a time may run.
func (s *Set) Pass() *Pass {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	return &Pass{set: s, left: len(s.queue)}
}

// Drain hands sectors that no journal holds to the sink, and counts them as held. It
// reports whether the pass is over; if the sink was full, the next call goes on. Writes
// may go on.
func (p *Pass) Drain(sink Sink) bool {
	s := p.set
	for {
		if !s.drainSize(sink) {
			return false
		}
		if p.left == 0 {
			return true
		}
		s.queueMu.Lock()
		r := s.queue[0]
		s.queueMu.Unlock()

		r.mu.Lock()
		// A write beyond the old end is in the region only if the new size is here by now,
		// and the journal must tell of the size first.
		done := s.drainSize(sink) && r.drainLocked(sink, &p.next)
		if done {
			s.requeueLocked(r)
			p.left, p.next = p.left-1, 0
		}
		r.mu.Unlock()
		if !done {
			return false
		}
	}
}

// requeueLocked takes a region from the head of the queue: only a pass takes from there,
// and one that is queued meanwhile stands behind it. What was written behind the pass puts
// it at the end. The region's lock is held.
func (s *Set) requeueLocked(r *region) {
	s.queueMu.Lock()
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
	s.queueMu.Unlock()
	r.queued = false
	s.queueLocked(r, !r.pendingLocked())
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

// drainLocked hands over what is pending from sector *next on, which it moves.
func (r *region) drainLocked(sink Sink, next *int) bool {
	base := r.number * RegionSectors
	if r.unsaid { // before what was written into it since
		if !sink.Zero(base, RegionSectors) {
			return false
		}
		r.unsaid = false
	}
	for r.chunks != nil && *next < RegionSectors {
		start := *next / chunkSectors * chunkSectors
		c, todo := r.chunks[start/chunkSectors], uint64(0)
		if c != nil {
			todo = c.pending &^ (1<<(*next-start) - 1)
		}
		if todo == 0 {
			*next = start + chunkSectors
			continue
		}
		bit := bits.TrailingZeros64(todo)
		first, n := base+uint64(start+bit), 1
		if c.data>>bit&1 == 1 {
			if !sink.Write(first, c.pages[bit]) {
				return false
			}
		} else {
			n = bits.TrailingZeros64(^((todo &^ c.data) >> bit))
			if !sink.Zero(first, n) {
				return false
			}
		}
		c.pending &^= ^uint64(0) >> (64 - n) << bit
		*next = start + bit + n
	}
	return true
}

// pendingLocked reports whether something of the region is in no journal.
func (r *region) pendingLocked() bool {
	if r.unsaid || r.chunks == nil {
		return r.unsaid
	}
	for _, c := range r.chunks {
		if c != nil && c.pending != 0 {
			return true
		}
	}
	return false
}
