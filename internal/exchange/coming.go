package exchange

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// coming is an image that is being handed over to this host by the holder of its lease.
type coming struct {
	client *transfer.Client // to the holder
	offer  *transfer.Offer
	taken  chan struct{}         // closed when this host has the lease
	took   func()                // closes it
	guest  atomic.Bool           // a guest has come, or is coming, with it
	next   *transfer.Description // of the state that the next round brings, if it has come; the rounds alone use it

	mu     sync.Mutex          // guards what follows
	opened blockstore.ObjectID // the keyring that this host is known to open
	claims int                 // that are under way
	free   chan struct{}       // closed when none is any more; nil: none is
	cut    func()              // ends the round that runs
}

// claim cuts the round that runs short, for whoever opens the image waits, and keeps the
// next from beginning until done.
func (in *coming) claim() (done func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.claims++; in.claims == 1 {
		in.free = make(chan struct{})
	}
	in.cut()
	return sync.OnceFunc(func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.claims--; in.claims == 0 {
			close(in.free)
			in.free = nil
		}
	})
}

func (in *coming) unclaimed() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.claims == 0
}

// round begins a round as soon as no claim is under way; ctx is done when one is.
func (in *coming) round(ctx context.Context) (context.Context, context.CancelFunc, error) {
	for {
		in.mu.Lock()
		free := in.free
		if free == nil {
			ctx, cut := context.WithCancel(ctx)
			in.cut = cut
			in.mu.Unlock()
			return ctx, cut, nil
		}
		in.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// expect makes it known that an image comes over a connection, until end.
func (x *Exchange) expect(c *transfer.Client, o *transfer.Offer) (in *coming, end func(), err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	id := o.Image
	if old := x.comings[id]; old != nil {
		if old.client.Conn.Peer.Key != c.Conn.Peer.Key {
			return nil, nil, fmt.Errorf("image %v is being handed over already: %w", id, image.ErrInUse)
		}
		_ = old.client.Close() // it begins anew: the connection before is dead
	}
	in = &coming{client: c, offer: o, taken: make(chan struct{}), cut: func() {}}
	in.took = sync.OnceFunc(func() { close(in.taken) })
	x.comings[id] = in
	return in, sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.comings[id] == in {
			delete(x.comings, id)
		}
	}), nil
}

// coming gives the handover of an image to this host; nil: there is none.
func (x *Exchange) coming(id blockstore.ImageID) *coming {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.comings[id]
}

// keyringOf gives the keyring that a description names.
func keyringOf(d *transfer.Description) (blockstore.ObjectID, error) {
	c, err := blockstore.ParseCommit(d.Head)
	if err != nil {
		return blockstore.ObjectID{}, err
	}
	return c.Keyring.ID, nil
}

// mustOpen says whether it is not known yet that this host, which is to write the image, opens
// the keyring that d names.
func (in *coming) mustOpen(d *transfer.Description) bool {
	if in == nil {
		return false
	}
	id, err := keyringOf(d)
	in.mu.Lock()
	defer in.mu.Unlock()
	return err != nil || id != in.opened
}

// opens notes that this host does.
func (in *coming) opens(d *transfer.Description) {
	if in == nil {
		return
	}
	if id, err := keyringOf(d); err == nil {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.opened = id
	}
}

// claimOn names the keyrings of all images that come from the same holder: they may go together.
func (x *Exchange) claimOn(in *coming) (c transfer.Claim) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, other := range x.comings {
		other.mu.Lock()
		if opened := other.opened; opened != (blockstore.ObjectID{}) && other.client.Conn.Peer.Key == in.client.Conn.Peer.Key {
			c.Keyrings = append(c.Keyrings, transfer.Keyring{Image: id, ID: opened})
		}
		other.mu.Unlock()
	}
	return c
}

// ownKeys fails if this host does not open what is sealed to its own recipients
// ([crypto.ErrNoIdentity]): it need not ask to become one.
func (x *Exchange) ownKeys(id blockstore.ImageID) error {
	k := crypto.Keyring{Image: id, Epochs: []*crypto.Epoch{crypto.NewEpoch()}, Recipients: x.Recipients}
	raw, err := k.Seal()
	if err == nil {
		_, err = crypto.OpenKeyring(raw, id, x.Identities)
	}
	if err != nil {
		return fmt.Errorf("this host's identity is not that of its recipients: %w: %w", crypto.ErrNoIdentity, err)
	}
	return nil
}

// acceptHandover checks that who offers to hand an image over is a host of it, and holds its lease.
func (x *Exchange) acceptHandover(ctx context.Context, c *transfer.Client, o *transfer.Offer) (*transfer.Description, *blockstore.CommitPublic, error) {
	from, err := x.Book.Pinned(c.Conn.Peer.Key)
	if err != nil {
		return nil, nil, err
	}
	e, err := x.Names.Lookup(o.Image.String())
	if err != nil {
		e.Image, e.Name = o.Image, o.Name
	}
	if rank(role(from, e)) < rank(peer.Host) {
		return nil, nil, fmt.Errorf("peer %s, %s: %w", from.Name, e.Name, errNotBring)
	}
	d, err := c.Describe(ctx, o.Image.String(), blockstore.CommitID{})
	if err != nil {
		return nil, nil, err
	}
	chain, head, err := x.receiver(&from).Check(d, transfer.ReceiveOptions{Image: o.Image})
	if err != nil {
		return nil, nil, err
	}
	if chain.Newest().Holder != c.Conn.Public {
		return nil, nil, fmt.Errorf("peer %s, %s: %w", from.Name, e.Name, errNotHolder)
	}
	return d, head, nil
}

