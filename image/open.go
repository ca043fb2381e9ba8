package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// OpenOptions say how a disk is used.
type OpenOptions struct {
	ReadOnly bool
	Snapshot string // open this snapshot instead of the head; implies ReadOnly
}

// Open opens an image: it checks the anchor, the lease chain, signatures and keys, and
// replays what a crash has left in journals. A process has one writing disk of an
// image (ErrInUse), on the host that holds its lease (ErrNotHolder). Older than the
// anchor is ErrRolledBack; keys that do not fit are crypto.ErrNoIdentity.
func (s *Shared) Open(ctx context.Context, id blockstore.ImageID, o OpenOptions) (*Disk, error) {
	d := &Disk{s: s, id: id, snapshot: o.Snapshot, merges: make(map[uint64]wear), kicks: make(chan struct{}, 1)}
	reads := o.ReadOnly || o.Snapshot != ""
	d.readOnly.Store(reads)
	if !reads { // before anything is read: the writer before has made its last commit
		// Who cannot be the writer does not stand in the way of what comes from there.
		if chain, err := lease.Load(s.Store, id); err == nil && chain.Newest().Holder != s.Key.Public() {
			holder := chain.Newest().Holder
			return nil, fmt.Errorf("image %v: %w: host %x", id, ErrNotHolder, holder[:8])
		}
		if err := s.enter(d); err != nil {
			return nil, err
		}
	}
	if err := d.load(ctx); err != nil {
		d.release()
		return nil, err
	}
	if reads && d.snapshot == "" {
		if err := s.follow(ctx, d); err != nil {
			d.release()
			return nil, err
		}
	}
	return d, nil
}

// follow lets a disk that only reads have the heads that come.
func (s *Shared) follow(ctx context.Context, d *Disk) error {
	s.mu.Lock()
	s.readers[d] = struct{}{}
	s.mu.Unlock()
	id, _, err := s.Store.Head(d.id)
	if err != nil || id == d.state().id {
		return err
	}
	return d.advance(ctx) // one came before it was known
}

// advance makes a disk that only reads show the newest head.
func (d *Disk) advance(ctx context.Context) error {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	shown := d.state()
	if id, _, err := d.s.Store.Head(d.id); err != nil || id == shown.id || !d.readOnly.Load() {
		return err
	}
	h, _, err := d.s.loadAfter(ctx, d.id, shown)
	if err != nil {
		return err
	}
	d.forgetReplayed()
	d.begin(h, nil)
	return nil
}

// forgetReplayed drops what a disk that only reads had from journals.
func (d *Disk) forgetReplayed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active != nil {
		d.active.Release()
	}
	d.active = nil
}

// load makes the disk ready for use.
func (d *Disk) load(ctx context.Context) error {
	h, mark, err := d.s.load(ctx, d.id)
	if err != nil {
		return err
	}
	d.mark = mark
	if d.snapshot != "" {
		if h, err = d.s.loadSnapshot(ctx, h, d.snapshot); err != nil {
			return err
		}
		d.begin(h, nil)
		return nil
	}
	if d.readOnly.Load() {
		return d.start(h)
	}
	if err := d.s.mayWrite(h); err != nil {
		return err
	}
	if err := d.start(h); err != nil {
		return err
	}
	return d.run(ctx)
}

// mayWrite is nil if this host holds the lease and knows how to write the image.
func (s *Shared) mayWrite(h *head) error {
	if holder := h.lease.Holder; holder != s.Key.Public() {
		return fmt.Errorf("image %v: %w: host %x", h.commit.Image, ErrNotHolder, holder[:8])
	}
	if !h.commit.MayWrite() {
		return fmt.Errorf("image %v: it has features that this version does not write: %w", h.commit.Image, blockstore.ErrFormat)
	}
	return nil
}

// Promote lets a disk that was opened read-only write, now that this host holds the
// lease ([ErrNotHolder]); its readers go on. After an error it is as before. ErrInUse:
// another disk writes the image.
func (d *Disk) Promote(ctx context.Context) error {
	if d.snapshot != "" {
		return ErrReadOnly
	}
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if d.closing.Load() {
		return ErrClosed
	}
	if !d.readOnly.Load() {
		return nil
	}
	if err := d.s.enter(d); err != nil {
		return err
	}
	if err := d.promoteLocked(ctx); err != nil {
		d.yielded = true
		d.s.leave(d)
		return errors.Join(err, d.s.follow(ctx, d))
	}
	d.s.mu.Lock()
	delete(d.s.readers, d)
	d.s.mu.Unlock()
	d.closeGate(false)
	d.background(ctx)
	return nil
}

