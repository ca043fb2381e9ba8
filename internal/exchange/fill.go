package exchange

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// start fills the image in the background.
func (p *partial) start() {
	if p.fill.Swap(true) {
		return
	}
	p.x.running.Add(1)
	go func() {
		defer p.x.running.Done()
		defer p.x.Metrics.Running("fills")()
		p.run()
	}()
}

// run fills until the image is whole, through all that may come in between.
func (p *partial) run() {
	defer close(p.done)
	defer p.hangUp()
	pause := retryLeast
	for p.life.Err() == nil {
		whole, err := p.pass(p.life)
		if whole {
			return
		}
		if err == nil {
			pause = retryLeast
			continue
		}
		p.x.Log.Info("filling an image goes on later", "image", p.id.String(), "err", err)
		select {
		case <-time.After(pause):
		case <-p.life.Done():
		}
		pause = min(2*pause, retryMost)
	}
}

// pass brings what is missing of the head that the image has now.
func (p *partial) pass(ctx context.Context) (whole bool, err error) {
	if err := p.x.Growing.Acquire(ctx, 1); err != nil {
		return false, err
	}
	defer p.x.Growing.Release(1)
	defer p.x.Shared.Guard(p.id)() // writers keep what is being filled
	clients := p.dialAll(ctx)
	defer func() {
		for _, c := range clients {
			_ = c.Close() // nothing is under way any more
		}
	}()
	if err := p.follow(ctx, clients); err != nil {
		return false, err
	}
	o := transfer.FillOptions{Gate: p.gate, Progress: func(done, total int64) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.got, p.total = done, total
	}}
	if p.prefetch.Load() {
		o.First = p.startup
	}
	got, err := p.x.receiver(nil).Fill(ctx, p.id, clients, o)
	if err != nil {
		return false, err
	}
	if whole, err = p.finish(ctx, got); !whole || err != nil {
		return false, err
	}
	for _, c := range clients {
		if err := c.Done(p.x.life, p.id); err != nil { // p's own has ended
			p.x.Log.Info("a source keeps what it need not", "peer", c.Conn.Peer.Name, "err", err)
		}
	}
	return true, nil
}

// finish makes the image known as whole, if it is so with the head that was filled: if no
// other head has come from a peer since. What this host wrote itself is here.
func (p *partial) finish(ctx context.Context, filled transfer.Received) (bool, error) {
	leave, err := p.x.Enter(ctx, p.id)
	if err != nil {
		return false, err
	}
	defer leave()
	head, _, err := p.x.Store.Head(p.id)
	if err != nil {
		return false, err
	}
	if head != filled.Head {
		ours, err := p.wroteSince(filled)
		if err != nil || !ours {
			return false, err
		}
	}
	e, err := p.x.Names.Lookup(p.id.String())
	if err != nil {
		return false, err
	}
	labels := maps.Clone(e.Labels)
	delete(labels, LabelSources)
	if err := p.x.Names.Relabel(ctx, p.id, labels); err != nil {
		return false, err
	}
	p.x.Log.Info("an image is whole", "image", e.Name)
	p.x.Forget(p.id) // before anybody else brings a head that is not
	return true, nil
}

// wroteSince tells whether all that follows a head was written by this host, which holds
// the lease: the head is the last one of the term before, or of the present term.
func (p *partial) wroteSince(filled transfer.Received) (bool, error) {
	chain, err := lease.Load(p.x.Store, p.id)
	if err != nil {
		return false, err
	}
	newest := chain.Newest()
	if newest.Holder != p.x.Key.Public() {
		return false, nil
	}
	if newest.LastCommit != nil && *newest.LastCommit == filled.Head {
		return true, nil
	}
	return filled.Position.Era == newest.Era && filled.Position.Term == newest.Term, nil
}

// dialAll connects to all sources that can be reached.
func (p *partial) dialAll(ctx context.Context) (clients []*transfer.Client) {
	p.mu.Lock()
	sources := p.sources
	p.mu.Unlock()
	for _, key := range sources {
		at, err := p.x.Book.Pinned(key)
		if err == nil {
			var conn *peer.Conn
			if conn, err = p.x.dial(ctx, at, peer.Forward); err == nil {
				clients = append(clients, transfer.NewClient(conn))
				continue
			}
		}
		p.x.Log.Info("a source is not there", "image", p.id.String(), "source", key.String(), "err", err)
	}
	return clients
}

