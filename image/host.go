package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/tree"
)

// Defaults and bounds of one daemon, in bytes (docs/architecture.md, Numbers).
const (
	DefaultCacheBytes = 128 << 20
	DefaultDirtyBytes = 128 << 20
	nodeCacheBytes    = 64 << 20
	segmentCacheBytes = 24 << 20
)

// Host is what the images of one store share on this machine.
type Host struct {
	Store      *blockstore.Store
	Key        crypto.HostKey
	Identities []age.Identity
	Anchor     *anchor.Anchor
	Log        *slog.Logger
	Now        func() time.Time
	Took       func(operation string, d time.Duration) // is told how long each "flush" and "commit" took; nil: nobody is
	Fetch      tree.Fetch                              // brings what is missing of images that are not whole here; nil: nothing does
	CacheBytes int64                                   // opened frames kept; 0 = DefaultCacheBytes
	DirtyBytes int64                                   // uncommitted data, all disks together; 0 = DefaultDirtyBytes
}

// Shared is the running state behind a Host: caches, and the bound on dirty data.
// There is one for a store. It is safe for concurrent use.
type Shared struct {
	Host
	loader   *tree.Loader
	frames   *frameCache
	segments *segmentCache
	suite    crypto.Suite

	dirty    atomic.Int64 // bytes of all dirty sets
	mu       sync.Mutex   // for writers and guards
	drained  *sync.Cond   // dirty has shrunk, or a commit failed
	writers  map[blockstore.ImageID]*Disk
	readers  map[*Disk]struct{} // of heads that others write
	guards   map[*guard]struct{}
	watches  map[blockstore.ImageID]chan struct{} // closed when there is another head
	unmerged map[blockstore.ImageID]int           // images of which no region is planned again
}

// NewShared makes the running state of a host.
func NewShared(h Host) (*Shared, error) {
	if h.CacheBytes == 0 {
		h.CacheBytes = DefaultCacheBytes
	}
	if h.Took == nil {
		h.Took = func(string, time.Duration) {}
	}
	if h.DirtyBytes == 0 {
		h.DirtyBytes = DefaultDirtyBytes
	}
	loader, err := tree.NewLoader(h.Store, nodeCacheBytes, h.Fetch)
	if err != nil {
		return nil, err
	}
	frames, err := newFrameCache(h.CacheBytes)
	if err != nil {
		return nil, err
	}
	segments, err := newSegmentCache(segmentCacheBytes)
	if err != nil {
		return nil, err
	}
	s := &Shared{Host: h, loader: loader, frames: frames, segments: segments, suite: crypto.PreferredSuite(),
		writers: make(map[blockstore.ImageID]*Disk), readers: make(map[*Disk]struct{}), guards: make(map[*guard]struct{}),
		watches: make(map[blockstore.ImageID]chan struct{}), unmerged: make(map[blockstore.ImageID]int)}
	s.drained = sync.NewCond(&s.mu)
	return s, nil
}

// Unmerged keeps regions of an image from being planned again until release, unless room is
// short: who follows its state would be sent again what has not changed.
func (s *Shared) Unmerged(id blockstore.ImageID) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unmerged[id]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.unmerged[id]--; s.unmerged[id] == 0 {
			delete(s.unmerged, id)
		}
	})
}

func (s *Shared) isUnmerged(id blockstore.ImageID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unmerged[id] > 0
}

// enter makes d the one disk of this process that writes its image.
func (s *Shared) enter(d *Disk) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[d.id] != nil {
		return fmt.Errorf("image %v: %w", d.id, ErrInUse)
	}
	s.writers[d.id] = d
	return nil
}

// Unwritten keeps an image from being opened for writing until release ([ErrInUse] if it is):
// who puts a head that comes from elsewhere is the writer meanwhile.
func (s *Shared) Unwritten(id blockstore.ImageID) (release func(), err error) {
	d := &Disk{s: s, id: id}
	if err := s.enter(d); err != nil {
		return nil, err
	}
	return func() { s.leave(d) }, nil
}

func (s *Shared) leave(d *Disk) {
	s.mu.Lock()
	if s.writers[d.id] == d {
		delete(s.writers, d.id)
	}
	delete(s.readers, d)
	s.mu.Unlock()
	s.drained.Broadcast()
}

// Dirty is how many bytes are in no commit yet, of all disks.
func (s *Shared) Dirty() int64 { return s.dirty.Load() }

// Changed gives a channel that is closed when the image may have another head than now.
func (s *Shared) Changed(id blockstore.ImageID) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.watches[id]
	if c == nil {
		c = make(chan struct{})
		s.watches[id] = c
	}
	return c
}

