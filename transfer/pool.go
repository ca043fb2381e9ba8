package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/sealdisk/sealdisk/blockstore"
)

// requestsAhead is how many requests are under way with each peer: enough that the link
// does not wait for a round trip.
const requestsAhead = 4

// maxAttempts is how often each peer is asked for an object that it lacks or sends wrong.
const maxAttempts = 3

// ErrNoSource: there is no peer left to ask.
var ErrNoSource = errors.New("no peer is left that could be asked")

// pool spreads requests for objects over peers. An object that one lacks, or sends
// wrong, is asked of another; a peer whose connection fails is asked no more.
type pool struct {
	image blockstore.ImageID
	log   *slog.Logger

	mu      sync.Mutex
	free    map[*Client]int // requests that may be made, of each peer that may be asked
	last    error           // why the last one is gone
	changed chan struct{}   // closed and replaced when free changes
}

func newPool(image blockstore.ImageID, clients []*Client, log *slog.Logger) *pool {
	p := &pool{image: image, log: log, free: map[*Client]int{}, changed: make(chan struct{})}
	for _, c := range clients {
		p.free[c] = requestsAhead
	}
	return p
}

func (p *pool) wakeLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// lose takes a client out.
func (p *pool) lose(c *Client, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.free[c]; !ok {
		return
	}
	delete(p.free, c)
	p.last = why
	p.log.Warn("a peer is asked no more", "peer", c.Conn.Peer.Name, "err", why)
	p.wakeLocked()
}

// done gives a turn back.
func (p *pool) done(c *Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.free[c]; ok {
		p.free[c]++
		p.wakeLocked()
	}
}

// turn waits for the peer that has failed least in what is wanted; nil: each has failed
// too often.
func (p *pool) turn(ctx context.Context, failed map[*Client]int) (*Client, error) {
	for {
		p.mu.Lock()
		if len(p.free) == 0 {
			defer p.mu.Unlock()
			return nil, errors.Join(ErrNoSource, p.last)
		}
		least := maxAttempts
		for c := range p.free {
			least = min(least, failed[c])
		}
		for c, n := range p.free {
			if n > 0 && failed[c] == least && least < maxAttempts {
				p.free[c]--
				p.mu.Unlock()
				return c, nil
			}
		}
		changed := p.changed
		p.mu.Unlock()
		if least == maxAttempts {
			return nil, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fetch asks for objects, at most maxRequestIDs, and gives each to take once its digest
// was compared; take checks the rest, and an [ErrProtocol] of it is a reason to ask again.
// Take is called from one goroutine at a time.
func (p *pool) fetch(ctx context.Context, refs []blockstore.SmallRef, buffer func(n int) []byte, take func(ref blockstore.SmallRef, b []byte) error) error {
	failed := map[*Client]int{} // in the first of refs
	var last error
	for len(refs) > 0 {
		c, err := p.turn(ctx, failed)
		if err != nil {
			return err
		}
		if c == nil {
			return last
		}
		got, local, err := p.ask(ctx, c, refs, buffer, take)
		refs = refs[got:]
		if got > 0 {
			clear(failed)
		}
		switch {
		case local != nil:
			return local
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrAbsent), errors.Is(err, ErrProtocol):
			p.log.Warn("an object is asked for again", "err", err)
			failed[c]++
			last = err
		default: // the connection, or the peer refuses
			p.lose(c, err)
		}
	}
	return nil
}

// ask makes one request of a peer and tells how many objects came of it, what went wrong
// here, and what there.
func (p *pool) ask(ctx context.Context, c *Client, refs []blockstore.SmallRef, buffer func(n int) []byte, take func(ref blockstore.SmallRef, b []byte) error) (got int, local, err error) {
	defer p.done(c)
	err = c.Objects(ctx, p.image, refs, buffer, func(i int, b []byte) error {
		if blockstore.IDOf(b) != refs[i].ID {
			return fmt.Errorf("peer %s: object %v: digest differs: %w", c.Conn.Peer.Name, refs[i].ID, ErrProtocol)
		}
		if err := take(refs[i], b); err != nil {
			if !errors.Is(err, ErrProtocol) {
				local = err
			}
			return fmt.Errorf("peer %s: object %v: %w", c.Conn.Peer.Name, refs[i].ID, err)
		}
		got = i + 1
		return nil
	})
	return got, local, err
}
