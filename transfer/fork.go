package transfer

import (
	"context"
	"fmt"
	"net/http"

	"github.com/sealdisk/sealdisk/blockstore"
)

// ForkOptions of an image of which one state is brought, to be cloned.
type ForkOptions struct {
	// Image is the only one that will do.
	Image blockstore.ImageID
	// Pick gives the snapshot that is wanted. The small objects of the head, which is
	// head, are in the store by then.
	Pick func(ctx context.Context, head []byte) (blockstore.CommitID, error)
	// Clone makes an image of the picked state, all of which is in the store, and stays
	// there until Clone returns.
	Clone func(ctx context.Context, commit []byte) error
	// Progress is told how many of the sealed bytes that were missing are there; nil: nobody.
	Progress func(done, total int64)
}

// Fork brings what one snapshot of the image that d describes reaches, and leaves the image
// itself, if it is in the store, as it is. What was stored when it is cut is not fetched again.
func (r *Receiver) Fork(ctx context.Context, d *Description, peers []*Client, o ForkOptions) (Received, error) {
	x, err := r.admit(d, ReceiveOptions{Image: o.Image})
	if err != nil {
		return Received{}, err
	}
	hold := r.Store.Hold()
	defer hold.Release()
	x.pool = newPool(d.Image, peers, r.Log)
	if x.progress = o.Progress; x.progress == nil {
		x.progress = func(int64, int64) {}
	}
	if err := x.smalls(ctx, smallsOf(x.head.public)...); err != nil {
		return Received{}, err
	}
	snapshots, err := x.snapshots(ctx, peers)
	if err != nil {
		return Received{}, err
	}
	wanted, err := o.Pick(ctx, d.Head)
	if err != nil {
		return Received{}, err
	}
	for _, s := range snapshots {
		if s.id != wanted {
			continue
		}
		if err := x.fetch(ctx, s.public); err != nil {
			return Received{}, err
		}
		out := x.received()
		out.Head, out.Position = s.id, s.public.Position()
		return out, o.Clone(ctx, s.raw)
	}
	return Received{}, fmt.Errorf("commit %v is no snapshot of image %v: %w", wanted, d.Image, ErrProtocol)
}

// Part asks the holder of an image's lease to write under an epoch that the snapshot with
// that commit does not share: who clones the snapshot gets the epochs of that.
func (c *Client) Part(ctx context.Context, image blockstore.ImageID, snapshot blockstore.CommitID) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "/v1/images/"+image.String()+"/parts/"+snapshot.String(), nil, nil, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
