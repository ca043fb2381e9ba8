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

// maxAttempts is how often an object is asked for that came wrong or did not come.
const maxAttempts = 3

// ErrNoSource: there is no peer left to ask.
var ErrNoSource = errors.New("no peer is left that could be asked")

// pool spreads requests for objects over peers. An object that one lacks, or sends
// wrong, is asked of another; a peer whose connection fails is asked no more.
type pool struct {
	image blockstore.ImageID
	log   *slog.Logger
	turns chan *Client // each client as often as it may be asked at a time

	mu    sync.Mutex
	alive map[*Client]bool
	last  error // why the last one is gone
	gone  chan struct{}
}

func newPool(image blockstore.ImageID, clients []*Client, log *slog.Logger) *pool {
	p := &pool{image: image, log: log, turns: make(chan *Client, requestsAhead*len(clients)), alive: map[*Client]bool{}, gone: make(chan struct{})}
	for range requestsAhead {
		for _, c := range clients {
			p.alive[c] = true
			p.turns <- c
		}
	}
	if len(clients) == 0 {
		close(p.gone)
	}
	return p
}

// lose takes a client out.
func (p *pool) lose(c *Client, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.alive[c] {
		return
	}
	delete(p.alive, c)
	p.last = why
	p.log.Warn("a peer is asked no more", "peer", c.Conn.Peer.Name, "err", why)
	if len(p.alive) == 0 {
		close(p.gone)
	}
}

// count is how many peers can be asked.
func (p *pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.alive)
}

func (p *pool) isAlive(c *Client) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive[c]
}

// turn waits for a peer that may be asked.
func (p *pool) turn(ctx context.Context) (*Client, error) {
	for {
		select {
		case c := <-p.turns:
			if p.isAlive(c) {
				return c, nil
			}
		case <-p.gone:
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.last != nil {
				return nil, fmt.Errorf("%w: %w", ErrNoSource, p.last)
			}
			return nil, ErrNoSource
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fetch asks for objects, at most maxRequestIDs, and gives each to take once its digest
// was compared; take checks the rest, and an [ErrProtocol] of it is a reason to ask again.
// Take is called from one goroutine at a time.
func (p *pool) fetch(ctx context.Context, refs []blockstore.SmallRef, buffer func(n int) []byte, take func(ref blockstore.SmallRef, b []byte) error) error {
	for attempt := 0; len(refs) > 0; {
		c, err := p.turn(ctx)
		if err != nil {
			return err
		}
		got := 0
		var local error // of take: no peer is to blame
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
		p.turns <- c
		refs = refs[got:]
		switch {
		case local != nil:
			return local
		case err == nil:
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrAbsent), errors.Is(err, ErrProtocol):
			p.log.Warn("an object is asked for again", "err", err)
			if got > 0 {
				attempt = 0
			}
			if attempt++; attempt >= maxAttempts*p.count() {
				return err
			}
		default: // the connection, or the peer refuses
			p.lose(c, err)
		}
	}
	return nil
}
