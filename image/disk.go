package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

const (
	sectorSize = record.SectorSize
	sectorLog  = 12
	regionSize = record.RegionSize
	stripes    = 64
)

// Disk is one image, or one snapshot of it, in use. All methods are safe for concurrent use.
//
//	          write            freeze             put the commit
//	(nothing) -----> active ----------> frozen ------------------> map
//	                   |   flush          |   flush
//	                   `----> journal <---'
//
// Locks, outermost first: commitMu, flushMu, rmw, mu.
type Disk struct {
	s        *Shared
	id       blockstore.ImageID
	readOnly atomic.Bool // until Promote, or from Yield on; changed under mu, so that who has looked at it there may write
	snapshot string      // name, if it is one

	commitMu sync.Mutex      // one commit at a time; guards what follows
	merges   map[uint64]wear // regions to be planned again
	yielded  bool            // the lease was given away: no commit until Promote

	flushMu    sync.Mutex // one flush at a time; guards the journal's state
	journal    *journal   // nil until the first flush after a commit
	nextNumber blockstore.JournalNumber
	journals   []blockstore.JournalNumber // ours that are still there
	lastTag    record.Tag                 // of the last record of the last journal
	chained    bool                       // while replaying: lastTag is that of a journal that was replayed
	mark       anchor.Mark                // what the anchor holds
	spilled    int                        // flushes that the journal had no room for: only a commit makes them durable
	settled    int                        // those of them that one has
	waiting    flushGroup

	rmw [stripes]sync.RWMutex // by region: partial writes of a sector exclude all others

	mu       sync.RWMutex // guards the pointers below
	head     *head        // replaced under commitMu too, so either lock is enough to read it
	current  *version
	versions []*version // that may have readers, oldest first; the last is current
	active   *dirty.Set // nil if the disk is read-only and no journal was replayed
	frozen   *dirty.Set // nil unless a commit is under way or has failed; replaced under commitMu too
	frost    frost      // of the frozen set

	size    atomic.Int64
	changed atomic.Int64 // time of the last change, ns since 1970
	since   atomic.Int64 // time of the oldest write that is not committed, 0 if none
	failed  atomic.Pointer[error]
	stall   atomic.Pointer[error] // why the last commit failed, while that can pass
	trace   atomic.Pointer[tracer]

	kicks   chan struct{}
	stop    context.CancelFunc
	done    chan struct{} // closed when the committer has ended
	closed  atomic.Bool
	closing atomic.Bool
}

// head is the newest commit and what it says, opened. It is never changed, only replaced.
type head struct {
	id        blockstore.CommitID
	commit    *record.Commit
	keys      *crypto.Keyring
	epoch     *crypto.Epoch // that seals: the newest whose keyring is durable
	fresh     bool          // nothing is sealed under that epoch yet
	snapshots []record.Snapshot
	lease     lease.Link // the newest one
}

// version is one state of the map with its readers.
type version struct {
	tree tree.Tree
	refs atomic.Int64
	dead []blockstore.ObjectID // what the next version does not use; free when no reader is left
}

// ID of the image.
func (d *Disk) ID() blockstore.ImageID { return d.id }

// ReadOnly reports whether writes are refused.
func (d *Disk) ReadOnly() bool { return d.readOnly.Load() || d.failed.Load() != nil }

// Failed reports whether an error has made it read-only for good.
func (d *Disk) Failed() bool { return d.failed.Load() != nil }

// Size in bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// ModTime is when the content last changed.
func (d *Disk) ModTime() time.Time { return time.Unix(0, d.changed.Load()) }

// fail stops writing for good: what was acknowledged is in the journal, and a
// successor opens it from there.
func (d *Disk) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if d.failed.CompareAndSwap(nil, &err) {
		d.s.Log.Error("image is read-only from now on", "image", d.id, "error", err)
	}
	d.s.shrunk()
	return err
}

// writable is nil if the disk takes writes.
func (d *Disk) writable() error {
	if d.closed.Load() {
		return ErrClosed
	}
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if d.readOnly.Load() {
		return ErrReadOnly
	}
	return nil
}

// stalled says why waiting for a commit is in vain.
func (d *Disk) stalled() error {
	if err := d.writable(); err != nil {
		return err
	}
	if err := d.stall.Load(); err != nil {
		return *err
	}
	return nil
}

// view is what a reader looks at: the sets of dirty sectors over one version of the map.
type view struct {
	d              *Disk
	h              *head
	v              *version
	active, frozen *dirty.Set
	once           bool // what it opens is not kept in memory
}