// Bounds on what a peer can keep this host busy with.
const (
	followRate  = 10 // states per second
	followBurst = 20
	tookPause   = 10 * time.Second
)

// startPause is what a guest that has come gets to start in, before the rest of its disk follows.
const startPause = 50 * time.Millisecond

// receiveHandover stays in step with an image until this host has its lease, which whoever
// opens the image for writing asks for, and then until all of it is here.
func (x *Exchange) receiveHandover(ctx context.Context, c *transfer.Client, o *transfer.Offer, progress func(done, total int64)) error {
	if _, _, err := x.acceptHandover(ctx, c, o); err != nil {
		return err
	}
	if err := x.Growing.Acquire(ctx, 1); err != nil { // the collector waits: a claim must not
		return err
	}
	collectable := sync.OnceFunc(func() { x.Growing.Release(1) })
	defer collectable()
	in, end, err := x.expect(c, o)
	if err != nil {
		return err
	}
	defer end()
	untaken, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-in.taken:
		case <-c.Conn.Done():
		case <-untaken.Done():
		}
		cancel()
	}()
	limit := rate.NewLimiter(followRate, followBurst)
	for {
		round, cut, err := in.round(untaken)
		if err == nil {
			err = x.follow(round, in, o, progress)
			if round.Err() != nil && untaken.Err() == nil {
				err = nil // cut short by a claim, which tells
			}
			cut()
		}
		if err == nil {
			err = limit.Wait(untaken)
		}
		if x.taken(ctx, in, o.Image, err) {
			end()
			collectable()
			select {
			case <-time.After(startPause):
			case <-ctx.Done():
			}
			if err := x.Fill(ctx, o.Image, true, progress); err != nil {
				return err
			}
			return x.checkCame(o.Image)
		}
		if err != nil {
			return err
		}
	}
}

// taken tells whether this host has the lease; after an error it may be about to.
func (x *Exchange) taken(ctx context.Context, in *coming, id blockstore.ImageID, err error) bool {
	select {
	case <-in.taken:
		return true
	default:
	}
	if mine, lerr := x.holds(id); lerr != nil || !mine {
		return false
	}
	if in.unclaimed() { // it came with that of another disk of the guest
		in.took()
		return true
	}
	if err == nil {
		return false
	}
	select {
	case <-in.taken:
		return true
	case <-time.After(tookPause):
	case <-ctx.Done():
	}
	return false
}

// checkCame fails unless all of an image is here, with its lease: then its sender may remove its copy.
func (x *Exchange) checkCame(id blockstore.ImageID) error {
	if _, err := x.Names.Lookup(id.String()); err != nil {
		return err
	}
	if mine, err := x.holds(id); err != nil || !mine {
		return errors.Join(err, image.ErrNotHolder)
	}
	if x.Partial(id) {
		return fmt.Errorf("image %v is not whole: %w", id, image.ErrInUse)
	}
	return nil
}

// checkHandover finds what would keep an image from coming.
func (x *Exchange) checkHandover(ctx context.Context, c *transfer.Client, o *transfer.Offer) error {
	d, head, err := x.acceptHandover(ctx, c, o)
	if err != nil {
		return err
	}
	j, err := x.offered(c, o)
	if err != nil {
		return err
	}
	have, known, release, err := j.local()
	if err != nil {
		return err
	}
	defer release()
	if err := j.checkImage(d, have, known); err != nil {
		return err
	}
	opens, err := j.opens(ctx, d)
	if err == nil && !opens {
		err = x.ownKeys(d.Image)
	}
	if err != nil {
		return err
	}
	if known || head.Root == nil { // what a known image lacks is not known yet
		return nil
	}
	n := int64(head.Root.Subtree)
	unreserve, err := x.reserve(n, j.from)
	if err != nil {
		return err
	}
	unreserve(n)
	return nil
}

// follow brings the newest state, says so, and waits for the next.
func (x *Exchange) follow(ctx context.Context, in *coming, o *transfer.Offer, progress func(done, total int64)) error {
	j, err := x.offered(in.client, o)
	if err != nil {
		return err
	}
	j.described, in.next = in.next, nil
	j.in, j.keys, j.lazy, j.later, j.prefetch, j.progress = in, keysWanted, o.Lazy, true, true, progress
	began := time.Now()
	got, err := j.run(ctx)
	if err != nil {
		return err
	}
	x.Log.Debug("a round", "image", j.name, "took", time.Since(began), "bytes", got.Bytes)
	if err := in.client.Report(ctx, transfer.Report{State: transfer.At, Sequence: got.Position.Sequence}); err != nil {
		return err
	}
	if o.Lazy {
		return j.wait(ctx, got.Image)
	}
	in.next, err = j.news(ctx, got.Image)
	return err
}

// holds tells whether this host has the lease of an image.
func (x *Exchange) holds(id blockstore.ImageID) (bool, error) {
	chain, err := lease.Load(x.Store, id)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	return chain.Newest().Holder == x.Key.Public(), nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, blockstore.ErrNotFound) {
		return nil
	}
	return err
}
