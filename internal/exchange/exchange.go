package exchange

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"filippo.io/age"
	"golang.org/x/sync/semaphore"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/handover"
	"github.com/sealdisk/sealdisk/internal/metrics"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// Local labels of a catalogue entry.
const (
	LabelOrigin = "local.origin"  // fingerprint of the peer that brought the image
	LabelNoKeys = "local.no-keys" // "yes": a replica that is not to become a recipient
)

// Names is the catalogue of the daemon.
type Names interface {
	// Lookup gives an image by its name, or by its id in hex ([transfer.ErrNoImage]).
	Lookup(ref string) (record.Entry, error)
	// All gives all images.
	All() []record.Entry
	// Reserve keeps a free name for an image that is being brought until release.
	Reserve(name string) (release func(), err error)
	// Add lists an image under a reserved name.
	Add(ctx context.Context, e record.Entry) error
	// Relabel replaces the labels of an image.
	Relabel(ctx context.Context, id blockstore.ImageID, labels map[string]string) error
	// Change runs work on the image, which this host may write.
	Change(ctx context.Context, id blockstore.ImageID, work func(*image.Disk) error) error
	// Group gives the images that go together with one, itself among them.
	Group(id blockstore.ImageID) []blockstore.ImageID
	// Yield gives the lease of an image, and of those that go together with it, to a host while
	// nobody here writes them ([image.ErrInUse]). Each is checked after a commit of what was written,
	// before the first is given.
	Yield(ctx context.Context, id blockstore.ImageID, to [32]byte, check func(blockstore.ImageID) error) error
	// Mounted gives the image that a file of a mount of this host shows.
	Mounted(file string) (blockstore.ImageID, error)
	// Written is how many bytes were written to the image on mounts of this host.
	Written(id blockstore.ImageID) int64
	// Gone notes that the lease of an armed image has gone already.
	Gone(id blockstore.ImageID, to peer.Fingerprint)
	// Arm lets images go to a host as soon as nobody here writes any of them any more.
	Arm(ids []blockstore.ImageID, to peer.Fingerprint, timeout time.Duration, offer func(ctx context.Context)) (*handover.Armed, error)
	// Changed makes mounts and listings see the new head of an image.
	Changed(id blockstore.ImageID)
}

// Options of an Exchange.
type Options struct {
	Store      *blockstore.Store
	Shared     *image.Shared
	Anchor     *anchor.Anchor
	Key        crypto.HostKey
	Identities []age.Identity
	Recipients []string // this host's own
	Admins     []string // who gets the image keys of images that are made here
	Book       *peer.Book
	Names      Names
	// Growing is held once while objects are brought or lent that nothing may refer to:
	// the collector takes it as a whole.
	Growing *semaphore.Weighted
	// SourceTimeout is how long a reader waits for what is missing.
	SourceTimeout time.Duration
	// Guests is the folder of the monitors of those QEMUs that peers may move guests to; "": none.
	Guests  string
	Metrics *metrics.Set
	Log     *slog.Logger
}

// Exchange is a host's dealings with its peers. Safe for concurrent use.
type Exchange struct {
	Options
	endpoint *peer.Endpoint
	server   *transfer.Server
	life     context.Context // of what peers have asked for
	end      context.CancelFunc
	running  sync.WaitGroup // pushes that are being received, fills

	mu       sync.Mutex
	busy     map[blockstore.ImageID]chan struct{} // is being received, or removed; closed at the end
	reserved int64                                // bytes set aside
	brought  map[peer.Fingerprint]int64           // bytes that peers brought since the last collection
	rates    map[peer.Fingerprint]*peer.Rate
	bounds   map[string]map[*peer.Rate]struct{} // of pulls and pushes that run, by the image's name here
	partials map[blockstore.ImageID]*partial
	comings  map[blockstore.ImageID]*coming
	leaving  map[blockstore.ImageID]bool // migrations of this host
	fills    map[peer.Fingerprint]map[*peer.Rate]struct{}
	sent     map[peer.Fingerprint]*atomic.Int64 // bytes that went to peers
}

// New makes the exchange of a host. It ends with Close.
func New(o Options) (*Exchange, error) {
	endpoint, err := peer.NewEndpoint(o.Key, o.Book)
	if err != nil {
		return nil, err
	}
	x := &Exchange{Options: o, endpoint: endpoint, busy: map[blockstore.ImageID]chan struct{}{}, brought: map[peer.Fingerprint]int64{}, rates: map[peer.Fingerprint]*peer.Rate{}, bounds: map[string]map[*peer.Rate]struct{}{}, partials: map[blockstore.ImageID]*partial{}, comings: map[blockstore.ImageID]*coming{}, leaving: map[blockstore.ImageID]bool{}, fills: map[peer.Fingerprint]map[*peer.Rate]struct{}{}, sent: map[peer.Fingerprint]*atomic.Int64{}}
	x.life, x.end = context.WithCancel(context.Background())
	x.server = transfer.NewServer(o.Store, x, o.Metrics.Refused, o.Log)
	return x, nil
}

// Listen answers peers on l until ctx ends.
func (x *Exchange) Listen(ctx context.Context, l net.Listener) error {
	return transfer.Listen(ctx, l, x.endpoint, x.Metrics.Refused, x.Log, func(_ context.Context, c *peer.Conn) {
		x.meter(c)
		c.Bound(x.rate(c.Peer))
		for _, r := range x.fillRates(c.Peer.Key) {
			c.Bound(r)
		}
		answer := x.server.Handle
		if c.Protocol != peer.Forward {
			answer = x.server.Admit
		}
		if err := answer(c); err != nil {
			x.Log.Warn("a peer was turned away", "peer", c.Peer.Name, "err", err)
			return
		}
		switch c.Protocol {
		case peer.Reverse:
			x.running.Go(func() { x.receivePush(x.life, c) })
		case peer.Tunnel:
			x.running.Go(func() { x.receiveGuest(x.life, c) })
		}
	})
}

