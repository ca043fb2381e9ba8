package transfer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// game is some hosts that want to write one image, and what must be in it.
type game struct {
	t       *testing.T
	rng     *rand.Rand
	id      blockstore.ImageID
	players []*player
	last    uint64
	latest  [8]uint64          // of each sector, what was written last
	maybe   [8]map[uint64]bool // and what may be there in its place, since a process ended
	crashed bool               // who wrote last, since its last flush
	events  []string
}

// player is a host; its disk may be given away while it is open.
type player struct {
	*host
	name string
	mu   sync.Mutex
	disk *image.Disk
}

// TestOneWriter: whatever order hosts ask in, whichever answers are lost and processes end, there
// is never a second writer, nothing that was acknowledged is missing, and in the end one can write.
func TestOneWriter(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newGame(t, seed).play(60)
		})
	}
}

func newGame(t *testing.T, seed uint64) *game {
	g := &game{t: t, rng: rand.New(rand.NewPCG(seed, 1))}
	for _, name := range []string{"a", "b", "c"} {
		p := &player{host: newHost(t, 0), name: name}
		p.grant = p.give
		g.players = append(g.players, p)
	}
	var recipients []string
	for _, p := range g.players[1:] {
		recipients = append(recipients, p.recipient)
	}
	for _, p := range g.players {
		for _, q := range g.players {
			if p != q {
				check(t, p.book.Add(q.as(q.name)))
			}
		}
	}
	g.id = g.players[0].create(1<<20, recipients...)
	for _, p := range g.players[1:] {
		_, err := p.pull(g.id, p.ask(g.players[0].as("a")))
		check(t, err)
	}
	g.players[0].write(g.id, func(d *image.Disk) {
		_, err := d.WriteAt(context.Background(), make([]byte, 8*4096), 0)
		check(t, err)
	})
	for i := range g.maybe {
		g.maybe[i] = map[uint64]bool{}
	}
	return g
}

// give is what the host's daemon does when it is asked for the lease.
func (p *player) give(ctx context.Context, id blockstore.ImageID, to [32]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disk != nil && !p.disk.ReadOnly() {
		return p.disk.Yield(ctx, to)
	}
	err := p.live.Load().Grant(ctx, id, to)
	if errors.Is(err, image.ErrNotHolder) {
		return fmt.Errorf("%w: %w", transfer.ErrRefused, err)
	}
	return err
}

func (g *game) play(steps int) {
	for range steps {
		p := g.players[g.rng.IntN(len(g.players))]
		switch n := g.rng.IntN(10); {
		case n < 4:
			g.acquire(p, g.rng.IntN(2) == 0)
		case n < 7:
			g.write(p)
		case n < 8:
			g.flush(p)
		case n < 9:
			g.shut(p)
		default:
			g.crash(p)
		}
		g.one()
	}
	g.end()
}

// one checks that at most one host may write.
func (g *game) one() {
	g.t.Helper()
	var writers []string
	for _, p := range g.players {
		p.mu.Lock()
		if p.disk != nil && !p.disk.ReadOnly() {
			writers = append(writers, p.name)
		}
		p.mu.Unlock()
	}
	if len(writers) > 1 {
		g.t.Fatalf("writers: %v after %v", writers, g.events)
	}
}

func (g *game) note(format string, args ...any) {
	g.events = append(g.events, fmt.Sprintf(format, args...))
}

// acquire opens the image for writing at a host, which asks who it believes to be the holder.
func (g *game) acquire(p *player, faulty bool) bool {
	ctx := context.Background()
	if !g.open(p) {
		return true
	}
	chain, err := lease.Load(p.store, g.id)
	check(g.t, err)
	i := slices.IndexFunc(g.players, func(q *player) bool { return q.key.Public() == chain.Newest().Holder })
	q := g.players[i]
	if q != p {
		if faulty {
			q.cut.Store(1500 + g.rng.Int64N(6000)) // the handshake is about 1,500 bytes
		}
		err := p.take(ctx, q, g.id)
		q.cut.Store(0)
		g.note("%s takes it from %s (%v): %v", p.name, q.name, faulty, err)
		if err != nil {
			return false
		}
	}
	p.mu.Lock()
	err = p.disk.Promote(ctx)
	p.mu.Unlock()
	g.note("%s promotes: %v", p.name, err)
	check(g.t, err)
	g.compare(p)
	return true
}

