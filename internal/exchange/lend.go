package exchange

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

var _ transfer.Images = (*Exchange)(nil)

// rank orders roles: each includes those before it.
func rank(r peer.Role) int {
	return slices.Index([]peer.Role{peer.None, peer.Replica, peer.Host}, r)
}

// Find implements transfer.Images. What a peer may not have it cannot tell from what is
// not there; who may have an image, but not that much of it, is told so.
func (x *Exchange) Find(p peer.Peer, ref string, least peer.Role) (blockstore.ImageID, error) {
	// Connections may be older than what the book says now.
	p, err := x.Book.Pinned(p.Key)
	if err != nil {
		return blockstore.ImageID{}, fmt.Errorf("%w: %w", transfer.ErrRefused, err)
	}
	e, err := x.Names.Lookup(ref)
	if err != nil {
		return blockstore.ImageID{}, err
	}
	switch role := role(p, e); {
	case rank(role) >= rank(least):
		return e.Image, nil
	case rank(role) >= rank(peer.Replica):
		return blockstore.ImageID{}, fmt.Errorf("%w: role %s, %s is needed", transfer.ErrRefused, role, least)
	}
	return blockstore.ImageID{}, transfer.ErrNoImage
}

// Guard implements transfer.Images. A collection waits for its end, or it for that of a
// collection.
func (x *Exchange) Guard(id blockstore.ImageID) (func(), error) {
	ctx, cancel := context.WithTimeout(x.life, lendPatience)
	defer cancel()
	if err := x.Growing.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("%w: a collection is running, try again", transfer.ErrRefused)
	}
	release := x.Shared.Guard(id)
	return sync.OnceFunc(func() {
		release()
		x.Growing.Release(1)
	}), nil
}

// lendPatience is how long a peer waits for a collection.
const lendPatience = 20 * time.Second

// Changed implements transfer.Images.
func (x *Exchange) Changed(id blockstore.ImageID) <-chan struct{} { return x.Shared.Changed(id) }

// errAsked ends a claim that only asks, once nothing stands in its way.
var errAsked = errors.New("nothing stands in the way")

// Grant implements transfer.Images. Nobody here may have the image open for writing.
func (x *Exchange) Grant(ctx context.Context, p peer.Peer, public [32]byte, id blockstore.ImageID, c transfer.Claim) error {
	for _, one := range x.Names.Group(id) { // all or none
		if x.Partial(one) {
			return fmt.Errorf("%w: the image is not whole there", transfer.ErrRefused)
		}
		if _, err := x.Find(p, one.String(), peer.Host); err != nil {
			return fmt.Errorf("%w: not all disks of the guest may go: %w", transfer.ErrRefused, err)
		}
	}
	err := x.Names.Yield(ctx, id, public, func(one blockstore.ImageID) error {
		err := c.Check(x.Store, one)
		if err == nil && c.Ask {
			err = errAsked
		}
		return err
	})
	switch {
	case errors.Is(err, errAsked):
		err = nil
	case errors.Is(err, image.ErrInUse):
		return fmt.Errorf("%w: the image is in use there", transfer.ErrRefused)
	case errors.Is(err, image.ErrNotHolder):
		return fmt.Errorf("%w: another host holds the lease", transfer.ErrRefused)
	case errors.Is(err, crypto.ErrNoIdentity):
		return fmt.Errorf("%w: that host has no keys of the image", transfer.ErrRefused)
	case err == nil && !c.Ask:
		x.Log.Warn("a peer has the lease from now on", "peer", p.Name, "image", id.String())
	}
	x.Names.Changed(id)
	return err
}

// maxAsked is how many recipients a peer may add at a time.
const maxAsked = 16

// AddRecipients implements transfer.Images: a peer becomes a recipient. It takes the keys
// and the lease of the image.
func (x *Exchange) AddRecipients(ctx context.Context, p peer.Peer, id blockstore.ImageID, recipients []string) error {
	if len(recipients) == 0 || len(recipients) > maxAsked {
		return fmt.Errorf("%w: %d recipients", transfer.ErrProtocol, len(recipients))
	}
	if err := crypto.CheckClasses(recipients, false); err != nil {
		return fmt.Errorf("%w: %w", transfer.ErrRefused, err)
	}
	canonical := make([]string, len(recipients))
	for i, r := range recipients {
		var err error
		if canonical[i], err = crypto.CanonicalRecipient(r); err != nil {
			return fmt.Errorf("%w: %w", transfer.ErrProtocol, err)
		}
	}
	err := x.Names.Change(ctx, id, func(d *image.Disk) error {
		return d.SetRecipients(ctx, func(now []string) ([]string, error) {
			for _, r := range canonical {
				if !slices.Contains(now, r) {
					now = append(now, r)
				}
			}
			return now, nil
		})
	})
	if err == nil {
		x.Log.Warn("a peer became a recipient", "peer", p.Name, "image", id.String())
	}
	return changeRefused(err)
}

// changeRefused tells a peer why an image cannot be changed here.
func changeRefused(err error) error {
	switch {
	case errors.Is(err, image.ErrReadOnly), errors.Is(err, image.ErrNotHolder):
		return fmt.Errorf("%w: another host holds the lease of the image; ask that one", transfer.ErrRefused)
	case errors.Is(err, image.ErrInUse):
		return fmt.Errorf("%w: the image is busy there, try again", transfer.ErrRefused)
	case errors.Is(err, crypto.ErrNoIdentity):
		return fmt.Errorf("%w: this host has no keys of the image; ask one that has", transfer.ErrRefused)
	}
	return err
}
