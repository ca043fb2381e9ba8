package transfer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/transfer/peer"
)

// connListener passes connections to an http.Server that others have accepted.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *connListener) pass(c net.Conn) error {
	select {
	case l.conns <- c:
		return nil
	case <-l.done:
		return errors.Join(net.ErrClosed, c.Close())
	}
}

// Accept implements net.Listener.
func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

// maxHandshakes bounds what strangers can make this host do at a time. One more, and the
// oldest is cut off: a peer's takes a round trip, and who holds one up longer is none.
const maxHandshakes = 64

// handshakes are those under way, oldest first.
type handshakes struct {
	mu   sync.Mutex
	list []net.Conn
}

func (h *handshakes) begin(c net.Conn) (cut net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, c)
	if len(h.list) > maxHandshakes {
		cut, h.list = h.list[0], h.list[1:]
	}
	return cut
}

func (h *handshakes) end(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = slices.DeleteFunc(h.list, func(o net.Conn) bool { return o == c })
}

// Listen accepts peers on l until ctx ends, and gives their connections to handle; refused
// is told of others. It returns when all that it began has ended.
func Listen(ctx context.Context, l net.Listener, e *peer.Endpoint, refused func(cause string), log *slog.Logger, handle func(ctx context.Context, c *peer.Conn)) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var under handshakes
	for {
		raw, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			var ne net.Error
			if !errors.As(err, &ne) {
				return err
			}
			log.Warn("accepting a peer", "err", err) // out of descriptors: some will be free
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if cut := under.begin(raw); cut != nil {
			refused("too many handshakes")
			_ = cut.Close() // its own handshake fails
		}
		all.Go(func() {
			c, err := e.Accept(ctx, raw)
			under.end(raw)
			if err != nil {
				refused("handshake")
				log.Info("refused a connection", "from", raw.RemoteAddr().String(), "err", err)
				return
			}
			handle(ctx, c)
		})
	}
}

// acceptPause is how long a host that cannot accept waits.
const acceptPause = 200 * time.Millisecond
