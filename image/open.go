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
	d := &Disk{s: s, id: id, readOnly: o.ReadOnly || o.Snapshot != "", snapshot: o.Snapshot,
		merges: make(map[uint64]wear), kicks: make(chan struct{}, 1)}
	if !d.readOnly { // before anything is read: the writer before has made its last commit
		if err := s.enter(d); err != nil {
			return nil, err
		}
	}
	if err := d.load(ctx); err != nil {
		d.release()
		return nil, err
	}
	return d, nil
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
	if holder := h.lease.Holder; !d.readOnly && holder != d.s.Key.Public() {
		return fmt.Errorf("image %v: %w: host %x", d.id, ErrNotHolder, holder[:8])
	}
	if !d.readOnly && !h.commit.MayWrite() {
		return fmt.Errorf("image %v: it has features that this version does not write: %w", d.id, blockstore.ErrFormat)
	}
	return d.start(ctx, h)
}

// begin makes a head the state that readers see, below a set of dirty sectors.
func (d *Disk) begin(h *head, active *dirty.Set) {
	v := &version{tree: tree.Tree{Loader: d.s.loader, Keys: h.keys, Root: h.commit.Root}}
	d.s.guardFirst(d.id, v)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.head, d.current, d.active = h, v, active
	d.versions = []*version{v}
	d.size.Store(h.commit.Size)
	d.changed.Store(h.commit.Time.UnixNano())
}

// start replays journals and, if the disk is to be written, commits what they held.
func (d *Disk) start(ctx context.Context, h *head) error {
	d.begin(h, dirty.New(&d.s.dirty))
	if err := d.replay(h); err != nil {
		return err
	}
	if h.commit.Position().Compare(d.mark.Position()) > 0 { // a crash came before the anchor
		if err := d.anchorHead(h, h.commit.Absorbed); err != nil {
			return err
		}
	}
	if d.readOnly {
		return nil
	}
	err := d.commit(ctx, nil)
	switch {
	case errors.Is(err, blockstore.ErrNoSpace): // what the journals held is frozen, readable, and still in them
		d.s.Log.Warn("no room for a commit", "image", d.id)
		d.stall.Store(&err)
	case err != nil:
		return err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop, d.done = stop, make(chan struct{})
	go d.committer(background)
	return nil
}

// load reads the head of an image and checks it against everything that vouches for it.
func (s *Shared) load(ctx context.Context, id blockstore.ImageID) (*head, anchor.Mark, error) {
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
	public, term, err := chain.Check(id, headID, raw)
	if err != nil {
		return fail(err)
	}
	newest := chain[len(chain)-1]
	if term.ID != newest.ID && (newest.LastCommit == nil || *newest.LastCommit != headID) {
		return fail(fmt.Errorf("%w: the head was signed after its holder had given the lease away", ErrFork))
	}
	if seen {
		switch c := public.Position().Compare(mark.Position()); {
		case c < 0:
			return fail(fmt.Errorf("%w: the store has %v, seen was %v", ErrRolledBack, public.Position(), mark.Position()))
		case c == 0 && headID != mark.Commit:
			return fail(fmt.Errorf("%w: commits %v and %v at %v", ErrFork, headID, mark.Commit, mark.Position()))
		}
	}
	h := &head{id: headID, lease: newest}
	if err := s.openHead(ctx, h, id, raw); err != nil {
		return fail(err)
	}
	return h, mark, nil
}

// openHead opens what a commit names: keyring, sealed body, snapshot table.
func (s *Shared) openHead(ctx context.Context, h *head, id blockstore.ImageID, raw []byte) error {
	public, err := blockstore.ParseCommit(raw)
	if err != nil {
		return err
	}
	b, err := s.small(ctx, public.Keyring)
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	if h.keys, err = crypto.OpenKeyring(b, id, s.Identities); err != nil {
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
	if b, err = s.small(ctx, *h.commit.CommitPublic.Snapshots); err != nil {
		return fmt.Errorf("snapshot table: %w", err)
	}
	h.snapshots, err = record.OpenSnapshots(h.keys, b)
	return err
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
func (s *Shared) small(ctx context.Context, ref blockstore.SmallRef) (b []byte, err error) {
	err = s.Store.Get(ctx, ref.ID, func(v []byte) error {
		if len(v) != int(ref.Length) || blockstore.IDOf(v) != ref.ID {
			return &blockstore.CorruptError{What: "object", Key: ref.ID.String(), Cause: errors.New("digest differs")}
		}
		b = bytes.Clone(v)
		return nil
	})
	return b, err
}
