package exchange

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// Push is what to have a peer pull.
type Push struct {
	Name      string
	Snapshot  string // the only state to bring, as an image of its own; "": the image
	As        string // the name of that image
	Peer      string
	Follow    bool
	Bandwidth int64 // bytes per second; 0: no bound
	Progress  func(done, total int64)
	Note      func(format string, args ...any)
}

// errNotBring: a peer offers what it may not bring.
var errNotBring = errors.New("the peer may not bring that image")

// errNotHolder: a peer hands over what it does not hold.
var errNotHolder = errors.New("the peer does not hold the lease of that image")

// ErrNotAllowed: this host does not let the peer do it.
var ErrNotAllowed = errors.New("not allowed here")

// Pushed says what a push sent.
type Pushed struct {
	Name string
	Wire int64 // bytes that went over the network
}

// Push brings an image to a peer: that pulls it over a connection made by this host.
func (x *Exchange) Push(ctx context.Context, p Push) (Pushed, error) {
	defer x.Metrics.Running("pushes")()
	e, err := x.Names.Lookup(p.Name)
	if err != nil {
		return Pushed{}, err
	}
	to, err := x.Book.Find(p.Peer)
	if err != nil {
		return Pushed{}, err
	}
	least := peer.Replica
	if p.Snapshot != "" { // its keys are needed to make an image of it
		least = peer.Host
	}
	if rank(role(to, e)) < rank(least) {
		return Pushed{}, fmt.Errorf("peer %s may not have %s: %w", to.Name, e.Name, ErrNotAllowed)
	}
	rate, done := x.bound(e.Name, p.Bandwidth)
	defer done()
	out := Pushed{Name: e.Name}
	offer := transfer.Offer{Version: transfer.Version, Image: e.Image, Name: e.Name, Follow: p.Follow}
	if p.Snapshot != "" {
		offer.Name, offer.Snapshot = p.As, p.Snapshot
	}
	err = persist(ctx, p.Follow, p.Note, func() error {
		conn, err := x.dial(ctx, to, peer.Reverse)
		if err != nil {
			return err
		}
		conn.Bound(rate)
		err = x.server.Push(ctx, conn, offer, func(r transfer.Report) { p.Progress(r.Done, r.Total) })
		_, sent := conn.Traffic()
		out.Wire += sent
		return err
	})
	return out, err
}

// reportStep is how often a pusher is told how far it has come.
const reportStep = 500 * time.Millisecond

// receivePush pulls what a peer offers over a connection that it made.
func (x *Exchange) receivePush(ctx context.Context, conn *peer.Conn) {
	defer x.Metrics.Running("pulls")()
	c := transfer.NewClient(conn)
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	o, err := c.Offer(ctx)
	if err != nil {
		x.Log.Warn("a push that offers nothing", "peer", conn.Peer.Name, "err", err)
		return
	}
	err = x.acceptOffer(ctx, c, o)
	last := transfer.Report{State: transfer.Done}
	if err != nil {
		last = transfer.Report{State: transfer.Failed, Message: tellable(err)}
	}
	x.Log.Info("a push has ended", "peer", conn.Peer.Name, "image", o.Image.String(), "err", err)
	if err := c.Report(ctx, last); err != nil {
		x.Log.Info("the pusher was not told", "peer", conn.Peer.Name, "err", err)
	}
}

const notHolder = "it does not hold the lease of that image any more: sealdisk lease show there says who does"