// promoteLocked begins the term with a commit, before anybody may write.
func (d *Disk) promoteLocked(ctx context.Context) error {
	h, mark, err := d.s.loadAfter(ctx, d.id, d.state())
	if err != nil {
		return err
	}
	if err := d.s.mayWrite(h); err != nil {
		return err
	}
	d.mark = mark
	d.forgetReplayed()
	d.yielded = false
	if err := d.start(h); err != nil {
		return err
	}
	return d.commitLocked(ctx, nil)
}

// Yield gives the lease of an image that this disk writes to another host: the last commit
// of the term is made, and the record of the next one is durable on return. From then on
// the disk refuses writes; its readers go on, and follow what comes from the new holder.
// After an error the disk writes on, unless it has failed.
func (d *Disk) Yield(ctx context.Context, to [32]byte) error {
	if err := d.yield(ctx, to); err != nil {
		return err
	}
	d.stop()
	<-d.done
	d.s.leave(d)
	if err := d.s.follow(context.WithoutCancel(ctx), d); err != nil { // it is given all the same
		d.s.Log.Warn("the disk does not follow its new holder", "image", d.id, "error", err)
	}
	return nil
}

func (d *Disk) yield(ctx context.Context, to [32]byte) error {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if d.closing.Load() {
		return ErrClosed
	}
	if err := d.writable(); err != nil {
		return err
	}
	// Writes and flushes that come from here on wait, or are refused.
	d.closeGate(true)
	for range 2 { // the second absorbs the journal of a flush that came between gate and commit; none can begin after it
		if err := d.commitLocked(ctx, nil); err != nil {
			d.closeGate(false)
			return err
		}
	}
	raw, err := d.s.nextTerm(d.head, to)
	if err != nil {
		d.closeGate(false)
		return err
	}
	d.yielded = true
	_, err = d.s.Store.PutLease(context.WithoutCancel(ctx), raw) // the point of no return
	switch {
	case errors.Is(err, blockstore.ErrNoSpace): // nothing was written
		d.yielded = false
		d.closeGate(false)
	case err != nil: // it may be durable
		err = d.fail(err)
	}
	return err
}

// closeGate refuses writes, or takes them again; those that were let in are in the dirty set.
func (d *Disk) closeGate(closed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readOnly.Store(closed)
}

// begin makes a head the state that readers see, below a set of dirty sectors.
func (d *Disk) begin(h *head, active *dirty.Set) {
	v := &version{tree: tree.Tree{Loader: d.s.loader, Keys: h.keys, Root: h.commit.Root, Latest: h.commit.Position()}}
	d.s.guardFirst(d.id, v)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.head, d.current, d.active = h, v, active
	d.versions = []*version{v}
	d.size.Store(h.commit.Size)
	d.changed.Store(h.commit.Time.UnixNano())
}

// start makes the disk readable: a head, and what this host's journals add to it.
func (d *Disk) start(h *head) error {
	d.begin(h, dirty.New(&d.s.dirty))
	if err := d.replay(h); err != nil {
		return err
	}
	if h.commit.Position().Compare(d.mark.Position()) > 0 { // a crash came before the anchor
		if err := d.anchorHead(h, h.commit.Absorbed); err != nil {
			return err
		}
	}
	return nil
}

// run makes the disk writable: it commits what journals held, which also begins the term
// if it is a new one, and starts the committer.
func (d *Disk) run(ctx context.Context) error {
	err := d.commit(ctx, nil)
	switch {
	case errors.Is(err, blockstore.ErrNoSpace), errors.Is(err, tree.ErrMissing):
		// What the journals held is frozen, readable, and still in them.
		d.s.Log.Warn("a commit has to wait", "image", d.id, "error", err)
		d.stall.Store(&err)
	case err != nil:
		return err
	}
	d.background(ctx)
	return nil
}

// background starts the committer.
func (d *Disk) background(ctx context.Context) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop, d.done = stop, make(chan struct{})
	go d.committer(background)
}

// load reads the head of an image and checks it against everything that vouches for it.
func (s *Shared) load(ctx context.Context, id blockstore.ImageID) (*head, anchor.Mark, error) {
	return s.loadAfter(ctx, id, nil)
}

// loadAfter is load after another head of the image, the keys of which serve again if they are
// the same; nil: there was none.
func (s *Shared) loadAfter(ctx context.Context, id blockstore.ImageID, before *head) (*head, anchor.Mark, error) {
	fail := func(err error) (*head, anchor.Mark, error) {
		return nil, anchor.Mark{}, fmt.Errorf("image %v: %w", id, err)
	}
	mark, seen, err := s.Anchor.Load(id) // first: a commit that comes in between is newer than it
	if err != nil {
		return fail(err)
	}
	headID, raw, err := s.Store.Head(id)
	if err != nil {
		return fail(err)
	}
	chain, err := lease.Load(s.Store, id)
	if err != nil {
		return fail(err)
	}
	public, err := chain.CheckHead(id, headID, raw)
	if errors.Is(err, lease.ErrSuperseded) {
		return fail(fmt.Errorf("%w: the head was %w", ErrFork, err))
	}
	if err != nil {
		return fail(err)
	}
	if seen {
		switch c := public.Position().Compare(mark.Position()); {
		case c < 0:
			return fail(fmt.Errorf("%w: the store has %v, seen was %v", ErrRolledBack, public.Position(), mark.Position()))
		case c == 0 && headID != mark.Commit:
			return fail(fmt.Errorf("%w: commits %v and %v at %v", ErrFork, headID, mark.Commit, mark.Position()))
		}
	}
	h := &head{id: headID, lease: chain.Newest()}
	if err := s.openHead(ctx, h, id, raw, before); err != nil {
		return fail(err)
	}
	return h, mark, nil
}

