package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// Snapshot keeps what was written so far under a name (ErrExists if it is taken). It
// costs a commit of what is dirty and one more that names it.
func (d *Disk) Snapshot(ctx context.Context, name string) error {
	if err := d.writable(); err != nil {
		return err
	}
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if findSnapshot(d.head, name) >= 0 {
		return fmt.Errorf("snapshot %q: %w", name, ErrExists)
	}
	if err := d.commitLocked(ctx, nil); err != nil {
		return err
	}
	// Writes may go on: a commit that comes with this one is of the state after the snapshot.
	kept := d.head
	return d.commitLocked(ctx, &edit{floor: true, snapshots: func(now time.Time) []record.Snapshot {
		return append(slices.Clone(kept.snapshots), record.Snapshot{Commit: kept.id, Name: name, Time: now})
	}})
}

func findSnapshot(h *head, name string) int {
	return slices.IndexFunc(h.snapshots, func(s record.Snapshot) bool { return s.Name == name })
}

// RemoveSnapshot forgets a snapshot (ErrNoSnapshot). What only it used is the collector's.
func (d *Disk) RemoveSnapshot(ctx context.Context, name string) error {
	if err := d.writable(); err != nil {
		return err
	}
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	i := findSnapshot(d.head, name)
	if i < 0 {
		return fmt.Errorf("%w: %q", ErrNoSnapshot, name)
	}
	gone := d.head.snapshots[i].Commit
	rest := slices.Delete(slices.Clone(d.head.snapshots), i, i+1)
	if err := d.commitLocked(ctx, &edit{snapshots: func(time.Time) []record.Snapshot { return rest }}); err != nil {
		return err
	}
	if slices.ContainsFunc(rest, func(s record.Snapshot) bool { return s.Commit == gone }) {
		return nil
	}
	return d.s.Store.DeleteCommits(ctx, d.id, gone)
}

// Snapshots lists the snapshots, oldest first.
func (d *Disk) Snapshots() []record.Snapshot { return slices.Clone(d.state().snapshots) }

// state is the newest head.
func (d *Disk) state() *head {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.head
}

// Recipients lists who can open the image.
func (d *Disk) Recipients() []string { return slices.Clone(d.state().keys.Recipients) }

// Labels gives the labels of the head.
func (d *Disk) Labels() map[string]string { return d.state().commit.Labels }

// SetRecipients reseals the keyring to those that change makes of the present ones; who
// is left out cannot read what is written from then on, because a removal begins a new
// epoch.
func (d *Disk) SetRecipients(ctx context.Context, change func(now []string) ([]string, error)) error {
	if err := d.writable(); err != nil {
		return err
	}
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	old := d.head.keys
	recipients, err := change(slices.Clone(old.Recipients))
	if err != nil {
		return err
	}
	keys := old.WithRecipients(recipients)
	if slices.Equal(keys.Recipients, old.Recipients) {
		return nil
	}
	if slices.ContainsFunc(old.Recipients, func(r string) bool { return !slices.Contains(keys.Recipients, r) }) {
		keys = keys.WithEpoch(crypto.NewEpoch())
	}
	return d.commitLocked(ctx, &edit{keys: keys})
}

// SetLabels replaces the labels in a commit of its own.
func (d *Disk) SetLabels(ctx context.Context, labels map[string]string) error {
	if err := d.writable(); err != nil {
		return err
	}
	return d.commit(ctx, &edit{labels: labels})
}

// maxCloneEpochs leaves room in a keyring (256 epochs) for recipients to be removed.
const maxCloneEpochs = 200

// Clone makes an independent image of the head, or of a snapshot, that shares its
// segments. Of the options only labels, recipients (empty: those of the image), admins
// and passphrase count. The clone gets the epochs up to the fork and one of its own, and
// the image writes under another one than those: neither can read what the other writes
// from now on. So it takes the lease of the image (ErrReadOnly without).
func (d *Disk) Clone(ctx context.Context, snapshot string, o CreateOptions) (blockstore.ImageID, error) {
	if err := d.writable(); err != nil {
		return blockstore.ImageID{}, err
	}
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if len(o.Recipients) == 0 {
		o.Recipients = d.head.keys.Recipients
	}
	h, keys, err := d.forkPoint(ctx, snapshot)
	if err != nil {
		return blockstore.ImageID{}, err
	}
	if keys.Newest() == d.head.epoch {
		if err := d.partLocked(ctx); err != nil {
			return blockstore.ImageID{}, err
		}
	}
	f := Fork{s: d.s, parent: d.head, state: h, keys: keys}
	return f.Clone(ctx, o)
}

// partLocked begins an epoch that no clone of what is there has.
func (d *Disk) partLocked(ctx context.Context) error {
	if len(d.head.keys.Epochs) >= maxCloneEpochs {
		return fmt.Errorf("image: %d epochs, no room for a clone's: export and import it anew", len(d.head.keys.Epochs))
	}
	return d.commitLocked(ctx, &edit{floor: true, fresh: true, keys: d.head.keys.WithEpoch(crypto.NewEpoch())})
}

// Part begins a new epoch if a snapshot shares the one that seals now, for a clone of the
// snapshot that another host makes ([ErrNoSnapshot]).
func (d *Disk) Part(ctx context.Context, snapshot blockstore.CommitID) error {
	if err := d.writable(); err != nil {
		return err
	}
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	if !slices.ContainsFunc(d.head.snapshots, func(s record.Snapshot) bool { return s.Commit == snapshot }) {
		return fmt.Errorf("commit %v: %w", snapshot, ErrNoSnapshot)
	}
	raw, err := d.s.Store.Commit(d.id, snapshot)
	if err != nil {
		return err
	}
	c, err := blockstore.ParseCommit(raw)
	if err != nil || !shares(c, d.head.epoch) {
		return err
	}
	return d.partLocked(ctx)
}