// follow pins the image at its sources, and goes over to the newest head that one of them
// has: what only an older one has may be gone there. One that does not answer is passed over.
func (p *partial) follow(ctx context.Context, clients []*transfer.Client) error {
	last := error(transfer.ErrNoSource)
	answered := false
	for _, c := range clients {
		d, err := c.Describe(ctx, p.id.String(), blockstore.CommitID{})
		if err == nil {
			err = p.goOver(ctx, d, clients)
		}
		if err != nil {
			p.x.Log.Info("a source does not describe the image", "peer", c.Conn.Peer.Name, "err", err)
			last = err
			continue
		}
		answered = true
	}
	if !answered {
		return last
	}
	return nil
}

// goOver makes a newer head the image's.
func (p *partial) goOver(ctx context.Context, d *transfer.Description, clients []*transfer.Client) error {
	leave, err := p.x.Enter(ctx, p.id)
	if err != nil {
		return err
	}
	defer leave()
	head, raw, err := p.x.Store.Head(p.id)
	if err != nil || blockstore.CommitIDOf(d.Head) == head {
		return err
	}
	ours, err := blockstore.ParseCommit(raw)
	if err != nil {
		return err
	}
	theirs, err := blockstore.ParseCommit(d.Head)
	if err != nil {
		return err
	}
	if theirs.Position().Compare(ours.Position()) < 0 {
		return nil // this host, or another, has written since
	}
	if err := p.x.settleLost(ctx, d); err != nil {
		return err
	}
	if _, err := p.x.receiver(nil).Begin(ctx, d, clients, transfer.ReceiveOptions{Image: p.id, Install: p.x.unwritten(ctx, d, nil)}); err != nil {
		return err
	}
	return p.x.arrived(ctx, p.id)
}

// startup brings what a guest needs first, in the order in which it did: the leaves
// together, then the segments. Without it everything comes in the order of the map.
func (p *partial) startup(ctx context.Context, bring func(context.Context, []blockstore.SmallRef) error) error {
	leaves, err := p.x.Shared.StartupLeaves(ctx, p.id)
	if err != nil {
		p.x.Log.Info("no start-up list", "image", p.id.String(), "err", err)
		return ctx.Err()
	}
	if err := bring(ctx, leaves); err != nil {
		return err
	}
	segments, err := p.x.Shared.StartupSegments(ctx, p.id)
	if err != nil {
		p.x.Log.Info("no start-up list", "image", p.id.String(), "err", err)
		return ctx.Err()
	}
	return bring(ctx, segments)
}

// Forget ends what is done for an image that was not whole.
func (x *Exchange) Forget(id blockstore.ImageID) {
	x.mu.Lock()
	p := x.partials[id]
	delete(x.partials, id)
	x.mu.Unlock()
	if p != nil {
		p.end()
	}
}

// Resume makes the images known that are not whole, and with fill goes on filling them.
func (x *Exchange) Resume(fill bool) {
	for _, e := range x.Names.All() {
		if e.Labels[LabelSources] == "" {
			continue
		}
		p := x.begin(e)
		if fill {
			p.start()
		}
	}
}

// Fill fills an image, in the background or, with wait, until it is whole. One that is whole
// already is left alone.
func (x *Exchange) Fill(ctx context.Context, id blockstore.ImageID, wait bool, progress func(done, total int64)) error {
	p := x.partial(id)
	if p == nil {
		return nil
	}
	p.start()
	if !wait {
		return nil
	}
	tick := time.NewTicker(reportStep)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			if x.Partial(id) {
				return fmt.Errorf("filling has ended: %w", context.Canceled)
			}
			return nil
		case <-tick.C:
			s := p.status()
			progress(s.Done, s.Total)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Status says how far an image that is not whole has come.
type Status struct {
	Done, Total int64         // sealed bytes that were missing when this fill began, and have come; 0, 0: not known yet
	Sources     []string      // names, or fingerprints, of the peers
	Waited      time.Duration // that readers waited for data, in all
}

// Status of an image; false if it is whole.
func (x *Exchange) Status(id blockstore.ImageID) (Status, bool) {
	p := x.partial(id)
	if p == nil {
		return Status{}, false
	}
	return p.status(), true
}

func (p *partial) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{Done: p.got, Total: p.total, Waited: p.waited}
	for _, key := range p.sources {
		name := key.String()
		if at, err := p.x.Book.Pinned(key); err == nil {
			name = at.Name
		}
		s.Sources = append(s.Sources, name)
	}
	return s
}