// view takes the present state; leave must be called.
func (d *Disk) view() view {
	d.mu.RLock()
	w := view{d: d, h: d.head, v: d.current, active: d.active, frozen: d.frozen}
	w.v.refs.Add(1)
	d.mu.RUnlock()
	return w
}

func (w view) leave() { w.v.refs.Add(-1) }

// look lets fn look at the present state, and again at a newer one if an object was
// gone because a commit came in between and the collector after it.
func (d *Disk) look(fn func(w view) error) error {
	for {
		w := d.view()
		err := w.use(fn)
		if !errors.Is(err, blockstore.ErrNotFound) || d.state() == w.h {
			return err
		}
	}
}

func (w view) use(fn func(w view) error) error {
	defer w.leave()
	return fn(w)
}

func (d *Disk) dirtyBytes() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var n int64
	if d.active != nil {
		n += d.active.Bytes()
	}
	if d.frozen != nil {
		n += d.frozen.Bytes()
	}
	return n
}

// Still commits what is dirty and gives the disk as it is then, read-only: what is
// written later does not show in it, unless the store has no room for the commit. It holds back the freeing of what it reads, not a
// collection, which the caller keeps off; release ends that.
func (d *Disk) Still(ctx context.Context) (still *Disk, release func(), err error) {
	full := false
	readOnly := d.readOnly.Load()
	if !readOnly {
		err := d.Commit(ctx)
		full = errors.Is(err, blockstore.ErrNoSpace)
		if err != nil && !full {
			return nil, nil, err
		}
	}
	w := d.view()
	still = &Disk{s: d.s, id: d.id}
	still.readOnly.Store(true)
	still.begin(w.h, nil)
	still.current.tree = w.v.tree
	if readOnly || full { // what is in no commit: replayed from a journal, or without room for one
		still.active, still.frozen = w.active, w.frozen
		still.size.Store(d.Size())
	}
	return still, sync.OnceFunc(w.leave), nil
}

// Guard holds back the freeing of what the present state of an image uses, if it is in
// use here, for a check that reads the store beside it.
// A disk that is opened while the guard lasts is guarded from its first version on.
func (s *Shared) Guard(id blockstore.ImageID) (release func()) {
	g := &guard{id: id}
	s.mu.Lock()
	s.guards[g] = struct{}{}
	d := s.writers[id]
	s.mu.Unlock()
	if d != nil {
		d.mu.RLock()
		if d.current != nil {
			g.hold(d.current)
		}
		d.mu.RUnlock()
	}
	return func() {
		s.mu.Lock()
		delete(s.guards, g)
		s.mu.Unlock()
		g.release()
	}
}

// Guarded says whether somebody holds a guard of an image.
func (s *Shared) Guarded(id blockstore.ImageID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range s.guards {
		if g.id == id {
			return true
		}
	}
	return false
}

// guard holds a version of an image.
type guard struct {
	id   blockstore.ImageID
	mu   sync.Mutex // guards what follows
	held []*version // the first of each time that the image was opened
	over bool
}

func (g *guard) hold(v *version) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.held = append(g.held, v)
		v.refs.Add(1)
	}
}

func (g *guard) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range g.held {
		v.refs.Add(-1)
	}
	g.held, g.over = nil, true
}

// guardFirst lets the guards of an image hold a version that is about to be read.
func (s *Shared) guardFirst(id blockstore.ImageID, v *version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range s.guards {
		if g.id == id {
			g.hold(v)
		}
	}
}

// kick asks for a commit soon.
func (d *Disk) kick() {
	select {
	case d.kicks <- struct{}{}:
	default:
	}
}

// Ages and intervals of the committer.
const (
	maxAge    = 60 * time.Second // of a write that is not committed
	ageTick   = 5 * time.Second
	retryTime = 2 * time.Second // after a commit that had no room
)

// committer commits when asked, when the oldest write is old, and while regions wait
// to be planned again. It ends with ctx.
func (d *Disk) committer(ctx context.Context) {
	defer close(d.done)
	tick := time.NewTicker(ageTick)
	defer tick.Stop()
	for {
		least := wasteful // what is ragged waits until writers do not
		select {
		case <-ctx.Done():
			return
		case <-d.kicks:
		case <-tick.C:
			least = ragged
			since := d.since.Load()
			if !d.merging() && (since == 0 || d.s.Now().UnixNano()-since < int64(maxAge)) {
				continue
			}
		}
		d.commitInBackground(ctx, least)
	}
}

func (d *Disk) commitInBackground(ctx context.Context, least wear) {
	err := d.commitAndMerge(ctx, least)
	switch {
	case err == nil:
		d.stall.Store(nil)
	case ctx.Err() != nil:
		return
	default:
		d.stall.Store(&err)
		d.s.shrunk()
		d.s.Log.Error("commit failed", "image", d.id, "error", err)
		select { // the writers that it has woken would ask again at once
		case <-ctx.Done():
		case <-time.After(retryTime):
		}
	}
}

