package handover

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
)

// Table is the writing handles of a host. Safe for concurrent use; the zero value is ready.
type Table struct {
	mu     sync.Mutex
	images map[blockstore.ImageID]*state
}

// state is one image.
type state struct {
	turn    sync.Mutex           // held while the lease is given away, and while a handle begins to write
	handles map[*Handle]struct{} // guarded by turn
	writing atomic.Int32         // those that were not flushed since they wrote, or were opened
	written atomic.Int64         // bytes, by all handles there were
	armed   atomic.Pointer[Armed]
}

func (t *Table) state(id blockstore.ImageID) *state {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.images[id]
	if s == nil {
		if t.images == nil {
			t.images = map[blockstore.ImageID]*state{}
		}
		s = &state{handles: map[*Handle]struct{}{}}
		t.images[id] = s
	}
	return s
}

// Written is how many bytes were written to an image through handles, what was written twice
// counting twice.
func (t *Table) Written(id blockstore.ImageID) int64 { return t.state(id).written.Load() }

// Handle is one open of an image for writing. It is a disk that notes when it was flushed,
// and asks for its turn before it writes again.
type Handle struct {
	*image.Disk
	s       *state
	flushed atomic.Bool
}

// Open makes a handle for a disk; while the lease is being given away it waits. It ends with Close.
func (t *Table) Open(id blockstore.ImageID, d *image.Disk) *Handle {
	h := &Handle{Disk: d, s: t.state(id)}
	h.s.turn.Lock()
	defer h.s.turn.Unlock()
	h.s.handles[h] = struct{}{}
	h.s.writing.Add(1)
	return h
}

// Close ends the handle; the disk stays open.
func (h *Handle) Close() {
	h.s.turn.Lock()
	defer h.s.turn.Unlock()
	h.flushLocked()
	delete(h.s.handles, h)
}

func (h *Handle) flushLocked() {
	if h.flushed.CompareAndSwap(false, true) {
		h.s.writing.Add(-1)
	}
}

// Closing is told that a descriptor of the handle was closed: unless it writes again it
// counts as one that does not. If an armed image is not written any more it is offered,
// which Closing waits for.
func (h *Handle) Closing(ctx context.Context) error {
	h.s.turn.Lock()
	h.flushLocked()
	a := h.s.armed.Load()
	h.s.turn.Unlock()
	if a == nil || !a.still() {
		return nil
	}
	offered := make(chan struct{})
	go func() {
		defer close(offered)
		a.offer(ctx)
	}()
	select {
	case <-offered:
	case <-time.After(a.timeout): // the offer stands, but whoever closes the descriptor does not wait any longer
	case <-ctx.Done():
	}
	return nil
}

// writes voids an offer, or waits until it is taken: then the disk refuses.
func (h *Handle) writes() {
	if !h.flushed.Load() {
		return
	}
	h.s.turn.Lock()
	defer h.s.turn.Unlock()
	if h.flushed.CompareAndSwap(true, false) {
		h.s.writing.Add(1)
	}
}

// WriteAt is that of the disk.
func (h *Handle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	h.writes()
	h.s.written.Add(int64(len(p)))
	return h.Disk.WriteAt(ctx, p, off)
}

// Discard is that of the disk.
func (h *Handle) Discard(ctx context.Context, off, n int64) error {
	h.writes()
	return h.Disk.Discard(ctx, off, n)
}

// Resize is that of the disk.
func (h *Handle) Resize(ctx context.Context, size int64) error {
	h.writes()
	return h.Disk.Resize(ctx, size)
}

// Armed is a handover that waits for its moment, of one image or of several that go together.
type Armed struct {
	to      [32]byte
	offer   func(ctx context.Context)
	timeout time.Duration
	ids     []blockstore.ImageID
	states  []*state // of the ids
	given   chan blockstore.ImageID

	mu   sync.Mutex
	gone map[blockstore.ImageID]bool // guarded by mu
}

