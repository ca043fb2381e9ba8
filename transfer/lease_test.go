package transfer_test

import (
	"context"
	"errors"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/audit"
	"github.com/sealdisk/sealdisk/transfer"
)

// TestLease: the lease goes to who asks, once; the disk that reads it there writes it from
// then on; what the former holder signs later is refused.
func TestLease(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(20<<20, b.recipient)
	c := b.ask(a.as("a"))
	_, err := b.pull(id, c)
	check(t, err)
	d, err := b.shared.Open(ctx, id, image.OpenOptions{ReadOnly: true})
	check(t, err)
	if err := d.Promote(ctx); !errors.Is(err, image.ErrNotHolder) {
		t.Errorf("promoted without the lease: %v, want ErrNotHolder", err)
	}

	late, err := c.Describe(ctx, id.String(), blockstore.CommitID{})
	check(t, err)
	head, err := blockstore.ParseCommit(late.Head)
	check(t, err)
	opened := func(keyring blockstore.ObjectID) transfer.Claim {
		return transfer.Claim{Keyrings: []transfer.Keyring{{Image: blockstore.ImageID{1}}, {Image: id, ID: keyring}}}
	}
	if _, err := c.Lease(ctx, id, opened(head.ImageKey.ID)); !errors.Is(err, transfer.ErrRefused) {
		t.Errorf("the lease of what has other keys: %v, want ErrRefused", err)
	}
	if leases, err := a.store.Leases(id); err != nil || len(leases) != 1 {
		t.Errorf("%d leases after a refusal, want 1: %v", len(leases), err)
	}
	for range 2 { // a lost answer is asked for again
		desc, err := c.Lease(ctx, id, opened(head.Keyring.ID))
		check(t, err)
		_, err = b.receiver().Receive(ctx, desc, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id})
		check(t, err)
	}
	if _, err := a.shared.Open(ctx, id, image.OpenOptions{}); !errors.Is(err, image.ErrNotHolder) {
		t.Errorf("the former holder opened it for writing: %v, want ErrNotHolder", err)
	}
	check(t, d.Promote(ctx))
	if _, err := d.WriteAt(ctx, []byte("mine"), 1<<20); err != nil {
		t.Error(err)
	}
	check(t, d.Flush(ctx))
	buf := make([]byte, 4)
	if _, err := d.ReadAt(ctx, buf, 1<<20); err != nil || string(buf) != "mine" {
		t.Errorf("read %q, %v", buf, err)
	}
	check(t, d.Close(ctx))
	if _, err := b.receiver().Receive(ctx, late, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id}); !errors.Is(err, image.ErrRolledBack) {
		t.Errorf("the former holder's state: %v, want ErrRolledBack", err)
	}
	check(t, b.shared.Verify(ctx, id, func(f audit.Fault) { t.Error(f) }, nil))

	// And back: a brings what b wrote, and gets the lease.
	if _, err := a.pull(id, a.ask(b.as("b"))); err != nil {
		t.Fatal(err)
	}
	back := a.ask(b.as("b"))
	desc, err := back.Lease(ctx, id, transfer.Claim{})
	check(t, err)
	_, err = a.receiver().Receive(ctx, desc, []*transfer.Client{back}, transfer.ReceiveOptions{Image: id})
	check(t, err)
	a.write(id, func(d *image.Disk) {
		if _, err := d.ReadAt(ctx, buf, 1<<20); err != nil || string(buf) != "mine" {
			t.Errorf("read %q, %v", buf, err)
		}
		_, err := d.WriteAt(ctx, []byte("ours"), 2<<20)
		check(t, err)
	})
	a.sound(id)
}

// TestFlushInNewTerm: what is flushed in the new term before anything else survives a crash.
func TestFlushInNewTerm(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(4<<20, b.recipient)
	c := b.ask(a.as("a"))
	desc, err := c.Lease(ctx, id, transfer.Claim{})
	check(t, err)
	_, err = b.receiver().Receive(ctx, desc, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id})
	check(t, err)
	d, err := b.shared.Open(ctx, id, image.OpenOptions{})
	check(t, err)
	_, err = d.WriteAt(ctx, []byte("flushed"), 0)
	check(t, err)
	check(t, d.Flush(ctx))
	again := b.crash()
	e, err := again.Open(ctx, id, image.OpenOptions{})
	check(t, err)
	buf := make([]byte, 7)
	if _, err := e.ReadAt(ctx, buf, 0); err != nil || string(buf) != "flushed" {
		t.Errorf("read %q, %v", buf, err)
	}
	check(t, e.Close(ctx))
}
