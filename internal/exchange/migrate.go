package exchange

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// Migration is what to hand over, and to whom.
type Migration struct {
	Names     []string // that go together: the disks of one guest
	Peer      string
	Lazy      bool // the map first, the data after the handover
	PreCopy   bool // all of the data before the handover
	DryRun    bool // only find what would keep it from being done
	Bandwidth int64
	// Timeout bounds how long the close of the last writing handle waits for the destination.
	Timeout  time.Duration
	Guest    *Guest // moves too; nil: somebody else moves it
	Stage    func(Stage)
	Progress func(done, total int64)
	Note     func(format string, args ...any)
}

// ErrMoved: what failed is what comes after the handover. The disks are the destination's.
var ErrMoved = errors.New("the disks are the peer's now")

// Phases of a migration, in order.
const (
	PhasePrepare  = "prepare"
	PhaseCopy     = "copy"
	PhaseArmed    = "armed"
	PhaseMemory   = "memory" // of the guest, while armed; told of, but not counted as one
	PhaseHandover = "handover"
	PhaseFill     = "fill"
)

// Round is one round of copying.
type Round struct {
	Bytes  int64 // over the network
	Took   time.Duration
	Sealed time.Duration // of that, until what was written was cut into segments and sealed
}

// Migrated says how it went.
type Migrated struct {
	Phases []PhaseTime
	Rounds []Round
	Wire   int64         // bytes over the network, all of it
	Offer  time.Duration // that the last close waited, and with it the guest
	Armed  time.Duration // from arming to the handover
	Fill   time.Duration // from the handover until all is there
	Guest  *qemu.Report  // what QEMU says; nil: somebody else moved it
}

// Moving is a migration under way.
type Moving struct {
	x      *Exchange
	m      Migration
	to     peer.Peer
	disks  []*moving
	before int64                     // bytes that had gone to the destination
	tunnel atomic.Pointer[peer.Conn] // carries the guest's memory
	lost   chan struct{}             // closed when one of the pushes failed
	fail   func()                    // closes it
	hold   *peer.Rate                // bounds the disks while the guest's memory needs the link

	mu     sync.Mutex // guards what follows
	out    Migrated
	phase  time.Time // when the last of out.Phases began
	told   time.Time // when tell was last called
	toldOf int64     // bytes that were written by then
	held   bool      // the disks are held back, or must not be any more
}

// moving is one of its images.
type moving struct {
	entry record.Entry
	ended chan struct{} // closed when its push has ended
	err   error         // why; valid then

	mu      sync.Mutex
	at      blockstore.Sequence // that the destination has
	total   int64               // bytes that are to come, of the pull that runs
	done    int64
	changed chan struct{} // closed and replaced when at has grown
}

// Limits of copy rounds.
const (
	maxRounds   = 20
	shortRound  = 300 * time.Millisecond // short enough for the handover
	shrinks     = 0.8                    // a round that takes more than this of the one before does not shrink
	defaultWait = 5 * time.Second        // of Migration.Timeout
	lastWait    = time.Second            // for the last round, if what it leaves may come later
)

// Migrate copies images to a peer, round by round, arms their handover, and returns when
// their leases and all of their data are there. If ctx ends before the handover everything
// stays as it was.
func (x *Exchange) Migrate(ctx context.Context, m Migration) (Migrated, error) {
	defer x.Metrics.Running("migrations")()
	mv, err := x.newMoving(m)
	if err != nil {
		return Migrated{}, err
	}
	done, err := x.leave(mv.disks)
	if err != nil {
		return Migrated{}, err
	}
	defer done()
	if err := x.Growing.Acquire(ctx, 1); err != nil { // the collector waits: a claim must not
		return Migrated{}, err
	}
	defer x.Growing.Release(1)
	err = mv.run(ctx)
	mv.mu.Lock()
	defer mv.mu.Unlock()
	return mv.out, err
}

