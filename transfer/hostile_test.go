package transfer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// evil answers in place of an honest host, with its key, and lies.
type evil struct {
	h        *host
	describe func(d *transfer.Description)                 // changes what is described
	object   func(id blockstore.ObjectID, b []byte) []byte // and what is sent; nil: absent
	raw      func(w http.ResponseWriter, path string) bool // or answers all by itself
	asked    atomic.Int64                                  // objects
}

// lie gives a client of b that speaks with the liar in place of h.
func (e *evil) lie(t *testing.T, b *host) *transfer.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/", e.serve)
	srv := &http.Server{Handler: mux, Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	one := make(chan net.Conn, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			return // the test is over
		}
		c, err := e.h.endpoint.Accept(context.Background(), raw)
		if err != nil {
			t.Error(err)
			return
		}
		one <- c
		_ = srv.Serve(&oneConn{conns: one}) // ends with the test
	}()
	at := e.h.as("a")
	at.Address = l.Addr().String()
	c := b.ask(at)
	t.Cleanup(func() {
		_ = l.Close()
		_ = srv.Close()
	})
	return c
}

type oneConn struct{ conns chan net.Conn }

func (o *oneConn) Accept() (net.Conn, error) {
	c, ok := <-o.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (o *oneConn) Close() error {
	defer func() { _ = recover() }() // closed twice
	close(o.conns)
	return nil
}
func (o *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func (e *evil) serve(w http.ResponseWriter, r *http.Request) {
	if e.raw != nil && e.raw(w, r.URL.Path) {
		return
	}
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	id, err := blockstore.ParseImageID(part[2])
	if err != nil {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	if len(part) == 3 {
		_, raw, err := e.h.store.Head(id)
		leases, lerr := e.h.store.Leases(id)
		if err != nil || lerr != nil {
			http.Error(w, "no", http.StatusNotFound)
			return
		}
		d := &transfer.Description{Version: transfer.Version, Image: id, Leases: leases, Head: bytes.Clone(raw)}
		if e.describe != nil {
			e.describe(d)
		}
		mode, _ := cbor.CoreDetEncOptions().EncMode() // its options are right
		b, _ := mode.Marshal(d)                       // likewise
		_, _ = w.Write(b)                             // the other side looks at what comes
		return
	}
	ids, _ := io.ReadAll(r.Body)
	for ; len(ids) >= 32; ids = ids[32:] {
		e.asked.Add(1)
		var b []byte
		if part[3] == "commits" {
			b, _ = e.h.store.Commit(id, blockstore.CommitID(ids))
		} else {
			_ = e.h.store.Get(r.Context(), blockstore.ObjectID(ids), func(v []byte) error {
				b = bytes.Clone(v)
				return nil
			})
		}
		if e.object != nil {
			b = e.object(blockstore.ObjectID(ids), b)
		}
		_, _ = w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = w.Write(b)
	}
}

// TestHostile: whatever a peer sends that is not the image, it is refused, bounded, and
// nothing of it becomes the image.
func TestHostile(t *testing.T) {
	a := newHost(t, 0)
	ctx := context.Background()
	id := a.create(3 << 20)
	a.write(id, func(d *image.Disk) { check(t, d.Snapshot(ctx, "s")) })
	stranger := crypto.NewHostKey()
	other := a.create(1 << 20)
	root := func() blockstore.ObjectID {
		_, raw, err := a.store.Head(id)
		check(t, err)
		c, err := blockstore.ParseCommit(raw)
		check(t, err)
		return c.Root.ID
	}()
	_, otherHead, err := a.store.Head(other)
	check(t, err)
	flip := func(b []byte, i int) []byte {
		if len(b) > i {
			b[i] ^= 1
		}
		return b
	}
	for name, tt := range map[string]struct {
		evil *evil
		want error
	}{
		"objects flipped": {&evil{object: func(_ blockstore.ObjectID, b []byte) []byte { return flip(b, 100) }}, transfer.ErrProtocol},
		"objects cut":     {&evil{object: func(_ blockstore.ObjectID, b []byte) []byte { return b[:len(b)/2] }}, transfer.ErrProtocol},
		"objects grown":   {&evil{object: func(_ blockstore.ObjectID, b []byte) []byte { return append(b, 0) }}, transfer.ErrProtocol},
		"objects absent":  {&evil{object: func(blockstore.ObjectID, []byte) []byte { return nil }}, transfer.ErrAbsent},
		"root absent": {&evil{object: func(o blockstore.ObjectID, b []byte) []byte {
			if o == root {
				return nil
			}
			return b
		}}, transfer.ErrAbsent},
		"head flipped":    {&evil{describe: func(d *transfer.Description) { flip(d.Head, len(d.Head)-1) }}, blockstore.ErrCorrupt},
		"head of another": {&evil{describe: func(d *transfer.Description) { d.Head = otherHead }}, blockstore.ErrCorrupt},
		"head empty":      {&evil{describe: func(d *transfer.Description) { d.Head = nil }}, blockstore.ErrCorrupt},
		"no lease":        {&evil{describe: func(d *transfer.Description) { d.Leases = nil }}, blockstore.ErrNotFound},
		"lease flipped":   {&evil{describe: func(d *transfer.Description) { flip(d.Leases[0], len(d.Leases[0])-1) }}, blockstore.ErrCorrupt},
		"another image":   {&evil{describe: func(d *transfer.Description) { d.Image = other }}, transfer.ErrProtocol},
		"another version": {&evil{describe: func(d *transfer.Description) { d.Version++ }}, blockstore.ErrFormat},
		"lease by stranger": {&evil{describe: func(d *transfer.Description) {
			chain, err := lease.Parse(d.Image, d.Leases)
			check(t, err)
			last := chain.Newest()
			raw, err := lease.Sign(&blockstore.Lease{Image: d.Image, Era: last.Era, Term: last.Term + 1, Holder: stranger.Public(), Previous: &last.ID}, stranger.Sign)
			check(t, err)
			d.Leases = append(d.Leases, raw)
		}}, blockstore.ErrCorrupt},
		"too many leases": {&evil{describe: func(d *transfer.Description) {
			for len(d.Leases) < 5000 {
				d.Leases = append(d.Leases, d.Leases[0])
			}
		}}, transfer.ErrProtocol},
		"no CBOR": {&evil{raw: func(w http.ResponseWriter, _ string) bool {
			_, _ = w.Write([]byte("hello"))
			return true
		}}, transfer.ErrProtocol},
		"endless description": {&evil{raw: func(w http.ResponseWriter, _ string) bool {
			for b := make([]byte, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return true
				}
			}
		}}, transfer.ErrProtocol},
		"cut off": {&evil{raw: func(_ http.ResponseWriter, path string) bool {
			if strings.HasSuffix(path, "objects") {
				panic(http.ErrAbortHandler)
			}
			return false
		}}, transfer.ErrNoSource},
		"refuses": {&evil{raw: func(w http.ResponseWriter, path string) bool {
			http.Error(w, "not\x1b[31m now", http.StatusForbidden)
			return true
		}}, transfer.ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			b := newHost(t, 0)
			meet(t, a, b)
			defer func() { check(t, a.book.Remove("b")) }()
			e := tt.evil
			e.h = a
			_, err := b.pull(id, e.lie(t, b))
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if err != nil && strings.ContainsRune(err.Error(), '\x1b') {
				t.Error("the peer's text reaches a terminal as it is")
			}
			if _, _, err := b.store.Head(id); !errors.Is(err, blockstore.ErrNotFound) {
				t.Errorf("the image is there: %v", err)
			}
			if n := e.asked.Load(); n > 500 {
				t.Errorf("%d objects were asked for", n)
			}
		})
	}
}

// TestReserve: what is missing is set aside before it is fetched; if there is no room for it
// nothing is.
func TestReserve(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(8 << 20)
	c := b.ask(a.as("a"))
	d, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
	check(t, err)
	r := b.receiver()
	var asked int64
	r.Reserve = func(n int64) (func(int64), error) {
		asked = n
		return nil, blockstore.ErrNoSpace
	}
	before := a.served.Load()
	if _, err := r.Receive(ctx, d, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id}); !errors.Is(err, blockstore.ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
	if asked < 8<<20 || asked > 9<<20 {
		t.Errorf("%d bytes were to be set aside for a disk of %d", asked, 8<<20)
	}
	if n := a.served.Load() - before; n > 1<<20 {
		t.Errorf("%d bytes had come by then", n)
	}
	var most, left int64 // what has come needs no room any more, and at the end nothing is set aside
	r.Reserve = func(n int64) (func(int64), error) {
		most, left = n, n
		return func(n int64) {
			if left -= n; left < 0 {
				t.Errorf("released %d more than was set aside", -left)
			}
		}, nil
	}
	shrunk := false
	progress := func(done, total int64) { shrunk = shrunk || done < total && left <= most-done }
	_, err = r.Receive(ctx, d, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id, Progress: progress})
	check(t, err)
	if left != 0 || !shrunk {
		t.Errorf("%d bytes stay set aside; less and less were: %v", left, shrunk)
	}
}