// shares tells whether an epoch is among those of a commit.
func shares(c *blockstore.CommitRecord, epoch *crypto.Epoch) bool {
	return slices.ContainsFunc(c.Epochs, func(m blockstore.EpochMaster) bool { return m.ID == epoch.ID() })
}

// forkPoint gives the state that a clone begins with, and the epochs that its map needs.
func (d *Disk) forkPoint(ctx context.Context, snapshot string) (*head, *crypto.Keyring, error) {
	if snapshot != "" {
		h, err := d.s.loadSnapshot(ctx, d.head, snapshot)
		if err != nil {
			return nil, nil, err
		}
		return h, epochsOf(h), nil
	}
	if err := d.commitLocked(ctx, nil); err != nil {
		return nil, nil, err
	}
	keys := *d.head.keys
	if d.head.fresh { // nothing is sealed under the newest yet
		keys.Epochs = keys.Epochs[:len(keys.Epochs)-1]
	}
	return d.head, &keys, nil
}

// epochsOf is the keyring of a snapshot, opened with that of the head: its own epochs alone.
func epochsOf(h *head) *crypto.Keyring {
	keys := *h.keys
	keys.Epochs = nil
	for _, m := range h.commit.Epochs {
		if e, ok := h.keys.Epoch(m.ID); ok {
			keys.Epochs = append(keys.Epochs, e)
		}
	}
	return &keys
}

// ErrEpochShared: the parent still writes under an epoch that the clone would get.
var ErrEpochShared = errors.New("image: the parent writes under an epoch of the clone")

// Fork is a state of an image that an independent image is to begin with.
type Fork struct {
	s             *Shared
	parent, state *head           // the image as it is, and where the clone begins
	keys          *crypto.Keyring // the epochs of state
}

// Foreign opens the head of an image that another host writes, and that need not be an
// image here: raw is the commit, whose signature was checked and whose small objects are
// in the store.
func (s *Shared) Foreign(ctx context.Context, id blockstore.ImageID, raw []byte) (*Fork, error) {
	h := &head{id: blockstore.CommitIDOf(raw)}
	if err := s.openHead(ctx, h, id, raw, nil); err != nil {
		return nil, fmt.Errorf("image %v: %w", id, err)
	}
	return &Fork{s: s, parent: h}, nil
}

// Snapshot gives the commit of a snapshot of the image ([ErrNoSnapshot]).
func (f *Fork) Snapshot(name string) (blockstore.CommitID, error) {
	i := slices.IndexFunc(f.parent.snapshots, func(x record.Snapshot) bool { return x.Name == name })
	if i < 0 {
		return blockstore.CommitID{}, fmt.Errorf("%w: %q", ErrNoSnapshot, name)
	}
	return f.parent.snapshots[i].Commit, nil
}

// At makes a snapshot's commit, whose signature was checked, the state where the clone
// begins. [ErrEpochShared]: the holder of the lease has to part from it first.
func (f *Fork) At(raw []byte) error {
	c, err := blockstore.ParseCommit(raw)
	if err != nil {
		return err
	}
	if shares(c, f.parent.epoch) {
		return ErrEpochShared
	}
	if len(c.Epochs) > maxCloneEpochs {
		return fmt.Errorf("image: %d epochs, no room for a clone's: export and import it anew", len(c.Epochs))
	}
	for _, m := range c.Epochs {
		e, ok := f.parent.keys.Epoch(m.ID)
		if !ok {
			return &blockstore.CorruptError{What: "commit", Key: blockstore.CommitIDOf(raw).String(), Cause: errors.New("an epoch is not in the keyring")}
		}
		if err := e.Confirm(m.Master); err != nil {
			return err
		}
	}
	h := &head{id: blockstore.CommitIDOf(raw), keys: f.parent.keys, epoch: f.parent.epoch}
	if h.commit, err = record.OpenCommit(f.parent.keys, raw); err != nil {
		return err
	}
	if h.commit.Image != f.parent.commit.Image || h.commit.Root != nil && h.commit.Root.Level < tree.LevelOf(h.commit.Size) {
		return &blockstore.CorruptError{What: "commit", Key: h.id.String(), Cause: errors.New("of another image, or its map does not cover the disk")}
	}
	f.state, f.keys = h, epochsOf(h)
	return nil
}

// Whole makes the image as it is the state where the clone begins: for a history that the
// image has lost. Nobody may become a recipient of the clone who is none of the image.
func (f *Fork) Whole() { f.state, f.keys = f.parent, f.parent.keys }

// Clone makes the records of an image of its own over the map of the state, all of which is
// in the store. Of the options only labels, recipients, admins and passphrase count.
func (f *Fork) Clone(ctx context.Context, o CreateOptions) (blockstore.ImageID, error) {
	c := *f.state.commit
	o.Size, o.BlockSize, o.Compression, o.Plan = c.Size, c.BlockSize, c.Compression, c.Plan
	return f.s.create(ctx, creation{
		options: o,
		tree:    tree.Tree{Loader: f.s.loader, Keys: f.keys, Root: c.Root, Latest: c.Position()},
		epochs:  f.keys.Epochs,
		after:   f.parent.commit.Position(),
		depmap:  &record.DepMap{Startup: f.s.startup(ctx, f.state), Lineage: &record.Lineage{Image: c.Image, Commit: f.state.id}},
	})
}