// openHead opens what a commit names: keyring, unless it is that of before, sealed body,
// snapshot table.
func (s *Shared) openHead(ctx context.Context, h *head, id blockstore.ImageID, raw []byte, before *head) error {
	public, err := blockstore.ParseCommit(raw)
	if err != nil {
		return err
	}
	if before != nil && before.commit.Keyring == public.Keyring {
		h.keys = before.keys
	} else if h.keys, err = s.keyring(ctx, id, public.Keyring); err != nil {
		return err
	}
	if err := confirm(h.keys, public.Epochs); err != nil {
		return err
	}
	h.epoch = h.keys.Newest()
	if h.commit, err = record.OpenCommit(h.keys, raw); err != nil {
		return err
	}
	if root := h.commit.Root; root != nil && root.Level < tree.LevelOf(h.commit.Size) {
		return &blockstore.CorruptError{What: "commit", Key: h.id.String(), Cause: errors.New("the map does not cover the disk")}
	}
	if h.commit.CommitPublic.Snapshots == nil {
		return nil
	}
	b, err := s.small(ctx, id, *h.commit.CommitPublic.Snapshots)
	if err != nil {
		return fmt.Errorf("snapshot table: %w", err)
	}
	h.snapshots, err = record.OpenSnapshots(h.keys, b)
	return err
}

// keyring reads a keyring and opens it with this host's identities.
func (s *Shared) keyring(ctx context.Context, id blockstore.ImageID, ref blockstore.SmallRef) (*crypto.Keyring, error) {
	b, err := s.small(ctx, id, ref)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return crypto.OpenKeyring(b, id, s.Identities)
}

// confirm compares the master keys that a keyring's epochs fold to with those of the commit.
func confirm(keys *crypto.Keyring, want []blockstore.EpochMaster) error {
	if len(want) != len(keys.Epochs) {
		return fmt.Errorf("keyring of %d epochs, the commit has %d: %w", len(keys.Epochs), len(want), blockstore.ErrCorrupt)
	}
	for i, e := range keys.Epochs {
		if e.ID() != want[i].ID {
			return fmt.Errorf("keyring: epoch %v is not the commit's: %w", e.ID(), blockstore.ErrCorrupt)
		}
		if err := e.Confirm(want[i].Master); err != nil {
			return err
		}
	}
	return nil
}

// loadSnapshot opens a snapshot's commit with the head's keyring, which is a superset of its own.
func (s *Shared) loadSnapshot(_ context.Context, h *head, name string) (*head, error) {
	i := slices.IndexFunc(h.snapshots, func(x record.Snapshot) bool { return x.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("%w: %q", ErrNoSnapshot, name)
	}
	id := h.snapshots[i].Commit
	image := h.commit.Image
	raw, err := s.Store.Commit(image, id)
	if err != nil {
		return nil, fmt.Errorf("image %v: snapshot %q: %w", image, name, err)
	}
	c, err := record.OpenCommit(h.keys, raw)
	if err == nil && (blockstore.CommitIDOf(raw) != id || c.Image != image) {
		err = &blockstore.CorruptError{What: "commit", Key: id.String(), Cause: errors.New("of another place")}
	}
	if err == nil && c.Root != nil && c.Root.Level < tree.LevelOf(c.Size) {
		err = &blockstore.CorruptError{What: "commit", Key: id.String(), Cause: errors.New("the map does not cover the disk")}
	}
	if err != nil {
		return nil, fmt.Errorf("image %v: snapshot %q: %w", image, name, err)
	}
	return &head{id: id, commit: c, keys: h.keys, epoch: h.epoch, lease: h.lease}, nil
}

// small reads a keyring, image key, table or dependency map and checks it against its id.
func (s *Shared) small(ctx context.Context, image blockstore.ImageID, ref blockstore.SmallRef) (b []byte, err error) {
	err = s.loader.Get(ctx, image, ref, func(v []byte) error {
		if len(v) != int(ref.Length) || blockstore.IDOf(v) != ref.ID {
			return &blockstore.CorruptError{What: "object", Key: ref.ID.String(), Cause: errors.New("digest differs")}
		}
		b = bytes.Clone(v)
		return nil
	})
	return b, err
}