// open opens the image at a host, and tells whether it is read-only.
func (g *game) open(p *player) (readOnly bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disk != nil {
		return p.disk.ReadOnly()
	}
	var err error
	p.disk, err = p.shared.Open(context.Background(), g.id, image.OpenOptions{})
	if errors.Is(err, image.ErrNotHolder) {
		p.disk, err = p.shared.Open(context.Background(), g.id, image.OpenOptions{ReadOnly: true})
	}
	check(g.t, err)
	g.note("%s opens, read-only %v", p.name, p.disk.ReadOnly())
	if !p.disk.ReadOnly() {
		g.compareLocked(p)
	}
	return p.disk.ReadOnly()
}

// take asks for the lease and receives what comes with it.
func (p *player) take(ctx context.Context, q *player, id blockstore.ImageID) error {
	conn, err := p.endpoint.Dial(ctx, q.as(q.name), peer.Forward)
	if err != nil {
		return err
	}
	c := transfer.NewClient(conn)
	defer c.Close()
	d, err := c.Lease(ctx, id, transfer.Claim{})
	if err != nil {
		return err
	}
	if _, err := p.receiver().Receive(ctx, d, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id}); err != nil {
		return err
	}
	return p.shared.Advance(ctx, id)
}

func (g *game) compare(p *player) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.compareLocked(p)
}

// compareLocked checks what a host that may write sees, which counts from then on.
func (g *game) compareLocked(p *player) {
	g.t.Helper()
	var b [8]byte
	for i := range g.latest {
		if _, err := p.disk.ReadAt(context.Background(), b[:], int64(i)*4096); err != nil {
			g.t.Fatalf("%s, sector %d: %v after %v", p.name, i, err, g.events)
		}
		v := binary.BigEndian.Uint64(b[:])
		if v != g.latest[i] && !(g.crashed && g.maybe[i][v]) {
			g.t.Fatalf("%s, sector %d: %d, want %d or one of %v after %v", p.name, i, v, g.latest[i], g.maybe[i], g.events)
		}
		g.latest[i] = v
		clear(g.maybe[i])
	}
	g.crashed = false
}

// write writes a sector, if the host may; the lease may be gone at any moment.
func (g *game) write(p *player) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disk == nil || p.disk.ReadOnly() {
		return
	}
	i := g.rng.IntN(len(g.latest))
	g.last++
	_, err := p.disk.WriteAt(context.Background(), binary.BigEndian.AppendUint64(nil, g.last), int64(i)*4096)
	check(g.t, err)
	g.note("%s writes %d into %d", p.name, g.last, i)
	g.maybe[i][g.latest[i]] = true // until it is durable
	g.latest[i] = g.last
}

// flush makes what was written durable: nothing else may be there from then on.
func (g *game) flush(p *player) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disk == nil || p.disk.ReadOnly() {
		return
	}
	check(g.t, p.disk.Flush(context.Background()))
	g.note("%s flushes", p.name)
	for i := range g.maybe {
		clear(g.maybe[i])
	}
}

func (g *game) shut(p *player) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disk == nil {
		return
	}
	check(g.t, p.disk.Close(context.Background()))
	p.disk = nil
	g.note("%s closes", p.name)
}

// crash ends the process of a host, and begins the next.
func (g *game) crash(p *player) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g.crashed = g.crashed || p.disk != nil && !p.disk.ReadOnly()
	p.shared = p.host.crash()
	p.live.Store(p.shared)
	p.disk = nil
	g.note("%s crashes", p.name)
}

// end lets all ask without faults: one of them writes then.
func (g *game) end() {
	for range g.players {
		for _, p := range g.players {
			if g.acquire(p, false) {
				g.write(p)
				g.one()
				for _, q := range g.players {
					g.shut(q)
				}
				p.sound(g.id)
				return
			}
		}
	}
	g.t.Fatalf("nobody can write any more after %v", g.events)
}
