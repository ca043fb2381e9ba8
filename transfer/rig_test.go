package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/audit"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// host is a host with a store that answers its peers on loopback.
type host struct {
	t         *testing.T
	key       crypto.HostKey
	recipient string
	store     *blockstore.Store
	anchor    *anchor.Anchor
	options   image.Host
	shared    *image.Shared
	live      atomic.Pointer[image.Shared]                                        // what peers are answered from
	grant     func(ctx context.Context, id blockstore.ImageID, to [32]byte) error // nil: shared's
	book      *peer.Book
	endpoint  *peer.Endpoint
	server    *transfer.Server
	address   string
	cut       atomic.Int64 // bytes after which a connection breaks; 0: never
	served    atomic.Int64 // bytes that went out
}

func newHost(t *testing.T, reserve int64) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, key: crypto.NewHostKey()}
	log := slog.New(slog.DiscardHandler)
	secret, recipient, err := crypto.NewIdentity()
	check(t, err)
	ids, err := crypto.ParseIdentities(bytes.NewReader([]byte(secret)), crypto.Prompt{})
	check(t, err)
	h.recipient = recipient
	o := blockstore.Options{Logger: log, Reserve: max(reserve, 1<<20)}
	check(t, blockstore.Create(filepath.Join(dir, "store"), o))
	h.store, err = blockstore.Open(context.Background(), filepath.Join(dir, "store"), o)
	check(t, err)
	h.anchor, err = anchor.Open(filepath.Join(dir, "home"), h.store.ID())
	check(t, err)
	h.options = image.Host{Store: h.store, Key: h.key, Identities: []age.Identity{ids[0]}, Anchor: h.anchor, Log: log, Now: time.Now}
	h.shared, err = image.NewShared(h.options)
	check(t, err)
	h.live.Store(h.shared)
	h.book = peer.NewBook(filepath.Join(dir, "peers"))
	h.endpoint, err = peer.NewEndpoint(h.key, h.book)
	check(t, err)
	h.server = transfer.NewServer(h.store, lender{h}, func(string) {}, log)
	h.listen(log)
	return h
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listen answers peers until the test ends.
func (h *host) listen(log *slog.Logger) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(h.t, err)
	h.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- transfer.Listen(ctx, fragile{l, h}, h.endpoint, func(string) {}, log, func(_ context.Context, c *peer.Conn) {
			if c.Protocol == peer.Forward {
				_ = h.server.Handle(c) // the peer sees that it is closed
				return
			}
			h.t.Error("nobody was to push here")
		})
	}()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
		closing, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		_ = h.server.Close(closing) // connections that a test left open are cut
		check(h.t, h.store.Close())
	})
}

// crash gives the images of the host as its next process finds them: nothing that was open
// is closed.
func (h *host) crash() *image.Shared {
	h.t.Helper()
	s, err := image.NewShared(h.options)
	check(h.t, err)
	return s
}

// fragile counts what goes out, and breaks connections.
type fragile struct {
	net.Listener
	h *host
}

func (f fragile) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	return &fragileConn{Conn: c, h: f.h}, err
}

type fragileConn struct {
	net.Conn
	h    *host
	sent int64
}

func (c *fragileConn) Write(p []byte) (int, error) {
	if most := c.h.cut.Load(); most > 0 && c.sent+int64(len(p)) > most {
		return 0, errors.Join(io.ErrClosedPipe, c.Close())
	}
	n, err := c.Conn.Write(p)
	c.sent += int64(n)
	c.h.served.Add(int64(n))
	return n, err
}

// lender lets every peer have everything.
type lender struct{ h *host }

func (l lender) Find(_ peer.Peer, ref string, _ peer.Role) (blockstore.ImageID, error) {
	id, err := blockstore.ParseImageID(ref)
	if err != nil {
		return id, transfer.ErrNoImage
	}
	return id, nil
}

func (l lender) Guard(id blockstore.ImageID) (func(), error) { return l.h.live.Load().Guard(id), nil }

