package transfer_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/audit"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// TestReplica: a host without keys gets an image with its snapshots, then what changed
// and nothing else, then learns that a snapshot is gone.
func TestReplica(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	const size = 40 << 20
	id := a.create(size)
	a.write(id, func(d *image.Disk) {
		check(t, d.Snapshot(ctx, "one"))
		_, err := d.WriteAt(ctx, make([]byte, 1<<20), 5<<20)
		check(t, err)
		check(t, d.Snapshot(ctx, "two"))
	})
	c := b.ask(a.as("a"))
	got, err := b.pull(id, c)
	check(t, err)
	if got.Bytes < size || got.Bytes > size+size/20 {
		t.Errorf("%d bytes came of a disk of %d", got.Bytes, size)
	}
	b.sound(id)
	sameCommits(t, a, b, id)
	if n := unlike(t, a, b, id); n > 0 {
		t.Errorf("%d objects of the image are not there", n)
	}

	d, err := c.Describe(ctx, id.String(), got.Head)
	if d != nil || err != nil {
		t.Errorf("of an unchanged image: %v, %v", d, err)
	}

	const changed = 100
	a.write(id, func(d *image.Disk) {
		rng := rand.New(rand.NewPCG(1, 2))
		buf := make([]byte, 4096)
		for range changed {
			for i := range buf {
				buf[i] = byte(rng.Uint32())
			}
			_, err := d.WriteAt(ctx, buf, rng.Int64N(size/4096)*4096)
			check(t, err)
		}
		check(t, d.RemoveSnapshot(ctx, "one"))
	})
	got, err = b.pull(id, c)
	check(t, err)
	if most := int64(changed*(4096+200) + 200_000); got.Bytes > most {
		t.Errorf("%d bytes came for %d changed sectors, want at most %d", got.Bytes, changed, most)
	}
	b.sound(id)
	sameCommits(t, a, b, id)

	if _, err := b.shared.Open(ctx, id, image.OpenOptions{ReadOnly: true}); err == nil {
		t.Error("a host that is no recipient has opened the image")
	}
}

func sameCommits(t *testing.T, a, b *host, id blockstore.ImageID) {
	t.Helper()
	of := func(h *host) []blockstore.CommitID {
		ids, err := h.store.Commits(id)
		check(t, err)
		return ids
	}
	if x, y := of(a), of(b); !slices.Equal(x, y) {
		t.Errorf("commits %v there, %v here", x, y)
	}
}

// unlike counts the objects that a has and b does not.
func unlike(t *testing.T, a, b *host, _ blockstore.ImageID) (n int) {
	t.Helper()
	_, err := a.store.Collect(context.Background(), blockstore.CollectOptions{})
	check(t, err)
	check(t, a.store.Objects(context.Background(), func(id blockstore.ObjectID, _ int64) error {
		here, err := b.store.Has(id)
		if !here {
			n++
		}
		return err
	}))
	return n
}

// TestRecipientReads: a host that is a recipient reads what was written elsewhere, cannot
// write it, and sees what comes while it has it open.
func TestRecipientReads(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(20<<20, b.recipient)
	c := b.ask(a.as("a"))
	_, err := b.pull(id, c)
	check(t, err)
	if _, err := b.shared.Open(ctx, id, image.OpenOptions{}); !errors.Is(err, image.ErrNotHolder) {
		t.Errorf("opened for writing: %v, want ErrNotHolder", err)
	}
	d, err := b.shared.Open(ctx, id, image.OpenOptions{ReadOnly: true})
	check(t, err)
	a.write(id, func(d *image.Disk) {
		_, err := d.WriteAt(ctx, []byte("news"), 7<<20)
		check(t, err)
	})
	_, err = b.pull(id, c)
	check(t, err)
	check(t, b.shared.Advance(ctx, id))
	buf := make([]byte, 4)
	if _, err := d.ReadAt(ctx, buf, 7<<20); err != nil || string(buf) != "news" {
		t.Errorf("read %q, %v", buf, err)
	}
	check(t, d.Close(ctx))
	check(t, b.shared.Verify(ctx, id, func(f audit.Fault) { t.Error(f) }, nil))
}

