package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// edit is what a commit changes beside the content. Nil fields stay as they are.
type edit struct {
	keys      *crypto.Keyring
	snapshots func(now time.Time) []record.Snapshot
	depmap    *record.DepMap
	labels    map[string]string
	floor     bool // the next commit's position becomes the floor
	fresh     bool // the keys' newest epoch is new
}

// beginTerm adds to an edit what the first commit of a term changes. What came from elsewhere
// may be part of other images here: it becomes the floor, and is the collector's. A lease that
// was taken by force may go on from before an epoch was given to others: a new one begins.
func (d *Disk) beginTerm(e *edit) *edit {
	var with edit
	if e != nil {
		with = *e
	}
	with.floor = true
	if d.head.lease.Era != d.head.commit.Era {
		keys := with.keys
		if keys == nil {
			keys = d.head.keys
		}
		with.keys, with.fresh = keys.WithEpoch(crypto.NewEpoch()), true
	}
	return &with
}

// Commit puts everything written so far into the store as a new head.
func (d *Disk) Commit(ctx context.Context) error {
	if err := d.writable(); err != nil {
		return err
	}
	return d.commit(ctx, nil)
}

// commit makes one commit of what is dirty and of an edit. The order of its writes
// is that of docs/format.md §11.
func (d *Disk) commit(ctx context.Context, e *edit) error {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	return d.commitLocked(ctx, e)
}

func (d *Disk) commitLocked(ctx context.Context, e *edit) error {
	if d.frozen != nil { // an earlier commit failed: what it froze comes first
		if err := d.commitOnce(ctx, nil, nil); err != nil {
			return err
		}
	}
	return d.commitOnce(ctx, e, nil)
}

// commitAndMerge is the committer's own: it also plans a few regions again that are worn so
// much at least. Merging is no reason for a commit to fail: a region that cannot be read, or
// for which there is no room, would hold up all writers.
func (d *Disk) commitAndMerge(ctx context.Context, least wear) error {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if d.yielded {
		return nil
	}
	if d.frozen != nil {
		return d.commitOnce(ctx, nil, nil)
	}
	merges := d.takeMerges(least)
	err := d.commitOnce(ctx, nil, merges)
	if err == nil || len(merges) == 0 || ctx.Err() != nil || d.failed.Load() != nil {
		return err
	}
	d.s.Log.Warn("regions are not planned again until they are written again", "image", d.id,
		"regions", slices.Sorted(maps.Keys(merges)), "error", err)
	return d.commitOnce(ctx, nil, nil)
}

// commitOnce freezes, unless something is frozen, and commits that, an edit, and the
// regions of merges planned again.
func (d *Disk) commitOnce(ctx context.Context, e *edit, merges map[uint64]wear) error {
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if d.yielded {
		return ErrReadOnly
	}
	began := time.Now()
	f := d.freeze()
	frozen := d.frozen
	if frozen == nil && e == nil && len(merges) == 0 && f.absorbed == d.head.commit.Absorbed && d.head.inTerm() {
		d.settle(f)
		return nil
	}
	if frozen == nil {
		frozen = dirty.New(&d.s.dirty)
	}
	if !d.head.inTerm() {
		e = d.beginTerm(e)
	}
	b := &batch{d: d, frozen: frozen, worn: make(map[uint64]wear), seal: record.Seal{Suite: d.s.suite, Epoch: d.head.epoch, Compression: liveCompression(d.head.commit.Compression)}}
	term := d.head.lease
	b.position = blockstore.Position{Era: term.Era, Term: term.Term, Sequence: d.head.commit.Sequence + 1}
	hold := d.s.Store.Hold() // the collector leaves alone what no commit names yet
	defer hold.Release()
	next, out, err := b.store(ctx, e, f.absorbed, merges)
	if err != nil {
		d.since.CompareAndSwap(0, f.since) // the next try is as urgent
		return fmt.Errorf("image %v: commit: %w", d.id, err)
	}
	defer func() { d.s.Took("commit", time.Since(began)) }()
	return d.install(ctx, next, out, frozen, f)
}

// inTerm says whether the head belongs to the newest term: journals are replayed in the
// term of the head alone, so a new term begins with a commit.
func (h *head) inTerm() bool {
	return h.commit.Era == h.lease.Era && h.commit.Term == h.lease.Term
}

// liveCompression is S2 for what a guest writes, unless the image has none.
func liveCompression(c record.Compression) record.Compression {
	if c == record.None {
		return record.None
	}
	return record.S2
}

// frost is what a freeze fixed.
type frost struct {
	absorbed blockstore.JournalNumber // journals up to it are in the commit
	spilled  int
	since    int64
}

// freeze makes the active set the frozen one, unless an earlier commit has left one
// behind, and lets the next flush begin a new journal. This is a snapshot's point.
func (d *Disk) freeze() frost {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen != nil {
		return d.frost
	}
	f := frost{absorbed: d.nextNumber - 1, spilled: d.spilled, since: d.since.Swap(0)}
	d.endJournalLocked()
	if d.active != nil && !d.active.Empty() {
		d.frozen, d.active = d.active, dirty.New(&d.s.dirty)
		d.frost = f
	}
	return f
}