// TestConnections: a peer has no more connections than it may.
func TestConnections(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	check(t, a.book.Update("b", func(p *peer.Peer) { p.Quota.Connections = 2 }))
	id := a.create(1 << 20)
	ctx := context.Background()
	for i := range 3 {
		c := b.ask(a.as("a"))
		_, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
		if (err != nil) != (i == 2) {
			t.Errorf("connection %d: %v", i+1, err)
		}
	}
}

// TestFlood: a thousand connections that say nothing keep a peer from nothing.
func TestFlood(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	id := a.create(4 << 20)
	running := b.ask(a.as("a"))
	d, err := running.Describe(context.Background(), id.String(), blockstore.CommitID{})
	check(t, err)
	before := runtime.NumGoroutine()
	for range 1000 {
		c, err := net.Dial("tcp", a.address)
		check(t, err)
		defer c.Close()
	}
	if n := runtime.NumGoroutine() - before; n > 200 {
		t.Errorf("%d goroutines more", n)
	}
	_, err = b.receiver().Receive(context.Background(), d, []*transfer.Client{running}, transfer.ReceiveOptions{Image: id})
	check(t, err)
	if _, err := b.pull(id, b.ask(a.as("a"))); err != nil {
		t.Errorf("a new connection meanwhile: %v", err)
	}
}
