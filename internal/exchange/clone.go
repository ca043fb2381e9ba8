package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// clone brings a snapshot of a peer's image as an image of this host's own.
func (j *job) clone(ctx context.Context, snapshot string) (out Pulled, err error) {
	if err := j.x.Growing.Acquire(ctx, 1); err != nil {
		return Pulled{}, err
	}
	defer j.x.Growing.Release(1)
	release, err := j.x.Names.Reserve(j.name)
	if err != nil {
		return Pulled{}, err
	}
	defer release()
	for try := 1; ; try++ {
		out, err = j.cloneOnce(ctx, snapshot)
		if try == freshTries || !errors.Is(err, transfer.ErrAbsent) && !errors.Is(err, image.ErrEpochShared) {
			return out, err
		}
		j.x.Log.Info("the peer has a newer state by now", "image", j.name, "err", err)
	}
}

// cloneOnce describes, becomes a recipient if need be, and clones what the snapshot is then.
// [image.ErrEpochShared]: the peer has parted from the snapshot's epochs since.
func (j *job) cloneOnce(ctx context.Context, snapshot string) (Pulled, error) {
	first := j.clients[0]
	d, err := first.Describe(ctx, j.remote, blockstore.CommitID{})
	if err != nil {
		return Pulled{}, err
	}
	if j.image != (blockstore.ImageID{}) && d.Image != j.image {
		return Pulled{}, fmt.Errorf("%s is image %v there, not %v: %w", j.remote, d.Image, j.image, transfer.ErrNoImage)
	}
	if d, _, err = j.obtainKeys(ctx, d, keysWanted); err != nil {
		return Pulled{}, err
	}
	var parent *image.Fork
	var wanted blockstore.CommitID
	var made blockstore.ImageID
	got, err := j.x.receiver(j.from).Fork(ctx, d, j.clients, transfer.ForkOptions{
		Image: d.Image, Progress: j.progress,
		Pick: func(ctx context.Context, head []byte) (_ blockstore.CommitID, err error) {
			if parent, err = j.x.Shared.Foreign(ctx, d.Image, head); err == nil {
				wanted, err = parent.Snapshot(snapshot)
			}
			return wanted, err
		},
		Clone: func(ctx context.Context, commit []byte) (err error) {
			if err := parent.At(commit); err != nil {
				return err
			}
			made, err = j.listClone(ctx, parent)
			return err
		},
	})
	j.x.Metrics.Received(got.Objects)
	if errors.Is(err, image.ErrEpochShared) {
		if perr := first.Part(ctx, d.Image, wanted); perr != nil {
			return Pulled{}, fmt.Errorf("parting from the snapshot: %w", perr)
		}
	}
	if err != nil {
		return Pulled{}, err
	}
	got.Image = made
	if got.Head, _, err = j.x.Store.Head(made); err != nil {
		return Pulled{}, err
	}
	return Pulled{Received: got, Name: j.name}, first.Done(ctx, d.Image)
}

// listClone makes the clone and lists it.
func (j *job) listClone(ctx context.Context, f *image.Fork) (blockstore.ImageID, error) {
	labels := map[string]string{"name": j.name}
	id, err := f.Clone(ctx, image.CreateOptions{Labels: map[string]string{"name": j.name}, Recipients: j.x.Recipients, Admins: j.x.Admins})
	if err != nil {
		return id, err
	}
	if j.from != nil {
		labels[LabelOrigin] = j.from.Key.String()
	}
	return id, j.x.Names.Add(ctx, record.Entry{Name: j.name, Image: id, Labels: labels})
}

// Part implements transfer.Images: a clone of a snapshot is about to be made elsewhere.
func (x *Exchange) Part(ctx context.Context, _ peer.Peer, id blockstore.ImageID, snapshot blockstore.CommitID) error {
	err := x.Names.Change(ctx, id, func(d *image.Disk) error { return d.Part(ctx, snapshot) })
	if errors.Is(err, image.ErrNoSnapshot) {
		return fmt.Errorf("%w: no such snapshot", transfer.ErrRefused)
	}
	return changeRefused(err)
}