func (mv *Moving) run(ctx context.Context) error {
	mv.enter(PhasePrepare)
	defer mv.leave()
	if mv.m.Guest != nil {
		if err := mv.checkGuest(ctx); err != nil {
			return err
		}
	}
	done, err := mv.connect(ctx)
	if err != nil {
		return err
	}
	defer done()
	if mv.m.DryRun {
		return mv.whole()
	}
	mv.enter(PhaseCopy)
	if err := mv.rounds(ctx); err != nil && !mv.gone() { // somebody may have opened them there meanwhile
		return err
	}
	guest, err := mv.handOver(ctx)
	if err != nil {
		return err
	}
	mv.enter(PhaseFill)
	began := time.Now()
	err = mv.whole()
	if back := mv.stayed(); back != nil {
		return errors.Join(guest, back)
	}
	if err != nil { // what is missing comes when both hosts are up
		return errors.Join(guest, fmt.Errorf("%w, %s, and not whole there yet: %w", ErrMoved, mv.to.Name, err))
	}
	if guest != nil {
		return fmt.Errorf("%w, %s, but of the guest QEMU says: %w", ErrMoved, mv.to.Name, guest)
	}
	mv.mu.Lock()
	defer mv.mu.Unlock()
	mv.out.Fill, mv.out.Wire = time.Since(began), mv.sent()
	return nil
}

// whole returns when the destination says that it needs nothing more.
func (mv *Moving) whole() error {
	for _, d := range mv.disks {
		<-d.ended
		if d.err != nil {
			return fmt.Errorf("%s: %w", d.entry.Name, d.err)
		}
	}
	return nil
}

// stayed fails if this host has one of the disks again.
func (mv *Moving) stayed() error {
	for _, d := range mv.disks {
		mine, err := mv.x.holds(d.entry.Image)
		if err != nil {
			return err
		}
		if mine {
			return fmt.Errorf("%s had %s, which is here again, for somebody has opened it for writing here: %w", mv.to.Name, d.entry.Name, image.ErrInUse)
		}
	}
	return nil
}

