package exchange

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// leaseTimeout bounds how long somebody who opens an image waits for its lease.
const leaseTimeout = 60 * time.Second

// Acquire asks the holder of an image's lease for it, and brings what it wrote last.
// [image.ErrNotHolder]: it is no peer that can be called, or does not give it.
func (x *Exchange) Acquire(ctx context.Context, id blockstore.ImageID) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	unclaim := func() {}
	var given *transfer.Description // the image, as it is given
	if in := x.coming(id); in != nil {
		var err error
		if given, err = x.mayClaim(ctx, in, id); err != nil {
			return err
		}
		unclaim = in.claim() // else a round that runs would be waited for
	}
	enter, err := x.Enter(ctx, id)
	if err != nil {
		unclaim()
		return err
	}
	leave := func() {
		enter()
		unclaim()
	}
	chain, err := lease.Load(x.Store, id)
	if err != nil || chain.Newest().Holder == x.Key.Public() {
		leave()
		if in := x.coming(id); in != nil && err == nil { // it came with that of another disk of the guest
			in.took()
		}
		return err
	}
	p, err := x.Book.Pinned(peer.FingerprintOf(chain.Newest().Holder))
	if err != nil {
		leave()
		return fmt.Errorf("%w: %w", image.ErrNotHolder, err)
	}
	// Once the holder has given it there is no way back: it goes on though nobody waits.
	done := make(chan error, 1)
	x.running.Go(func() {
		defer leave()
		done <- x.takeLease(x.life, p, id, given)
	})
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %s has not given it yet: %w", image.ErrNotHolder, p.Name, ctx.Err())
	}
	switch {
	case errors.Is(err, blockstore.ErrNoSpace): // it may have been given: once there is room it is asked for again
		return fmt.Errorf("%s has the lease: %w", p.Name, err)
	case err != nil:
		return fmt.Errorf("%w: %s has it: %w", image.ErrNotHolder, p.Name, err)
	}
	x.Log.Warn("this host has the lease from now on", "image", id.String(), "from", p.Name)
	return nil
}

// takeLease takes the lease over a connection by which the image comes, if there is one, else
// over one of its own: also if the answer was lost, for it is the same when asked again. Given
// is the answer, if there was one.
func (x *Exchange) takeLease(ctx context.Context, p peer.Peer, id blockstore.ImageID, given *transfer.Description) error {
	if err := x.Growing.Acquire(ctx, 1); err != nil {
		return err
	}
	defer x.Growing.Release(1)
	in := x.coming(id)
	if in != nil && in.client.Conn.Peer.Key == p.Key {
		err := x.askComing(ctx, in, id, given)
		if err == nil {
			in.took()
		}
		if err == nil || !lostPeer(err) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		x.Log.Warn("the lease is asked for again", "image", id.String(), "err", err)
	}
	err := x.askLease(ctx, p, id, in)
	if err == nil && in != nil {
		in.took()
	}
	return err
}