// TestResume: connections break again and again, each time a bit later; what was stored
// is not sent again.
func TestResume(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	const size = 150 << 20
	id := a.create(size)
	cuts := 0
	for try := int64(1); ; try++ {
		a.cut.Store(try * 20 << 20)
		got, err := b.pull(id, b.ask(a.as("a")))
		if err == nil {
			if got.Bytes >= size/2 {
				t.Errorf("the last pull brought %d bytes", got.Bytes)
			}
			break
		}
		if !errors.Is(err, transfer.ErrNoSource) {
			t.Fatalf("cut %d: %v, want ErrNoSource", try, err)
		}
		if _, _, err := b.store.Head(id); !errors.Is(err, blockstore.ErrNotFound) {
			t.Fatalf("cut %d: the image is there: %v", try, err)
		}
		cuts++
	}
	if cuts < 3 {
		t.Errorf("%d cuts, want 3 or more", cuts)
	}
	// What is lost with a cut: what is under way.
	if most := size + int64(cuts)*40<<20; a.served.Load() > most {
		t.Errorf("%d bytes went out for a disk of %d, want at most %d", a.served.Load(), size, most)
	}
	b.sound(id)
}

// TestTwoPeers: what one lacks or spoils another gives; one that breaks off is missed by
// nobody.
func TestTwoPeers(t *testing.T) {
	a, b, c := newHost(t, 0), newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	check(t, b.book.Add(c.as("c")))
	check(t, c.book.Add(b.as("b")))
	check(t, c.book.Add(a.as("a")))
	check(t, a.book.Add(c.as("c")))
	const size = 100 << 20
	id := a.create(size)
	_, err := b.pull(id, b.ask(a.as("a")))
	check(t, err)
	ctx := context.Background()
	n := 0
	var gone []blockstore.ObjectID
	check(t, b.store.Objects(ctx, func(id blockstore.ObjectID, _ int64) error {
		if n++; n%10 == 0 {
			gone = append(gone, id)
		}
		return nil
	}))
	check(t, b.store.DeleteObjects(ctx, gone))
	a.cut.Store(60 << 20)
	fromB := c.ask(b.as("b"))
	fromA := c.ask(a.as("a"))
	_, err = c.pull(id, fromA, fromB)
	if err != nil { // a is cut and what only it had is missing: b alone cannot end it
		a.cut.Store(0)
		_, err = c.pull(id, c.ask(a.as("a")), c.ask(b.as("b")))
	}
	check(t, err)
	c.sound(id)
	if b.served.Load() < size/10 {
		t.Errorf("the second peer gave %d bytes", b.served.Load())
	}
}

// TestRollback: a state older than one that this host has seen is refused, unless it is
// accepted.
func TestRollback(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(1 << 20)
	c := b.ask(a.as("a"))
	old, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
	check(t, err)
	a.write(id, func(d *image.Disk) {
		_, err := d.WriteAt(ctx, []byte("x"), 0)
		check(t, err)
	})
	first, err := blockstore.ParseCommit(old.Head)
	check(t, err)
	check(t, b.anchor.Save(id, anchor.Mark{Era: first.Era, Term: first.Term, Sequence: first.Sequence + 1, Commit: blockstore.CommitID{1}}))
	if _, err := b.receiver().Receive(ctx, old, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id}); !errors.Is(err, image.ErrRolledBack) {
		t.Errorf("an older state: %v, want ErrRolledBack", err)
	}
	if _, err := b.pull(id, c); !errors.Is(err, image.ErrFork) {
		t.Errorf("another commit of the same place: %v, want ErrFork", err)
	}
}

// TestAfter: who follows an image hears of a commit.
func TestAfter(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(1 << 20)
	head, _, err := a.store.Head(id)
	check(t, err)
	heard := make(chan bool, 1)
	c := b.ask(a.as("a"))
	go func() {
		changed, err := c.After(ctx, id, head)
		heard <- changed && err == nil
	}()
	a.write(id, func(d *image.Disk) {
		_, err := d.WriteAt(ctx, []byte("x"), 0)
		check(t, err)
	})
	if !<-heard {
		t.Error("it was not told")
	}
}

// TestFillBesideReader: what a reader has brought by the time its turn comes is not sent again.
func TestFillBesideReader(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	const size = 24 << 20
	id := a.create(size)
	c := b.ask(a.as("a"))
	d, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
	check(t, err)
	_, err = b.receiver().Begin(ctx, d, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id})
	check(t, err)
	var gates atomic.Int64
	read := sync.OnceValue(func() error { return b.copyFrom(a) })
	var done, total int64
	got, err := b.receiver().Fill(ctx, id, []*transfer.Client{c}, transfer.FillOptions{
		Gate: func(context.Context) error {
			if gates.Add(1) == 1 { // leaves
				return nil
			}
			return read()
		},
		Progress: func(d, t int64) { done, total = d, t },
	})
	check(t, err)
	if got.Bytes > size/4 || total < size || done != total {
		t.Errorf("%d bytes came though a reader had them, %d of %d are done", got.Bytes, done, total)
	}
	b.sound(id)
}