func (l lender) Changed(id blockstore.ImageID) <-chan struct{} { return l.h.live.Load().Changed(id) }

func (l lender) Grant(ctx context.Context, _ peer.Peer, public [32]byte, id blockstore.ImageID, c transfer.Claim) error {
	if err := c.Check(l.h.store, id); err != nil {
		return err
	}
	if l.h.grant != nil {
		return l.h.grant(ctx, id, public)
	}
	return l.h.live.Load().Grant(ctx, id, public)
}

func (l lender) Part(context.Context, peer.Peer, blockstore.ImageID, blockstore.CommitID) error {
	return transfer.ErrRefused
}

func (l lender) AddRecipients(context.Context, peer.Peer, blockstore.ImageID, []string) error {
	return transfer.ErrRefused
}

// meet makes two hosts known to each other.
func meet(t *testing.T, a, b *host) {
	t.Helper()
	check(t, a.book.Add(b.as("b")))
	check(t, b.book.Add(a.as("a")))
}

func (h *host) as(name string) peer.Peer {
	return peer.Peer{Name: name, Address: h.address, Key: peer.FingerprintOf(h.key.Public())}
}

// ask connects to a peer.
func (h *host) ask(at peer.Peer) *transfer.Client {
	h.t.Helper()
	conn, err := h.endpoint.Dial(context.Background(), at, peer.Forward)
	check(h.t, err)
	c := transfer.NewClient(conn)
	h.t.Cleanup(func() { _ = c.Close() }) // closed before or not
	return c
}

// receiver gives what brings images into the store.
func (h *host) receiver() *transfer.Receiver {
	return &transfer.Receiver{Store: h.store, Anchor: h.anchor, Log: slog.New(slog.DiscardHandler), Reserve: func(int64) (func(int64), error) { return func(int64) {}, nil }}
}

// pull brings the newest state of an image from peers, the first of which describes it.
func (h *host) pull(id blockstore.ImageID, peers ...*transfer.Client) (transfer.Received, error) {
	h.t.Helper()
	ctx := context.Background()
	d, err := peers[0].Describe(ctx, id.String(), blockstore.CommitID{})
	if err != nil {
		return transfer.Received{}, err
	}
	return h.receiver().Receive(ctx, d, peers, transfer.ReceiveOptions{Image: id})
}

// create makes an image of random data.
func (h *host) create(size int64, recipients ...string) blockstore.ImageID {
	h.t.Helper()
	ctx := context.Background()
	b, err := h.shared.Build(ctx, image.CreateOptions{
		Size: size, BlockSize: 64 << 10, Compression: record.None, Labels: map[string]string{"name": "test"},
		Recipients: append([]string{h.recipient}, recipients...), Admins: []string{h.recipient},
	})
	check(h.t, err)
	defer b.Close()
	id, err := b.Finish(ctx)
	check(h.t, err)
	h.write(id, func(d *image.Disk) {
		rng := rand.NewChaCha8([32]byte{1})
		buf := make([]byte, 1<<20)
		for off := int64(0); off < size; off += int64(len(buf)) {
			_, _ = rng.Read(buf) // never fails
			_, err := d.WriteAt(ctx, buf[:min(int64(len(buf)), size-off)], off)
			check(h.t, err)
		}
	})
	return id
}

// write opens an image, changes it and closes it.
func (h *host) write(id blockstore.ImageID, work func(d *image.Disk)) {
	h.t.Helper()
	ctx := context.Background()
	d, err := h.shared.Open(ctx, id, image.OpenOptions{})
	check(h.t, err)
	work(d)
	check(h.t, d.Close(ctx))
}

// sound fails unless all of an image is there and right, as far as it shows without keys.
func (h *host) sound(id blockstore.ImageID) {
	h.t.Helper()
	check(h.t, audit.Public(context.Background(), h.store, id, func(f audit.Fault) { h.t.Error(f) }, nil))
}