// rate is the bound of all connections with a peer together.
func (x *Exchange) rate(p peer.Peer) *peer.Rate {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := x.rates[p.Key]
	if r == nil {
		r = peer.NewRate(0)
		x.rates[p.Key] = r
	}
	r.Set(p.Quota.Rate)
	return r
}

// bound makes a bound for a pull or push that SetBandwidth finds, until done.
func (x *Exchange) bound(name string, perSecond int64) (r *peer.Rate, done func()) {
	r = peer.NewRate(perSecond)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bounds[name] == nil {
		x.bounds[name] = map[*peer.Rate]struct{}{}
	}
	x.bounds[name][r] = struct{}{}
	return r, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		r.Set(0) // a connection that lives on goes on without
		if delete(x.bounds[name], r); len(x.bounds[name]) == 0 {
			delete(x.bounds, name)
		}
	}
}

// SetBandwidth bounds the pulls and pushes of an image that run, in bytes per second (0: no
// bound), and tells how many there are.
func (x *Exchange) SetBandwidth(name string, perSecond int64) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	for r := range x.bounds[name] {
		r.Set(perSecond)
	}
	return len(x.bounds[name])
}

// dial connects to a peer.
func (x *Exchange) dial(ctx context.Context, at peer.Peer, protocol string) (*peer.Conn, error) {
	c, err := x.endpoint.Dial(ctx, at, protocol)
	if err != nil {
		return nil, err
	}
	x.meter(c)
	c.Bound(x.rate(at))
	return c, nil
}

func (x *Exchange) meter(c *peer.Conn) {
	name, sent := c.Peer.Name, x.sentTo(c.Peer.Key)
	c.Meter(func(in, out int) {
		x.Metrics.Network(name, in, out)
		sent.Add(int64(out))
	})
}

// sentTo counts the bytes that went to a peer, over all connections.
func (x *Exchange) sentTo(key peer.Fingerprint) *atomic.Int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := x.sent[key]
	if n == nil {
		n = new(atomic.Int64)
		x.sent[key] = n
	}
	return n
}

// Close ends all connections; answers and pulls under way are cut and may be resumed.
func (x *Exchange) Close(ctx context.Context) error {
	x.end()
	err := x.server.Close(ctx)
	x.running.Wait()
	return err
}

// Enter keeps an image for one pull, or for its removal, at a time, and waits for its turn.
func (x *Exchange) Enter(ctx context.Context, id blockstore.ImageID) (leave func(), err error) {
	for {
		x.mu.Lock()
		busy := x.busy[id]
		if busy == nil {
			mine := make(chan struct{})
			x.busy[id] = mine
			x.mu.Unlock()
			return func() {
				x.mu.Lock()
				defer x.mu.Unlock()
				delete(x.busy, id)
				close(mine)
			}, nil
		}
		x.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("image %v is being received: %w", id, image.ErrInUse)
		}
	}
}

// account counts bytes that a peer brought, and refuses them beyond its quota. What it
// brought and was replaced counts until the next collection.
func (x *Exchange) account(from *peer.Peer) func(n int) error {
	if from == nil || from.Quota.Stored == 0 {
		return nil
	}
	return func(n int) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.brought[from.Key] += int64(n)
		if x.brought[from.Key] > from.Quota.Stored {
			return fmt.Errorf("%w: it may bring %d bytes", transfer.ErrRefused, from.Quota.Stored)
		}
		return nil
	}
}

// Collected makes the counts of what peers brought those of what is left of it.
func (x *Exchange) Collected() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.brought)
}

// reserve sets bytes aside of what is free and of what a peer may bring; nil: this host
// has asked for them itself.
func (x *Exchange) reserve(n int64, from *peer.Peer) (release func(n int64), err error) {
	free, _, err := x.Store.Free()
	if err != nil {
		return nil, err
	}
	if from != nil && from.Quota.Stored > 0 {
		stored, err := x.broughtBy(from.Key)
		if err != nil {
			return nil, err
		}
		if n > from.Quota.Stored-stored {
			return nil, fmt.Errorf("peer %s may bring %d bytes, has brought %d and brings %d more: %w", from.Name, from.Quota.Stored, stored, n, transfer.ErrRefused)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if n > free-x.reserved {
		return nil, fmt.Errorf("%d bytes are to come, %d are free and %d of them set aside: %w", n, free, x.reserved, blockstore.ErrNoSpace)
	}
	x.reserved += n
	return func(n int64) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.reserved -= n
	}, nil
}

// mayBring says whether a peer may bring all that d describes, for when it comes later.
func (x *Exchange) mayBring(d *transfer.Description, from *peer.Peer) error {
	if from == nil {
		return nil
	}
	c, err := blockstore.ParseCommit(d.Head)
	if err != nil || c.Root == nil {
		return err
	}
	n := int64(c.Root.Subtree)
	release, err := x.reserve(n, from)
	if err != nil {
		return err
	}
	release(n)
	return nil
}

// broughtBy sums up the images that a peer has brought, in sealed bytes of their heads.
func (x *Exchange) broughtBy(key peer.Fingerprint) (sum int64, err error) {
	for _, e := range x.Names.All() {
		if e.Labels[LabelOrigin] != key.String() {
			continue
		}
		_, raw, err := x.Store.Head(e.Image)
		if errors.Is(err, blockstore.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		c, err := blockstore.ParseCommit(raw)
		if err != nil {
			return 0, err
		}
		if c.Root != nil {
			sum += int64(c.Root.Subtree)
		}
	}
	return sum, nil
}