// copyFrom puts all objects of another host into the store.
func (h *host) copyFrom(from *host) error {
	ctx := context.Background()
	return from.store.Objects(ctx, func(id blockstore.ObjectID, _ int64) error {
		raw, err := from.store.Append(ctx, nil, id)
		if err != nil {
			return err
		}
		return h.store.PutObjects(ctx, []blockstore.Object{{ID: id, Bytes: raw}})
	})
}

// TestStranger: who is not pinned gets nothing, and a peer with another key is noticed.
func TestStranger(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	id := a.create(1 << 20)
	check(t, b.book.Add(a.as("a")))
	conn, err := b.endpoint.Dial(context.Background(), a.as("a"), peer.Forward)
	if err == nil { // TLS 1.3: it learns of the refusal with the first answer
		c := transfer.NewClient(conn)
		defer c.Close()
		if _, err = c.Describe(context.Background(), id.String(), blockstore.CommitID{}); err == nil {
			t.Error("a stranger got a description")
		}
	}
	wrong := a.as("a")
	wrong.Key[0] ^= 1
	if _, err := b.endpoint.Dial(context.Background(), wrong, peer.Forward); !errors.Is(err, peer.ErrNotPinned) {
		t.Errorf("another key: %v, want ErrNotPinned", err)
	}
}

// TestClone: a clone comes whole where what it was made from is not, and costs its changes
// where it is; so it does when the keys have changed in between.
func TestClone(t *testing.T) {
	a, b, c := newHost(t, 0), newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	check(t, a.book.Add(c.as("c")))
	check(t, c.book.Add(a.as("a")))
	ctx := context.Background()
	const size = 20 << 20
	parent := a.create(size)
	fromC := c.ask(a.as("a"))
	_, err := c.pull(parent, fromC)
	check(t, err)
	var clone blockstore.ImageID
	a.write(parent, func(d *image.Disk) {
		clone, err = d.Clone(ctx, "", image.CreateOptions{Admins: []string{a.recipient}})
		check(t, err)
	})
	a.write(clone, func(d *image.Disk) {
		_, err := d.WriteAt(ctx, make([]byte, 100_000), 3<<20)
		check(t, err)
		check(t, d.SetRecipients(ctx, func(now []string) ([]string, error) { return append(now, b.recipient), nil }))
	})

	got, err := b.pull(clone, b.ask(a.as("a")))
	check(t, err)
	if got.Bytes < size-1<<20 {
		t.Errorf("%d bytes came of a clone of %d", got.Bytes, size)
	}
	b.sound(clone)
	check(t, b.shared.Verify(ctx, clone, func(f audit.Fault) { t.Error(f) }, nil))

	got, err = c.pull(clone, fromC)
	check(t, err)
	if got.Bytes > 300_000 {
		t.Errorf("%d bytes came of a clone whose parent is here", got.Bytes)
	}
	c.sound(clone)
	c.sound(parent)
	_, err = c.store.Collect(ctx, blockstore.CollectOptions{})
	check(t, err)
	check(t, c.store.RemoveImage(ctx, parent))
	_, err = c.store.Collect(ctx, blockstore.CollectOptions{})
	check(t, err)
	c.sound(clone)
}

// TestRekeyMeanwhile: an image whose keys change, and that is written, while it is copied
// arrives as it was when it was described, and then as it is.
func TestRekeyMeanwhile(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(30<<20, b.recipient)
	d, err := a.shared.Open(ctx, id, image.OpenOptions{})
	check(t, err)
	c := b.ask(a.as("a"))
	desc, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
	check(t, err)
	r := b.receiver()
	r.Reserve = func(int64) (func(int64), error) { // the nodes are here, the segments are to come
		_, err := d.WriteAt(ctx, make([]byte, 20<<20), 0)
		check(t, err)
		check(t, d.SetRecipients(ctx, func([]string) ([]string, error) { return []string{a.recipient}, nil }))
		check(t, d.Commit(ctx))
		return func(int64) {}, nil
	}
	_, err = r.Receive(ctx, desc, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id})
	check(t, err)
	b.sound(id)
	check(t, b.shared.Verify(ctx, id, func(f audit.Fault) { t.Error(f) }, nil))
	check(t, d.Close(ctx))
	_, err = b.pull(id, c)
	check(t, err)
	b.sound(id)
	if _, err := b.shared.Open(ctx, id, image.OpenOptions{ReadOnly: true}); !errors.Is(err, crypto.ErrNoIdentity) {
		t.Errorf("a former recipient opens what came later: %v, want ErrNoIdentity", err)
	}
}
