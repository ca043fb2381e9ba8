package blockstore

import "sync"

// gcState is what writers and the collector share.
type gcState struct {
	sweep  sync.RWMutex // held shared from finding a key until it is used, exclusive to sweep a batch
	leases sync.Mutex   // one lease is put at a time

	mu         sync.Mutex
	collecting bool
	holds      map[*Hold]struct{}
	touched    map[ObjectID]struct{} // nil unless collecting or held
	roots      []Root                // commits put since the collection began
	marking    bool                  // a map is being walked: nothing of it may go
	objects    []ObjectID            // to be deleted once it was walked
	commits    []Root
}

// postpone keeps deletions until the collector has walked what they concern; false if
// none is walking.
func (g *gcState) postpone(objects []ObjectID, commits []Root) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.marking {
		g.objects, g.commits = append(g.objects, objects...), append(g.commits, commits...)
	}
	return g.marking
}

// resume ends the postponing and gives what was kept.
func (g *gcState) resume() (objects []ObjectID, commits []Root) {
	g.mu.Lock()
	defer g.mu.Unlock()
	objects, commits = g.objects, g.commits
	g.marking, g.objects, g.commits = false, nil, nil
	return objects, commits
}

func (g *gcState) touch(id ObjectID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.touched != nil {
		g.touched[id] = struct{}{}
	}
}

func (g *gcState) isTouched(id ObjectID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.touched[id]
	return ok
}

func (g *gcState) rooted(r Root) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.collecting {
		g.roots = append(g.roots, r)
	}
}

func (g *gcState) takeRoots() []Root {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.roots
	g.roots = nil
	return r
}

// watchLocked starts or stops remembering touched ids, as somebody needs them.
func (g *gcState) watchLocked() {
	switch need := g.collecting || len(g.holds) > 0; {
	case need && g.touched == nil:
		g.touched = make(map[ObjectID]struct{})
	case !need:
		g.touched = nil
	}
}

// Hold keeps from collection what is put or found while it lasts: an import, a
// transfer, a commit takes one before its first object and releases it once the commit
// that names the objects is durable.
type Hold struct {
	s     *Store
	floor uint64
	once  sync.Once
}

// Hold begins a hold.
func (s *Store) Hold() *Hold {
	s.gc.sweep.Lock()
	defer s.gc.sweep.Unlock()
	h := &Hold{s: s}
	if s.Err() == nil {
		h.floor = s.version()
	}
	s.gc.mu.Lock()
	defer s.gc.mu.Unlock()
	if s.gc.holds == nil {
		s.gc.holds = make(map[*Hold]struct{})
	}
	s.gc.holds[h] = struct{}{}
	s.gc.watchLocked()
	return h
}

// Release ends the hold. Repeating it is harmless.
func (h *Hold) Release() {
	h.once.Do(func() {
		h.s.gc.mu.Lock()
		defer h.s.gc.mu.Unlock()
		delete(h.s.gc.holds, h)
		h.s.gc.watchLocked()
	})
}

// Root is a commit that is kept with all that it reaches.
type Root struct {
	Image  ImageID
	Commit CommitID
}