// Close commits what is dirty and releases the image. After an error nothing that
// was flushed is lost: the journal holds it.
func (d *Disk) Close(ctx context.Context) error {
	if !d.closing.CompareAndSwap(false, true) {
		return ErrClosed
	}
	d.commitMu.Lock() // Promote may just be starting it
	stop, done := d.stop, d.done
	d.commitMu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
	var err error
	if !d.readOnly.Load() && d.failed.Load() == nil {
		err = d.finish(ctx)
		if errors.Is(err, blockstore.ErrNoSpace) && d.Flush(ctx) == nil {
			d.s.Log.Warn("no room for a commit: the journal keeps what was written", "image", d.id)
			err = nil
		}
	}
	d.flushMu.Lock()
	d.closed.Store(true)
	d.endJournalLocked()
	d.flushMu.Unlock()
	d.release()
	return err
}

// release takes the disk out of its host's accounts.
func (d *Disk) release() {
	d.mu.Lock()
	for _, set := range []*dirty.Set{d.active, d.frozen} {
		if set != nil {
			set.Release()
		}
	}
	d.mu.Unlock()
	d.s.leave(d)
}

// endJournalLocked lets the next flush begin a new journal.
func (d *Disk) endJournalLocked() {
	if d.journal == nil {
		return
	}
	j := d.journal
	if j.durable < j.end { // the next journal names its last record, so it must be there
		if err := j.file.Sync(); err != nil {
			_ = d.fail(err) // said and kept by fail
		}
	}
	d.lastTag = j.last
	if j.end == record.JournalHeaderSize {
		d.lastTag = record.Tag{}
	}
	if err := j.file.Close(); err != nil {
		d.s.Log.Warn("closing a journal", "image", d.id, "error", err)
	}
	d.journal = nil
}

// finish makes the last commit of a disk that is about to close.
func (d *Disk) finish(ctx context.Context) error {
	e, err := d.traced(ctx)
	if err != nil {
		d.s.Log.Warn("start-up list not kept", "image", d.id, "error", err)
	}
	return d.commit(ctx, e)
}

// Info describes the committed state of a disk.
type Info struct {
	ID              blockstore.ImageID
	Size, BlockSize int64 // bytes
	Allocated       int64 // bytes of sectors that hold data
	Stored          int64 // sealed bytes that the map reaches
	Compression     record.Compression
	Plan            record.PlanStats
	Commit          blockstore.CommitID
	Position        blockstore.Position
	Time            time.Time
	Epochs          int
	Recipients      []string
	Labels          map[string]string
	Snapshots       []record.Snapshot
	Parent          *record.Lineage
	Holder          [32]byte // public host key of who may write
	Dirty           int64    // bytes not committed yet
}

// Info describes the disk; it opens the root of the map alone.
func (d *Disk) Info(ctx context.Context) (Info, error) {
	w := d.view()
	defer w.leave()
	h, c := w.h, w.h.commit
	sectors, err := w.v.tree.Sectors(ctx)
	if err != nil {
		return Info{}, err
	}
	m, err := d.s.depmap(ctx, h)
	if err != nil {
		return Info{}, err
	}
	info := Info{
		ID: d.id, Size: c.Size, BlockSize: c.BlockSize, Allocated: int64(sectors) * sectorSize,
		Compression: c.Compression, Plan: c.Plan, Commit: h.id, Position: c.Position(), Time: c.Time,
		Epochs: len(h.keys.Epochs), Recipients: slices.Clone(h.keys.Recipients), Labels: c.Labels,
		Snapshots: slices.Clone(h.snapshots), Parent: m.Lineage, Holder: h.lease.Holder, Dirty: d.dirtyBytes(),
	}
	if c.Root != nil {
		info.Stored = int64(c.Root.Subtree)
	}
	return info, nil
}

// Objects counts the objects that the map reaches; it opens every leaf.
func (d *Disk) Objects(ctx context.Context) (int64, error) {
	w := d.view()
	defer w.leave()
	var n int64
	err := w.v.tree.Walk(tree.Local(ctx), func(_ uint8, _ uint64, _ blockstore.Ref, leaf *record.Leaf, _ *record.Inner, err error) error {
		if errors.Is(err, blockstore.ErrNotFound) { // of an image that is not whole here
			return nil
		}
		n++
		if leaf != nil {
			n += int64(len(leaf.Objects))
		}
		return err
	})
	return n, err
}