// tellable is what of an error concerns a peer.
func tellable(err error) string {
	for _, known := range []struct {
		is   error
		text string
	}{
		{errNotBring, "it may not bring that image"},
		{errNotHolder, notHolder},
		{lease.ErrSuperseded, notHolder},
		{transfer.ErrRefused, "refused: a quota, or a role"},
		{transfer.ErrProtocol, "what came is not what the image names"},
		{transfer.ErrAbsent, "an object did not come"},
		{blockstore.ErrNoSpace, "no space left"},
		{blockstore.ErrFormat, "a format that is not known there"},
		{image.ErrRolledBack, "older than what has been seen there"},
		{image.ErrFork, "another history than the one that is there"},
		{image.ErrNoSnapshot, "there is no such snapshot"},
		{crypto.ErrNoIdentity, "that host has no keys of the image"},
		{image.ErrExists, "another image has the name"},
		{image.ErrInUse, "that host writes the image, or it is busy"},
	} {
		if errors.Is(err, known.is) {
			return known.text
		}
	}
	return "internal error; the log there has more"
}

func (x *Exchange) acceptOffer(ctx context.Context, c *transfer.Client, o *transfer.Offer) error {
	reports := make(chan transfer.Report, 1)
	defer close(reports)
	go func() {
		for r := range reports {
			if err := c.Report(ctx, r); err != nil {
				x.Log.Debug("report", "err", err)
			}
		}
	}()
	var next time.Time
	progress := func(done, total int64) {
		if now := time.Now(); now.After(next) {
			next = now.Add(reportStep)
			select {
			case reports <- transfer.Report{State: transfer.Running, Done: done, Total: total}:
			default: // the one before is still on its way
			}
		}
	}
	if o.Handover && o.Check {
		return x.checkHandover(ctx, c, o)
	}
	if o.Handover {
		return x.receiveHandover(ctx, c, o, progress)
	}
	for {
		j, err := x.offered(c, o)
		if err != nil {
			return err
		}
		j.progress = progress
		if o.Snapshot != "" {
			_, err := j.clone(ctx, o.Snapshot)
			return err
		}
		got, err := j.run(ctx)
		if err != nil || !o.Follow {
			return err
		}
		if err := j.wait(ctx, got.Image); err != nil {
			return err
		}
		select { // a peer must not keep this host busy with nothing
		case <-time.After(reportStep):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// offered makes a job of an offer, if the peer may bring the image now.
func (x *Exchange) offered(c *transfer.Client, o *transfer.Offer) (*job, error) {
	from, err := x.Book.Pinned(c.Conn.Peer.Key)
	if err != nil {
		return nil, err
	}
	e, err := x.Names.Lookup(o.Image.String())
	if err != nil || o.Snapshot != "" { // else it may have another name here
		e.Image, e.Name = o.Image, o.Name
	}
	may := rank(role(from, e))
	if o.Snapshot != "" { // becomes an image of another id
		may = min(may, rank(from.Role("", o.Name)))
	}
	if may < rank(peer.Replica) {
		return nil, fmt.Errorf("peer %s, %s: %w", from.Name, e.Name, errNotBring)
	}
	return &job{x: x, clients: []*transfer.Client{c}, remote: o.Image.String(), name: e.Name, image: o.Image, keys: keysIfAllowed, from: &from}, nil
}

// wait returns when the peer has another head than is here.
func (j *job) wait(ctx context.Context, id blockstore.ImageID) error {
	return j.until(ctx, id, func(head blockstore.CommitID) (bool, error) { return j.clients[0].After(ctx, id, head) })
}

// news does as well, and gives it; most of what is new in it is here then.
func (j *job) news(ctx context.Context, id blockstore.ImageID) (d *transfer.Description, err error) {
	err = j.until(ctx, id, func(head blockstore.CommitID) (bool, error) {
		var err error
		d, err = j.x.receiver(j.from).News(ctx, j.clients[0], id, head)
		return d != nil, err
	})
	return d, err
}

func (j *job) until(ctx context.Context, id blockstore.ImageID, changed func(head blockstore.CommitID) (bool, error)) error {
	for {
		head, _, err := j.x.Store.Head(id)
		if err != nil {
			return err
		}
		began := time.Now()
		if changed, err := changed(head); err != nil || changed {
			return err
		}
		if time.Since(began) < reportStep { // it does not wait: neither do we ask at once
			select {
			case <-time.After(reportStep):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}