// mayClaim fails if the holder, who hands an image over, refuses its lease: whoever asks again
// and again must not cut the rounds short. It gives the answer, nil if there was none: then it is
// asked for again, for what is granted is granted to who asks again.
func (x *Exchange) mayClaim(ctx context.Context, in *coming, id blockstore.ImageID) (*transfer.Description, error) {
	if mine, err := x.holds(id); err != nil || mine {
		return nil, err
	}
	if _, err := x.offered(in.client, in.offer); err != nil { // later it would be too late to refuse
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	d, err := in.client.Lease(ctx, id, x.claimOn(in))
	if errors.Is(err, transfer.ErrRefused) {
		return nil, fmt.Errorf("%w: %s has it: %w", image.ErrNotHolder, in.client.Conn.Peer.Name, err)
	}
	if err != nil { // what is wrong with the connection is seen below
		return nil, nil
	}
	return d, nil
}

// askPatience is how long a connection that was there before may take to answer: it may be dead.
const askPatience = 10 * time.Second

// askComing asks for the lease over the connection by which the image comes, unless it was given.
func (x *Exchange) askComing(ctx context.Context, in *coming, id blockstore.ImageID, d *transfer.Description) error {
	j, err := x.offered(in.client, in.offer)
	if err != nil {
		return err
	}
	if d == nil {
		asking, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		if d, err = in.client.Lease(asking, id, x.claimOn(in)); err != nil {
			return err
		}
	}
	if err := x.bringGiven(ctx, j, d, in); err != nil {
		return err
	}
	if mine, err := x.holds(id); err != nil || !mine {
		return errors.Join(err, errors.New("it answers, and does not give it"))
	}
	return nil
}

// bringGiven brings the state that came with the lease, all of it if that is little or has to be.
// No quota counts: there is no way back.
func (x *Exchange) bringGiven(ctx context.Context, j *job, d *transfer.Description, in *coming) error {
	id := j.image
	same, err := x.sameMap(id, d)
	if err != nil {
		return err
	}
	if same || in.offer.Whole {
		return x.bring(ctx, in.client, id, d)
	}
	// There was no time for the last round: what is missing comes while the image is in use.
	j.from, j.lazy, j.prefetch = nil, true, true
	have, known, release, err := j.local()
	if err != nil {
		return err
	}
	defer release()
	if _, err := j.receive(ctx, d, id, have, known, have.Labels[LabelNoKeys] != ""); err != nil {
		return err
	}
	return x.arrived(ctx, id)
}

// sameMap tells whether the map that a peer describes is the one that is here.
func (x *Exchange) sameMap(id blockstore.ImageID, d *transfer.Description) (bool, error) {
	_, raw, err := x.Store.Head(id)
	if err != nil {
		return false, err
	}
	here, err := blockstore.ParseCommit(raw)
	if err != nil {
		return false, err
	}
	there, err := blockstore.ParseCommit(d.Head)
	if err != nil {
		return false, err
	}
	a, b := here.Root, there.Root
	return a == b || a != nil && b != nil && a.ID == b.ID, nil
}

// tell has the holder receive the state here: it does not know yet that it is the holder,
// because the answer to it was lost.
func (x *Exchange) tell(ctx context.Context, p peer.Peer, id blockstore.ImageID) error {
	e, err := x.Names.Lookup(id.String())
	if err != nil {
		return err
	}
	conn, err := x.dial(ctx, p, peer.Reverse)
	if err != nil {
		return err
	}
	return x.server.Push(ctx, conn, transfer.Offer{Version: transfer.Version, Image: id, Name: e.Name}, nil)
}

// askLease dials the holder, and brings the newest state first, so that little is left to
// come once the lease is given.
func (x *Exchange) askLease(ctx context.Context, p peer.Peer, id blockstore.ImageID, in *coming) error {
	var claim transfer.Claim
	if in != nil {
		claim = x.claimOn(in)
	}
	conn, err := x.dial(ctx, p, peer.Forward)
	if err != nil {
		return err
	}
	c := transfer.NewClient(conn)
	defer c.Close()
	for range 2 {
		d, err := x.wouldGive(ctx, c, id, claim)
		if err == nil {
			err = x.bring(ctx, c, id, d)
		}
		if mine, herr := x.holds(id); herr != nil || mine { // it was given before
			return herr
		}
		if err == nil {
			if d, err = c.Lease(ctx, id, claim); err == nil {
				err = x.bring(ctx, c, id, d)
			}
		}
		if mine, herr := x.holds(id); herr != nil || mine {
			return errors.Join(herr, err)
		}
		if err != nil && !errors.Is(err, lease.ErrSuperseded) {
			return err
		}
		if err := x.tell(ctx, p, id); err != nil {
			return fmt.Errorf("it does not know yet that it has it: %w", err)
		}
	}
	return errors.New("it does not know that it has it")
}

// wouldGive asks whether the holder would give an image's lease, and how the image is there: of one that
// is in use nothing is brought in vain. A peer that refuses and is not the holder any more describes it all the same.
func (x *Exchange) wouldGive(ctx context.Context, c *transfer.Client, id blockstore.ImageID, claim transfer.Claim) (*transfer.Description, error) {
	claim.Ask = true
	d, refusal := c.Lease(ctx, id, claim)
	if !errors.Is(refusal, transfer.ErrRefused) {
		return d, refusal
	}
	d, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
	if err != nil {
		return nil, err
	}
	chain, err := lease.Parse(id, d.Leases)
	if err == nil && chain.Newest().Holder == c.Conn.Public {
		err = refusal
	}
	return d, err
}

// bring makes what a peer describes the state of an image that is here, whole if it is so now.
func (x *Exchange) bring(ctx context.Context, c *transfer.Client, id blockstore.ImageID, d *transfer.Description) error {
	receive := x.receiver(nil).Receive
	if x.Partial(id) {
		receive = x.receiver(nil).Begin
	}
	if _, err := receive(ctx, d, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id, Install: x.unwritten(ctx, d, nil)}); err != nil {
		return err
	}
	return x.arrived(ctx, id)
}

// unwritten runs an installation of what d describes while nobody here writes the image, and
// keeps what would be lost by it; around may be nil.
func (x *Exchange) unwritten(ctx context.Context, d *transfer.Description, around func(install func() error) error) func(install func() error) error {
	return func(install func() error) error {
		release, err := x.Shared.Unwritten(d.Image)
		if err != nil {
			return err
		}
		defer release()
		if err := x.keepLost(ctx, d); err != nil {
			return err
		}
		if around == nil {
			return install()
		}
		return around(install)
	}
}

// arrived shows the new head of an image to who has it open.
func (x *Exchange) arrived(ctx context.Context, id blockstore.ImageID) error {
	err := x.Shared.Advance(ctx, id)
	x.Names.Changed(id)
	return err
}

// receiver gives what brings images into the store; from is the peer whose quota counts.
func (x *Exchange) receiver(from *peer.Peer) *transfer.Receiver {
	return &transfer.Receiver{
		Store: x.Store, Anchor: x.Anchor, Log: x.Log,
		Reserve: func(n int64) (func(int64), error) { return x.reserve(n, from) },
		Account: x.account(from),
	}
}
