package image

import (
	"context"
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
		if len(d.head.keys.Epochs) >= maxCloneEpochs {
			return blockstore.ImageID{}, fmt.Errorf("image: %d epochs, no room for a clone's: export and import it anew", len(d.head.keys.Epochs))
		}
		e := &edit{floor: true, fresh: true, keys: d.head.keys.WithEpoch(crypto.NewEpoch())}
		if err := d.commitLocked(ctx, e); err != nil {
			return blockstore.ImageID{}, err
		}
	}
	return d.fork(ctx, h, keys, o)
}

// forkPoint gives the state that a clone begins with, and the epochs that its map needs.
func (d *Disk) forkPoint(ctx context.Context, snapshot string) (*head, *crypto.Keyring, error) {
	if snapshot != "" {
		h, err := d.s.loadSnapshot(ctx, d.head, snapshot)
		if err != nil {
			return nil, nil, err
		}
		keys := *h.keys
		keys.Epochs = nil
		for _, m := range h.commit.Epochs {
			if e, ok := h.keys.Epoch(m.ID); ok {
				keys.Epochs = append(keys.Epochs, e)
			}
		}
		return h, &keys, nil
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

// fork makes the clone's own records over the map of h.
func (d *Disk) fork(ctx context.Context, h *head, keys *crypto.Keyring, o CreateOptions) (blockstore.ImageID, error) {
	c := *h.commit
	o.Size, o.BlockSize, o.Compression, o.Plan = c.Size, c.BlockSize, c.Compression, c.Plan
	return d.s.create(ctx, creation{
		options: o,
		tree:    tree.Tree{Loader: d.s.loader, Keys: keys, Root: c.Root},
		epochs:  keys.Epochs,
		after:   d.head.commit.Position(),
		depmap:  &record.DepMap{Startup: d.startup(ctx, h), Lineage: &record.Lineage{Image: d.id, Commit: h.id}},
	})
}