// settle notes that what flushes owed by the time of f is durable.
func (d *Disk) settle(f frost) {
	d.flushMu.Lock()
	d.settled = max(d.settled, f.spilled)
	d.flushMu.Unlock()
}

// batch is a commit being made.
type batch struct {
	d        *Disk
	frozen   *dirty.Set
	seal     record.Seal
	position blockstore.Position
	startup  []plan.Range // if regions are planned again

	mu      sync.Mutex // guards what follows
	changes []tree.Change
	dead    []tree.Dead
	worn    map[uint64]wear // of each region
}

// store seals and stores all that the commit consists of and last the commit itself.
func (b *batch) store(ctx context.Context, e *edit, absorbed blockstore.JournalNumber, merges map[uint64]wear) (*head, *outcome, error) {
	d := b.d
	put := blockstore.NewBatch(ctx, d.s.Store)
	next, up, err := b.prepare(ctx, put, e, absorbed, merges)
	var raw []byte
	if err == nil {
		raw, err = b.seal.Commit(next.commit, d.s.sign)
	}
	if err != nil { // nothing names what was put: a full store needs the room
		if aerr := put.Abort(context.WithoutCancel(ctx)); aerr != nil {
			d.s.Log.Warn("objects of a commit that failed", "image", d.id, "error", aerr)
		}
		return nil, nil, err
	}
	// The point of no return: from here on this is the image, and the journals that it
	// absorbs are not looked at any more.
	next.id, err = d.s.Store.PutCommit(ctx, d.id, raw)
	if err != nil {
		return nil, nil, err
	}
	up.Tree.Keys = next.keys
	return next, &outcome{tree: up.Tree, dead: append(b.dead, up.Dead...), worn: b.worn}, nil
}

// prepare stores everything but the commit itself.
func (b *batch) prepare(ctx context.Context, put *blockstore.Batch, e *edit, absorbed blockstore.JournalNumber, merges map[uint64]wear) (*head, *tree.Update, error) {
	d := b.d
	base := d.current.tree
	if len(merges) > 0 {
		for _, r := range d.s.startup(ctx, d.head) {
			b.startup = append(b.startup, plan.Range{Off: r.Offset, Len: r.Length, Burst: int(r.Burst)})
		}
	}
	if err := b.sealRegions(ctx, put, base, merges); err != nil {
		return nil, nil, err
	}
	size := d.head.commit.Size
	if n := b.frozen.Size(); n != 0 {
		size = n
	}
	slices.SortFunc(b.changes, func(x, y tree.Change) int { return cmp.Compare(x.Region, y.Region) })
	up, err := base.Update(ctx, b.seal, b.position, tree.LevelOf(size), b.changes)
	if err != nil {
		return nil, nil, err
	}
	if err := put.Add(up.Nodes...); err != nil {
		return nil, nil, err
	}
	next, err := b.next(put, e)
	if err != nil {
		return nil, nil, err
	}
	c := next.commit
	c.Root, c.Size, c.Absorbed = up.Tree.Root, size, absorbed
	return next, up, put.Flush()
}

// outcome is what a commit leaves to be done once it is durable.
type outcome struct {
	tree tree.Tree
	dead []tree.Dead
	worn map[uint64]wear
}

// next prepares the head to come, with the small objects that an edit changes.
func (b *batch) next(put *blockstore.Batch, e *edit) (*head, error) {
	old := b.d.head
	next := *old
	c := *old.commit
	next.commit, next.fresh = &c, false
	parent := old.id
	c.Parent, c.Sequence, c.Time = &parent, b.position.Sequence, b.d.s.Now()
	c.Era, c.Term, c.Lease = old.lease.Era, old.lease.Term, old.lease.ID
	if e == nil {
		return &next, nil
	}
	if e.floor {
		c.Floor = b.position
	}
	if e.labels != nil {
		c.Labels = e.labels
	}
	if e.keys != nil {
		raw, err := e.keys.Seal()
		if err != nil {
			return nil, err
		}
		if c.Keyring, err = put.AddSmall(raw); err != nil {
			return nil, err
		}
		c.Epochs = masters(e.keys)
		next.keys, next.epoch, next.fresh = e.keys, e.keys.Newest(), e.fresh
	}
	if e.snapshots != nil {
		next.snapshots = e.snapshots(c.Time)
		if err := b.snapshotTable(put, &next); err != nil {
			return nil, err
		}
	}
	if e.depmap != nil {
		raw, err := b.seal.DepMap(e.depmap)
		if err != nil {
			return nil, err
		}
		ref, err := put.AddSmall(raw)
		if err != nil {
			return nil, err
		}
		c.DepMap = &ref
	}
	return &next, nil
}

func (b *batch) snapshotTable(put *blockstore.Batch, next *head) error {
	if len(next.snapshots) == 0 {
		next.commit.Snapshots = nil
		return nil
	}
	raw, err := b.seal.Snapshots(next.snapshots)
	if err != nil {
		return err
	}
	ref, err := put.AddSmall(raw)
	next.commit.Snapshots = &ref
	return err
}

