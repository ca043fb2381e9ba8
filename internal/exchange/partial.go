package exchange

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// LabelSources lists the fingerprints of the peers that an image which is not whole comes
// from, separated by spaces; an image without it is whole.
const LabelSources = "local.sources"

// ErrNoSource: what is missing of an image did not come in time.
var ErrNoSource = fmt.Errorf("no source has sent it: %w", tree.ErrMissing)

// A partial is an image that is not whole here. What somebody waits for is asked for over a
// connection of its own, so that it does not stand behind what fills the image.
type partial struct {
	x        *Exchange
	id       blockstore.ImageID
	life     context.Context // ends with the exchange, or when the image is whole or removed
	end      context.CancelFunc
	done     chan struct{} // closed when the image is whole or life has ended, and nothing runs
	fill     atomic.Bool   // it is to be filled
	prefetch atomic.Bool

	mu         sync.Mutex // guards what follows
	sources    []peer.Fingerprint
	wants      map[blockstore.ObjectID]*want
	client     *transfer.Client // for what somebody waits for; nil: to be dialled
	next       int              // source that is dialled next
	dialling   chan struct{}    // held by who dials
	idle       chan struct{}    // closed while nobody waits
	waiters    int
	got, total int64 // bytes, of the fill that runs
	waited     time.Duration
}

// want is an object that somebody waits for.
type want struct {
	done    chan struct{}
	err     error
	life    context.Context // ends when nobody waits
	end     context.CancelFunc
	waiters int // guarded by partial.mu
}

// begin makes an image known as partial.
func (x *Exchange) begin(e record.Entry) *partial {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.partials[e.Image]; p != nil {
		p.setSources(e.Labels[LabelSources])
		return p
	}
	p := &partial{x: x, id: e.Image, done: make(chan struct{}), wants: map[blockstore.ObjectID]*want{}, idle: make(chan struct{}), dialling: make(chan struct{}, 1)}
	close(p.idle)
	p.prefetch.Store(true)
	p.life, p.end = context.WithCancel(x.life)
	p.setSources(e.Labels[LabelSources])
	x.partials[e.Image] = p
	return p
}