// leave notes that images are on their way to another host, until done.
func (x *Exchange) leave(disks []*moving) (done func(), err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, d := range disks {
		again := slices.ContainsFunc(disks[:i], func(o *moving) bool { return o.entry.Image == d.entry.Image })
		if x.leaving[d.entry.Image] || again {
			return nil, fmt.Errorf("%s: another migration is under way: %w", d.entry.Name, image.ErrInUse)
		}
	}
	var merging []func()
	for _, d := range disks {
		x.leaving[d.entry.Image] = true
		merging = append(merging, x.Shared.Unmerged(d.entry.Image))
	}
	return func() {
		for _, again := range merging {
			again()
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, d := range disks {
			delete(x.leaving, d.entry.Image)
		}
	}, nil
}

// newMoving looks up what takes part.
func (x *Exchange) newMoving(m Migration) (*Moving, error) {
	to, err := x.Book.Find(m.Peer)
	if err != nil {
		return nil, err
	}
	if m.Timeout == 0 {
		m.Timeout = defaultWait
	}
	mv := &Moving{x: x, m: m, to: to, before: x.sentTo(to.Key).Load(), lost: make(chan struct{}), hold: peer.NewRate(0)}
	mv.fail = sync.OnceFunc(func() { close(mv.lost) })
	extra := 0
	if m.Guest != nil {
		extra = 1
	}
	if n := len(m.Names) + extra; n > peer.DefaultConnections-1 {
		return nil, fmt.Errorf("%d connections would be needed, and %d are to be had: %w", n, peer.DefaultConnections-1, ErrNotAllowed)
	}
	for _, name := range m.Names {
		e, err := x.Names.Lookup(name)
		if err != nil {
			return nil, err
		}
		if rank(role(to, e)) < rank(peer.Host) {
			return nil, fmt.Errorf("peer %s may not be a host of %s: %w", to.Name, e.Name, ErrNotAllowed)
		}
		mine, err := x.holds(e.Image)
		if err != nil {
			return nil, err
		}
		if !mine {
			return nil, fmt.Errorf("%s: %w", e.Name, image.ErrNotHolder)
		}
		if x.Partial(e.Image) {
			return nil, fmt.Errorf("%s is not whole here: %w", e.Name, image.ErrInUse)
		}
		mv.disks = append(mv.disks, &moving{entry: e, ended: make(chan struct{}), changed: make(chan struct{})})
	}
	return mv, nil
}

// connect offers each image over a connection of its own, until done.
func (mv *Moving) connect(ctx context.Context) (done func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	done = func() {
		cancel()
		running.Wait()
	}
	for _, d := range mv.disks {
		conn, err := mv.x.dial(ctx, mv.to, peer.Reverse)
		if err != nil {
			done()
			return nil, err
		}
		rate, unbound := mv.x.bound(d.entry.Name, mv.m.Bandwidth)
		conn.Bound(rate)
		conn.Bound(mv.hold)
		o := transfer.Offer{Version: transfer.Version, Image: d.entry.Image, Name: d.entry.Name, Follow: true, Handover: true, Lazy: mv.m.Lazy, Whole: mv.m.PreCopy, Check: mv.m.DryRun}
		filled := mv.x.boundFill(mv.to.Key, rate)
		running.Go(func() {
			defer unbound()
			defer filled()
			err := mv.x.server.Push(ctx, conn, o, func(r transfer.Report) { mv.heard(d, r) })
			d.err = err
			close(d.ended)
			if mine, herr := mv.x.holds(d.entry.Image); err != nil || herr != nil || mine {
				mv.fail() // also if the destination says that it is done, and is not the holder
			}
		})
	}
	return done, nil
}

// heard notes a report of the destination.
func (mv *Moving) heard(d *moving, r transfer.Report) {
	d.mu.Lock()
	if r.State == transfer.At && r.Sequence > d.at {
		d.at = r.Sequence
		close(d.changed)
		d.changed = make(chan struct{})
	}
	if r.State == transfer.Running {
		d.done, d.total = max(0, r.Done), max(0, r.Total)
	}
	d.mu.Unlock()
	var done, total int64
	for _, d := range mv.disks {
		d.mu.Lock()
		done, total = done+d.done, total+d.total
		d.mu.Unlock()
	}
	mv.m.Progress(done, total)
}

// await returns when the destination has a state that is as new as that.
func (d *moving) await(ctx context.Context, at blockstore.Sequence) error {
	for {
		d.mu.Lock()
		have, changed := d.at, d.changed
		d.mu.Unlock()
		if have >= at {
			return nil
		}
		select {
		case <-changed:
		case <-d.ended:
			if d.err == nil {
				return errors.New("the destination has ended it")
			}
			return d.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// commit commits what is dirty of an image, and gives the sequence of its head.
func (x *Exchange) commit(ctx context.Context, id blockstore.ImageID) (blockstore.Sequence, error) {
	if err := x.Names.Change(ctx, id, func(d *image.Disk) error { return d.Commit(ctx) }); err != nil {
		return 0, err
	}
	_, raw, err := x.Store.Head(id)
	if err != nil {
		return 0, err
	}
	c, err := blockstore.ParseCommit(raw)
	if err != nil {
		return 0, err
	}
	return c.Sequence, nil
}

// sync commits all images and returns when the destination has them so.
func (mv *Moving) sync(ctx context.Context) error {
	_, err := mv.round(ctx)
	return err
}

// round is sync, and tells how it went.
func (mv *Moving) round(ctx context.Context) (Round, error) {
	var g errgroup.Group
	sealed := make([]time.Duration, len(mv.disks))
	began, before := time.Now(), mv.sent()
	for i, d := range mv.disks {
		g.Go(func() error {
			at, err := mv.x.commit(ctx, d.entry.Image)
			if err != nil {
				return fmt.Errorf("%s: %w", d.entry.Name, err)
			}
			sealed[i] = time.Since(began)
			err = d.await(ctx, at)
			mv.x.Log.Debug("a round", "image", d.entry.Name, "commit", sealed[i], "in all", time.Since(began), "err", err)
			return err
		})
	}
	err := g.Wait()
	return Round{Bytes: mv.sent() - before, Took: time.Since(began), Sealed: slices.Max(sealed)}, err
}

// sent is how many bytes went to the destination so far, but for the guest's memory.
func (mv *Moving) sent() int64 {
	n := mv.x.sentTo(mv.to.Key).Load() - mv.before
	if c := mv.tunnel.Load(); c != nil {
		_, memory := c.Traffic()
		n -= memory
	}
	return n
}

// rounds copies until a round is short, or the guest writes as fast as it is copied.
func (mv *Moving) rounds(ctx context.Context) error {
	last := time.Duration(0)
	mv.told, mv.toldOf = time.Now(), mv.written()
	for n := 1; n <= maxRounds; n++ {
		r, err := mv.round(ctx)
		if err != nil {
			return err
		}
		mv.mu.Lock()
		mv.out.Rounds = append(mv.out.Rounds, r)
		mv.mu.Unlock()
		mv.tell(PhaseCopy, n, r)
		if r.Took < shortRound || n > 2 && r.Took > time.Duration(shrinks*float64(last)) {
			return nil
		}
		last = r.Took
	}
	return nil
}