// sealRegions seals what is frozen, region by region, in parallel.
func (b *batch) sealRegions(ctx context.Context, put *blockstore.Batch, base tree.Tree, merges map[uint64]wear) error {
	regions := slices.AppendSeq(b.frozen.Regions(), maps.Keys(merges))
	slices.Sort(regions)
	regions = slices.Compact(regions)
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, r := range regions {
		g.Go(func() error {
			if err := group.Err(); err != nil {
				return err
			}
			return b.sealRegion(group, put, base, r, merges[r] != sound)
		})
	}
	return g.Wait()
}

// install makes a durable commit the state that readers see, and clears up behind it.
// From here on nothing may fail the commit.
func (d *Disk) install(ctx context.Context, next *head, out *outcome, frozen *dirty.Set, f frost) error {
	old := d.head
	d.mu.Lock()
	d.current.dead = freeable(out.dead, next.commit.Floor)
	d.current = &version{tree: out.tree}
	d.versions = append(d.versions, d.current)
	d.head = next
	if d.frozen == frozen {
		d.frozen = nil
	}
	d.mu.Unlock()
	frozen.Release()
	d.stall.Store(nil)
	d.settle(f)
	for r, w := range out.worn {
		if w == sound {
			delete(d.merges, r)
		} else {
			d.merges[r] = w
		}
	}
	d.s.shrunk()

	if err := d.anchorHead(next, f.absorbed); err != nil {
		return d.fail(err)
	}
	d.s.moved(d.id)
	if next.epoch != old.epoch {
		d.switchJournal()
	}
	return d.clear(context.WithoutCancel(ctx), old, next, f.absorbed)
}

// freeable are the objects that nothing older than the floor can still use.
func freeable(dead []tree.Dead, floor blockstore.Position) []blockstore.ObjectID {
	var ids []blockstore.ObjectID
	for _, x := range dead {
		if x.Birth.Compare(floor) > 0 {
			ids = append(ids, x.ID)
		}
	}
	return ids
}

// anchorHead lets the anchor name a durable commit.
func (d *Disk) anchorHead(h *head, absorbed blockstore.JournalNumber) error {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	p := h.commit.Position()
	mark := anchor.Mark{Era: p.Era, Term: p.Term, Sequence: p.Sequence, Commit: h.id, Journal: d.mark.Journal}
	if mark.Journal <= absorbed {
		mark.Journal = 0
	}
	if err := d.s.Anchor.Save(d.id, mark); err != nil {
		return err
	}
	d.mark = mark
	return nil
}

// switchJournal lets the next flush begin a journal under the new epoch.
func (d *Disk) switchJournal() {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	d.endJournalLocked()
}

// clear removes what a commit made superfluous. What it leaves behind after an error
// or a crash is the collector's, and journals that are absorbed are never replayed.
func (d *Disk) clear(ctx context.Context, old, next *head, absorbed blockstore.JournalNumber) error {
	err := d.dropJournals(absorbed)
	if old.id != next.id && !slices.ContainsFunc(next.snapshots, func(s record.Snapshot) bool { return s.Commit == old.id }) {
		err = errors.Join(err, d.s.Store.DeleteCommits(ctx, d.id, old.id))
	}
	if err = errors.Join(err, d.unmark(ctx, old, next), d.sweep(ctx)); err != nil {
		d.s.Log.Warn("clearing up after a commit", "image", d.id, "error", err)
		if serr := d.s.Store.Err(); serr != nil {
			return d.fail(serr)
		}
	}
	return nil
}

// dropJournals removes our journals up to a number; those of other holders stay.
func (d *Disk) dropJournals(absorbed blockstore.JournalNumber) (err error) {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	d.journals = slices.DeleteFunc(d.journals, func(n blockstore.JournalNumber) bool {
		if n > absorbed {
			return false
		}
		err = errors.Join(err, d.s.Store.RemoveJournal(d.id, n))
		return true
	})
	return err
}

// unmark takes the complete mark off a root that was replaced: its birth may not be known,
// and then it stays while what is below it goes.
func (d *Disk) unmark(ctx context.Context, old, next *head) error {
	was, is := old.commit.Root, next.commit.Root
	if was == nil || is != nil && was.ID == is.ID {
		return nil
	}
	return d.s.Store.Unmark(ctx, was.ID)
}

// sweep deletes what no version with readers uses any more.
func (d *Disk) sweep(ctx context.Context) error {
	var ids []blockstore.ObjectID
	d.mu.Lock()
	for d.versions[0] != d.current && d.versions[0].refs.Load() == 0 {
		ids = append(ids, d.versions[0].dead...)
		d.versions = d.versions[1:]
	}
	d.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	d.s.loader.Forget(ids)
	return d.s.Store.DeleteObjects(ctx, ids)
}

// masters lists the epochs of a keyring as a commit does.
func masters(k *crypto.Keyring) []blockstore.EpochMaster {
	list := make([]blockstore.EpochMaster, len(k.Epochs))
	for i, e := range k.Epochs {
		list[i] = blockstore.EpochMaster{ID: e.ID(), Master: e.Master()}
	}
	return list
}
