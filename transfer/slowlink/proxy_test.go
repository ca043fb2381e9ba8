package slowlink_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/transfer/slowlink"
)

// TestProxy: an echo comes back whole, and not before both ways were taken.
func TestProxy(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	echo := listen(t)
	go func() {
		c, err := echo.Accept()
		if err != nil {
			return // the test is over
		}
		_, _ = io.Copy(c, c) // the other side looks at what comes
		_ = c.Close()
	}()
	l := listen(t)
	done := make(chan error, 1)
	const delay = 50 * time.Millisecond
	go func() { done <- slowlink.Proxy(ctx, l, echo.Addr().String(), delay) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("sealdisk"), 100_000)
	began := time.Now()
	go func() {
		_, _ = c.Write(sent) // likewise
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if took := time.Since(began); err != nil || !bytes.Equal(got, sent) || took < 2*delay {
		t.Errorf("%d bytes of %d after %v, %v", len(got), len(sent), took, err)
	}
	_ = c.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = echo.Close()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
