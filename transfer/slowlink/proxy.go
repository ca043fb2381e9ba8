package slowlink

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// Proxy passes what comes to l on to target, and back, each byte after delay. It returns
// when ctx has ended and all connections are closed.
func Proxy(ctx context.Context, l net.Listener, target string, delay time.Duration) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		near, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		all.Go(func() { pass(ctx, near, target, delay) })
	}
}

// pass serves one connection.
func pass(ctx context.Context, near net.Conn, target string, delay time.Duration) {
	far, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		_ = near.Close() // it sees why not
		return
	}
	defer context.AfterFunc(ctx, func() { _ = errors.Join(near.Close(), far.Close()) })()
	var both sync.WaitGroup
	both.Go(func() { delayed(near, far, delay) })
	both.Go(func() { delayed(far, near, delay) })
	both.Wait()
	_ = errors.Join(near.Close(), far.Close()) // either may be closed already
}

// piece is what came at a time.
type piece struct {
	due  time.Time
	data []byte
}

// inFlight bounds the bytes between the ends: a long path at 10 Gbit/s holds fewer.
const inFlight = 64 << 20

// delayed copies from one end to the other.
func delayed(from, to net.Conn, delay time.Duration) {
	const size = 64 << 10
	line := make(chan piece, inFlight/size)
	go func() {
		defer close(line)
		for {
			b := make([]byte, size)
			n, err := from.Read(b)
			if n > 0 {
				line <- piece{time.Now().Add(delay), b[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	failed := false
	for p := range line {
		if failed {
			continue // the reader must not wait for ever
		}
		time.Sleep(time.Until(p.due)) // the delay itself
		if _, err := to.Write(p.data); err != nil {
			failed = true
			_ = from.Close() // ends the reader
		}
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite() // the end travels too
	}
}