// Arm lets images go to the host whose public key is to as soon as nobody writes any of
// them. Offer is called each time when that is so, and whoever has closed the last handle
// waits for it, but not longer than timeout. [image.ErrInUse]: one is armed already.
func (t *Table) Arm(ids []blockstore.ImageID, to [32]byte, timeout time.Duration, offer func(ctx context.Context)) (*Armed, error) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b blockstore.ImageID) int { return bytes.Compare(a[:], b[:]) }) // turns are always taken in this order
	a := &Armed{to: to, offer: offer, timeout: timeout, ids: ids, given: make(chan blockstore.ImageID, len(ids)), gone: map[blockstore.ImageID]bool{}}
	for _, id := range ids {
		a.states = append(a.states, t.state(id))
	}
	for i, s := range a.states { // from here on others see it, as a whole
		if !s.armed.CompareAndSwap(nil, a) {
			a.Disarm()
			return nil, fmt.Errorf("image %v: another migration is under way: %w", ids[i], image.ErrInUse)
		}
	}
	return a, nil
}

// Disarm ends it. What was given stays so.
func (a *Armed) Disarm() {
	for _, s := range a.states {
		s.turn.Lock() // not while it is being given
		s.armed.CompareAndSwap(a, nil)
		s.turn.Unlock()
	}
}

// Count is how many of the images have gone.
func (a *Armed) Count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.gone)
}

// Given tells each image whose lease has gone.
func (a *Armed) Given() <-chan blockstore.ImageID { return a.given }

// still says whether nobody writes any of the images.
func (a *Armed) still() bool {
	for _, s := range a.states {
		if s.writing.Load() > 0 {
			return false
		}
	}
	return true
}

// Group gives the images that go together with one, itself among them.
func (t *Table) Group(id blockstore.ImageID) []blockstore.ImageID {
	if a := t.state(id).armed.Load(); a != nil {
		return a.ids
	}
	return []blockstore.ImageID{id}
}

// Yield runs ready for an image and for all that go together with it, and then give, which gives
// the lease of one to a host, for each, while no handle may write any of them. None is given
// unless all are ready. [image.ErrInUse]: one may be written, or is to go to another host.
func (t *Table) Yield(id blockstore.ImageID, to [32]byte, ready, give func(blockstore.ImageID) error) error {
	s := t.state(id)
	for {
		a := s.armed.Load()
		all := []*state{s}
		if a != nil {
			all = a.states
		}
		for _, s := range all { // others take one at a time, or all in this order
			s.turn.Lock()
		}
		still := s.armed.Load() == a
		var err error
		if still {
			err = yield(s, a, id, to, ready, give)
		}
		for _, s := range all {
			s.turn.Unlock()
		}
		if still { // else a migration has begun, or ended, meanwhile
			return err
		}
	}
}

// yield is Yield while no handle can begin to write. a is what the image is armed for, or nil.
func yield(s *state, a *Armed, id blockstore.ImageID, to [32]byte, ready, give func(blockstore.ImageID) error) error {
	ids := []blockstore.ImageID{id}
	switch {
	case a == nil && len(s.handles) > 0:
		return fmt.Errorf("image %v is open for writing: %w", id, image.ErrInUse)
	case a != nil && (a.to != to || !a.still()):
		return fmt.Errorf("image %v is written, or goes to another host: %w", id, image.ErrInUse)
	case a != nil:
		ids = a.ids
	}
	for _, id := range ids {
		if err := ready(id); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if err := give(id); err != nil {
			return err
		}
		if a != nil {
			a.tell(id)
		}
	}
	return nil
}

// Gone notes that the lease of an image has gone already, to whom it is armed for.
func (t *Table) Gone(id blockstore.ImageID, to [32]byte) {
	if a := t.state(id).armed.Load(); a != nil && a.to == to {
		a.tell(id)
	}
}

// tell tells that an image was given, once.
func (a *Armed) tell(id blockstore.ImageID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.gone[id] {
		a.gone[id] = true
		a.given <- id // there is room for each image
	}
}
