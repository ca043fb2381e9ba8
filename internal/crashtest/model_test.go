package crashtest

import (
	"fmt"
	"slices"
	"sync"
)

// version is what a sector holds: a record of a generation, or zeros. Generations grow.
type version struct {
	gen  uint64
	zero bool
}

// states are the versions that each sector may hold.
type states [][]version

// attempt is a write or a discard that was begun.
type attempt struct {
	gen          uint64
	first, count int
	zero         bool
}

func (s states) try(a attempt) {
	for i := range a.count {
		s[a.first+i] = append(s[a.first+i], version{a.gen, a.zero})
	}
}

// settle forgets what an acknowledged attempt replaced.
func (s states) settle(a attempt) {
	for i := range a.count {
		list := s[a.first+i]
		at := slices.IndexFunc(list, func(v version) bool { return v.gen >= a.gen })
		s[a.first+i] = list[max(at, 0):]
	}
}

// check compares what was read with what may be there.
func (s states) check(got []found) error {
	if len(got) != len(s) {
		return fmt.Errorf("%d sectors, want %d", len(got), len(s))
	}
	var faults int
	var first error
	for i, g := range got {
		if slices.ContainsFunc(s[i], g.is) {
			continue
		}
		if faults++; first == nil {
			first = fmt.Errorf("sector %d: got %v, want one of %v", i, g, s[i])
		}
	}
	if faults > 0 {
		return fmt.Errorf("%d sectors are wrong: %w", faults, first)
	}
	return nil
}

// model is the image as its writer knows it.
type model struct {
	mu      sync.Mutex
	now     states
	pending map[int][]attempt // of each worker, since its last fsync
	frozen  map[*frozen]bool
	last    uint64 // newest generation
	syncs   int
	failed  error // what the writer said at its end
}

// frozen is what an image of a moment may hold; until it is done it takes what is tried.
type frozen struct {
	m     *model
	state states
}

func newModel(initial []version) *model {
	m := &model{pending: make(map[int][]attempt), frozen: make(map[*frozen]bool)}
	m.reset(initial)
	return m
}

// reset makes what was read after a crash the one truth.
func (m *model) reset(is []version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = make(states, len(is))
	for i, v := range is {
		m.now[i] = []version{v}
		m.last = max(m.last, v.gen)
	}
	clear(m.pending)
	m.failed = nil
}

// resetTo is reset after a check against s.
func (m *model) resetTo(s states, got []found) {
	is := make([]version, len(got))
	for i, g := range got {
		is[i] = s[i][slices.IndexFunc(s[i], g.is)]
	}
	m.reset(is)
}

func (m *model) freeze() *frozen {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &frozen{m: m, state: make(states, len(m.now))}
	for i, list := range m.now {
		f.state[i] = slices.Clone(list)
	}
	m.frozen[f] = true
	return f
}

func (f *frozen) done() states {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	delete(f.m.frozen, f)
	return f.state
}

// line takes what the writer says: "w WORKER GENERATION FIRST COUNT ZERO" before an attempt,
// "s WORKER" when an fsync of all attempts of a worker has returned, "e TEXT" at an error.
func (m *model) line(text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var worker int
	var a attempt
	if n, _ := fmt.Sscanf(text, "w %d %d %d %d %t", &worker, &a.gen, &a.first, &a.count, &a.zero); n == 5 {
		m.now.try(a)
		for f := range m.frozen {
			f.state.try(a)
		}
		m.pending[worker] = append(m.pending[worker], a)
		m.last = max(m.last, a.gen)
		return nil
	}
	if n, _ := fmt.Sscanf(text, "s %d", &worker); n == 1 {
		for _, a := range m.pending[worker] {
			m.now.settle(a)
		}
		m.pending[worker] = nil
		m.syncs++
		return nil
	}
	if len(text) > 2 && text[:2] == "e " {
		m.failed = fmt.Errorf("writer: %s", text[2:])
		return nil
	}
	return fmt.Errorf("the writer said %q", text)
}

func (m *model) newest() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

func (m *model) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}