// moved tells those who watch an image that it has a new head.
func (s *Shared) moved(id blockstore.ImageID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.watches[id]; c != nil {
		close(c)
		delete(s.watches, id)
	}
}

// Advance makes disks that only read an image show the head that it has now: one that
// came from a peer. What fails leaves a disk where it is.
func (s *Shared) Advance(ctx context.Context, id blockstore.ImageID) error {
	s.moved(id)
	s.mu.Lock()
	var readers []*Disk
	for d := range s.readers {
		if d.id == id {
			readers = append(readers, d)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, d := range readers {
		errs = append(errs, d.advance(ctx))
	}
	return errors.Join(errs...)
}

// throttle starts a commit at half the bound and makes a writer wait at the bound.
// The wait ends with an error if the commit that it waits for cannot be made.
func (s *Shared) throttle(ctx context.Context, d *Disk) error {
	if s.dirty.Load() < s.DirtyBytes/2 {
		return nil
	}
	defer context.AfterFunc(ctx, s.shrunk)()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		waiting := s.pressLocked()
		if err := d.stalled(); err != nil && s.dirty.Load() >= s.DirtyBytes {
			d.kick() // perhaps there is room by now
			return err
		}
		if waiting < s.DirtyBytes {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s.drained.Wait()
	}
}

// pressLocked asks the disk with most dirty bytes for a commit, and gives how much
// waits for commits that can be made: a disk that cannot make its own holds up no other,
// and takes no more itself once the bound is reached, so twice the bound is the most.
func (s *Shared) pressLocked() (waiting int64) {
	var largest *Disk
	var most int64
	for _, d := range s.writers {
		n := d.dirtyBytes()
		if d.stalled() != nil {
			continue
		}
		waiting += n
		if n > most {
			largest, most = d, n
		}
	}
	if largest != nil {
		largest.kick()
	}
	return waiting
}

// shrunk wakes writers that wait at the bound.
func (s *Shared) shrunk() {
	s.mu.Lock()
	s.drained.Broadcast()
	s.mu.Unlock()
}

// Grant gives the lease of an image to another host, if this host holds it and nobody
// here has the image open for writing ([ErrInUse]). It is durable on return: from then on
// this host refuses to write. Asked again for the host that has it, it does nothing.
func (s *Shared) Grant(ctx context.Context, id blockstore.ImageID, to [32]byte) error {
	if err := s.settle(ctx, id); err != nil {
		return err
	}
	h, _, err := s.load(ctx, id)
	if err != nil {
		return err
	}
	if h.lease.Holder == to {
		return nil
	}
	if err := s.mayWrite(h); err != nil {
		return err
	}
	raw, err := s.nextTerm(h, to)
	if err != nil {
		return err
	}
	_, err = s.Store.PutLease(ctx, raw) // the point of no return
	return err
}

// TakeLease makes this host the holder of an image's lease without asking the one that is, by
// a record of the next era, which the image key signs. Identities are asked besides this
// host's own for the image key ([crypto.ErrNoIdentity]: they are no admin's). What the holder
// before has written and this host does not have is not in the image any more.
func (s *Shared) TakeLease(ctx context.Context, id blockstore.ImageID, identities ...age.Identity) error {
	h, _, err := s.load(ctx, id)
	if err != nil {
		return err
	}
	if h.lease.Holder == s.Key.Public() {
		return nil
	}
	b, err := s.small(ctx, id, h.commit.ImageKey)
	if err != nil {
		return fmt.Errorf("image key: %w", err)
	}
	key, err := crypto.OpenImageKey(b, id, append(identities, s.Identities...))
	if err != nil {
		return fmt.Errorf("image key: %w", err)
	}
	raw, err := lease.Sign(&blockstore.Lease{
		Image: id, Era: h.lease.Era + 1, Term: h.lease.Term + 1, Holder: s.Key.Public(), Previous: &h.lease.ID, LastCommit: &h.id,
	}, key.Sign)
	if err != nil {
		return err
	}
	_, err = s.Store.PutLease(ctx, raw) // the point of no return
	return err
}

// nextTerm signs the record that gives the lease, which this host holds, to another one.
func (s *Shared) nextTerm(h *head, to [32]byte) ([]byte, error) {
	return lease.Sign(&blockstore.Lease{
		Image: h.commit.Image, Era: h.lease.Era, Term: h.lease.Term + 1, Holder: to, Previous: &h.lease.ID, LastCommit: &h.id,
	}, s.Key.Sign)
}

// settle commits what journals of an image hold: in another term they are not replayed.
func (s *Shared) settle(ctx context.Context, id blockstore.ImageID) error {
	d, err := s.Open(ctx, id, OpenOptions{})
	if errors.Is(err, ErrNotHolder) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Commit(ctx), d.Close(ctx))
}