func (p *partial) setSources(label string) {
	var list []peer.Fingerprint
	for _, s := range strings.Fields(label) {
		if key, err := peer.ParseFingerprint(s); err == nil {
			list = append(list, key)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sources = list
}

func (x *Exchange) partial(id blockstore.ImageID) *partial {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.partials[id]
}

// Partial tells whether an image is not whole here.
func (x *Exchange) Partial(id blockstore.ImageID) bool { return x.partial(id) != nil }

// Fetch is a tree.Fetch: it brings an object that a reader waits for.
func (x *Exchange) Fetch(ctx context.Context, id blockstore.ImageID, ref blockstore.SmallRef) error {
	p := x.partial(id)
	if p == nil {
		return fmt.Errorf("object %v: %w", ref.ID, blockstore.ErrNotFound)
	}
	defer x.Metrics.Running("waiting readers")()
	w := p.want(ref)
	began := time.Now()
	defer p.leave(w, began)
	timer := time.NewTimer(x.SourceTimeout)
	defer timer.Stop()
	select {
	case <-w.done:
		return w.err
	case <-timer.C:
		return fmt.Errorf("object %v: %w", ref.ID, ErrNoSource)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// want joins those who wait for an object, or is the first; leave must follow.
func (p *partial) want(ref blockstore.SmallRef) *want {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiters++; p.waiters == 1 {
		p.idle = make(chan struct{})
	}
	w := p.wants[ref.ID]
	if w == nil || w.life.Err() != nil { // those who waited for it have left
		w = &want{done: make(chan struct{})}
		w.life, w.end = context.WithCancel(p.life)
		p.wants[ref.ID] = w
		p.x.running.Go(func() { p.bring(ref, w) })
	}
	w.waiters++
	return w
}

// leave ends a wait; what nobody waits for any more is not asked for again.
func (p *partial) leave(w *want, began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.waiters--; w.waiters == 0 {
		w.end()
	}
	took := time.Since(began)
	p.waited += took
	p.x.Metrics.Waited(took)
	if p.waiters--; p.waiters == 0 {
		close(p.idle)
	}
}

// gate lets what fills the image wait while somebody waits for data, or the image is about to
// be handed over: a guest stands still then.
func (p *partial) gate(ctx context.Context) error {
	if in := p.x.coming(p.id); in != nil {
		select {
		case <-in.taken:
		case <-in.client.Conn.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for {
		p.mu.Lock()
		idle := p.idle
		p.mu.Unlock()
		select {
		case <-idle:
			return nil
		case <-time.After(gatePatience): // the source may be slow, or gone
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const (
	gatePatience = 2 * time.Second
	retryLeast   = 200 * time.Millisecond // between two tries to reach a source
	retryMost    = 5 * time.Second
	badTries     = 3 // of an object that a source lacks or sends wrong, for each source
)

// bring fetches one object, for as long as somebody waits for it.
func (p *partial) bring(ref blockstore.SmallRef, w *want) {
	err := p.insist(w.life, ref)
	p.mu.Lock()
	defer p.mu.Unlock()
	w.end()
	w.err = err
	if p.wants[ref.ID] == w {
		delete(p.wants, ref.ID)
	}
	close(w.done)
}

func (p *partial) insist(ctx context.Context, ref blockstore.SmallRef) error {
	bad, pause := 0, retryLeast
	for {
		c, err := p.ask(ctx, ref)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("object %v: %w", ref.ID, ErrNoSource)
		case errors.Is(err, blockstore.ErrNoSpace), errors.Is(err, blockstore.ErrFailed):
			return err
		case errors.Is(err, transfer.ErrAbsent), errors.Is(err, transfer.ErrProtocol):
			p.x.Log.Warn("an object that a reader waits for", "image", p.id.String(), "err", err)
			if bad++; bad >= badTries*p.count() {
				return fmt.Errorf("%w: %w", ErrNoSource, err)
			}
		default:
			p.x.Log.Info("a source is asked again later", "image", p.id.String(), "err", err)
		}
		p.drop(c)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("object %v: %w", ref.ID, ErrNoSource)
		}
		pause = min(2*pause, retryMost)
	}
}

func (p *partial) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(1, len(p.sources))
}

// ask asks one source for an object and stores it; it gives whom it asked.
func (p *partial) ask(ctx context.Context, ref blockstore.SmallRef) (*transfer.Client, error) {
	if here, err := p.x.Store.Has(ref.ID); here || err != nil {
		return nil, err // it came with what fills the image
	}
	c, err := p.demands(ctx)
	if err != nil {
		return nil, err
	}
	return c, c.Objects(ctx, p.id, []blockstore.SmallRef{ref}, nil, func(_ int, b []byte) error {
		if blockstore.IDOf(b) != ref.ID {
			return fmt.Errorf("object %v: digest differs: %w", ref.ID, transfer.ErrProtocol)
		}
		return p.x.Store.PutObjects(ctx, []blockstore.Object{{ID: ref.ID, Bytes: b}})
	})
}

// demands gives the connection for what somebody waits for, and makes it if there is none.
func (p *partial) demands(ctx context.Context) (*transfer.Client, error) {
	select { // one dials, the others wait for that
	case p.dialling <- struct{}{}:
		defer func() { <-p.dialling }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	c := p.client
	var key peer.Fingerprint
	if len(p.sources) > 0 {
		key = p.sources[p.next%len(p.sources)]
	}
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	at, err := p.x.Book.Pinned(key)
	var conn *peer.Conn
	if err == nil {
		conn, err = p.x.dial(ctx, at, peer.Forward)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.next++
		return nil, err
	}
	p.client = transfer.NewClient(conn)
	return p.client, nil
}

// adopt takes a connection to the first source for what somebody waits for, if there is none.
func (p *partial) adopt(c *transfer.Client) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil || p.life.Err() != nil || len(p.sources) == 0 || p.sources[0] != c.Conn.Peer.Key || !p.fill.Load() {
		return false
	}
	p.client = c
	return true
}

// drop closes a connection that is of no use: the next source is dialled.
func (p *partial) drop(c *transfer.Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c == nil || p.client != c {
		return
	}
	_ = c.Close() // broken already, or it will be
	p.client = nil
	p.next++
}

// hangUp closes the connection at the end.
func (p *partial) hangUp() {
	p.mu.Lock()
	c := p.client
	p.mu.Unlock()
	p.drop(c)
}
