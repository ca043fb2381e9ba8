package valuelog

import (
	"os"
	"sync"
)

const (
	streams   = 8       // that are followed at once
	nearby    = 4 << 20 // bytes: how far a stream may jump ahead, or fall back
	steady    = 3       // steps that make a stream
	smallStep = 256 << 10
	largeStep = 4 << 20
)

// readahead asks for more than is read where that is done in sequence: what was stored
// together lies together, though not in one order when several stored at once.
type readahead struct {
	mu   sync.Mutex // guards what follows
	list [streams]stream
	tick uint64
}

// stream is where somebody reads on.
type stream struct {
	file  *os.File // never read: a stream says in which file it is
	next  int64    // where the last step ended
	ahead int64    // up to here it has been asked for
	step  int64    // how much is asked for at once
	steps int
	used  uint64
}

// follow gives what to ask for when start to end of a file are read; nothing if from
// is not below to.
func (r *readahead) follow(file *os.File, start, end int64) (from, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick++
	oldest := &r.list[0]
	for i := range r.list {
		s := &r.list[i]
		if s.file == file && start+nearby >= s.next && start <= s.next+nearby {
			s.used = r.tick
			return s.advance(end)
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{file: file, next: end, ahead: end, step: smallStep, used: r.tick}
	return 0, 0
}

func (s *stream) advance(end int64) (from, to int64) {
	s.next = max(s.next, end)
	s.ahead = max(s.ahead, s.next)
	if s.steps++; s.steps < steady || s.ahead >= s.next+s.step/2 {
		return 0, 0
	}
	from, to = s.ahead, s.next+s.step
	s.ahead, s.step = to, min(2*s.step, largeStep)
	return from, to
}
