package peer

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Deadlines of a connection. Either side asks for a sign of life sooner than that.
const (
	readTimeout  = 60 * time.Second
	writeTimeout = 30 * time.Second
)

// Rate bounds how fast bytes go. It may be changed while it is used, and be shared by
// connections. nil is no bound.
type Rate struct {
	limiter *rate.Limiter
	mu      sync.Mutex
	changed chan struct{} // closed and replaced by Set; guarded by mu
}

// burst is what may go at once, in bytes, and the largest piece that is waited for.
const burst = 256 << 10

// NewRate allows so many bytes per second; 0 is no bound.
func NewRate(perSecond int64) *Rate {
	r := &Rate{limiter: rate.NewLimiter(rate.Inf, burst), changed: make(chan struct{})}
	r.Set(perSecond)
	return r
}

// Set changes the bound, also for who waits.
func (r *Rate) Set(perSecond int64) {
	limit := rate.Inf
	if perSecond > 0 {
		limit = rate.Limit(perSecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limiter.SetLimit(limit)
	close(r.changed)
	r.changed = make(chan struct{})
}

// wait returns when n bytes, at most burst, may go.
func (r *Rate) wait(ctx context.Context, n int) error {
	if r == nil {
		return nil
	}
	for {
		r.mu.Lock()
		reserved, changed := r.limiter.ReserveN(time.Now(), n), r.changed
		r.mu.Unlock()
		delay := reserved.Delay()
		if delay == 0 {
			return nil
		}
		over := time.NewTimer(delay)
		select {
		case <-over.C:
			return nil
		case <-changed:
			over.Stop()
			reserved.Cancel()
		case <-ctx.Done():
			over.Stop()
			reserved.Cancel()
			return ctx.Err()
		}
	}
}

// prompt keeps the kernel from taking much more than the network carries: what it has taken goes
// before what becomes urgent, and who sends believes that it has gone. It is for the better only.
func prompt(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, burst) })
		}
	}
}

// Conn is an authenticated connection with a peer. Every read and write has a deadline.
type Conn struct {
	net.Conn
	Peer     Peer
	Public   [32]byte // the peer's host key
	Protocol string   // Forward, Reverse or Tunnel
	rates    []*Rate
	meter    func(in, out int)
	closed   context.Context
	close    context.CancelFunc
	once     sync.Once
	in, out  atomic.Int64
}

func newConn(c *tls.Conn, p Peer) *Conn {
	cs := c.ConnectionState()
	out := &Conn{Conn: c, Peer: p, Protocol: cs.NegotiatedProtocol}
	if public, err := publicOf(cs); err == nil { // the handshake has seen to it
		out.Public = public
	}
	out.closed, out.close = context.WithCancel(context.Background())
	return out
}

// Bound adds a bound on the rate. Before the first Read or Write.
func (c *Conn) Bound(r *Rate) {
	if r != nil {
		c.rates = append(c.rates, r)
	}
}

// Meter has each Read and Write told how many bytes came and went. Before the first.
func (c *Conn) Meter(count func(in, out int)) { c.meter = count }

func (c *Conn) count(in, out int) {
	c.in.Add(int64(in))
	c.out.Add(int64(out))
	if c.meter != nil {
		c.meter(in, out)
	}
}

// Traffic tells how many bytes have come and gone.
func (c *Conn) Traffic() (in, out int64) { return c.in.Load(), c.out.Load() }

// Done is closed when the connection is.
func (c *Conn) Done() <-chan struct{} { return c.closed.Done() }

// Close implements net.Conn.
func (c *Conn) Close() error {
	var err error
	c.once.Do(func() {
		c.close()
		err = c.Conn.Close()
	})
	return err
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p[:min(len(p), burst)])
	c.count(n, 0)
	if werr := c.wait(n); err == nil {
		err = werr
	}
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (sent int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), burst)]
		if err := c.wait(len(piece)); err != nil {
			return sent, err
		}
		if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return sent, err
		}
		n, err := c.Conn.Write(piece)
		c.count(0, n)
		sent += n
		if err != nil {
			return sent, err
		}
		p = p[n:]
	}
	return sent, nil
}

func (c *Conn) wait(n int) error {
	if n == 0 {
		return nil
	}
	for _, r := range c.rates {
		if err := r.wait(c.closed, n); err != nil {
			return net.ErrClosed
		}
	}
	return nil
}
