package image

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

func noise(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, seed))
	p := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for k := range 8 {
			p[i+k] = byte(v >> (8 * k))
		}
	}
	return p
}

// TestCollectDuringCommit: a collection that runs while a commit has put objects and not its record.
func TestCollectDuringCommit(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(32 << 20)
	d := r.open(id, OpenOptions{})
	model := noise(32<<20, 1)
	if _, err := d.WriteAt(ctx, model, 0); err != nil {
		t.Fatal(err)
	}
	var swept int64
	err := d.commit(ctx, &edit{snapshots: func(time.Time) []record.Snapshot { // after the first batches, before the record
		st, err := r.s.Store.Collect(ctx, blockstore.CollectOptions{})
		if err != nil {
			t.Error(err)
		}
		swept = st.Swept
		return nil
	}})
	t.Logf("commit: %v; swept %d objects of a commit under way", err, swept)
	r.close(d)
	r.stop()
	r.start()
	d = r.open(id, OpenOptions{})
	defer d.Close(ctx)
	got := make([]byte, len(model))
	if _, err := d.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, model) {
		t.Errorf("after gc beside a commit: %v", err)
	}
}

// TestForeignCache: an image whose map names another image's nodes reads that image's plaintext out of the caches.
func TestForeignCache(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	a := r.create(8 << 20)
	d := r.open(a, OpenOptions{})
	secret := noise(1<<20, 2)
	if _, err := d.WriteAt(ctx, secret, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(secret))
	if _, err := d.ReadAt(ctx, got, 0); err != nil { // what a guest does
		t.Fatal(err)
	}
	// Known to anyone who sees the store: the public part of A's commit.
	root := d.state().commit.CommitPublic.Root
	evil, err := r.s.create(ctx, creation{options: r.options(8 << 20), tree: tree.Tree{Root: root}})
	if err != nil {
		t.Fatal(err)
	}
	e := r.open(evil, OpenOptions{ReadOnly: true})
	defer e.Close(ctx)
	clear(got)
	_, err = e.ReadAt(ctx, got, 0)
	if err == nil && bytes.Equal(got, secret) {
		t.Error("an image without A's keys reads A's plaintext")
	}
	r.close(d)
}

// TestPatchLeaf: a patch leaf, valid in format 1.
func TestPatchLeaf(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	for _, zeroed := range []bool{false, true} {
		b, err := r.s.Build(ctx, r.options(16<<20))
		if err != nil {
			t.Fatal(err)
		}
		data := noise(2*sectorSize, 3)
		object, entry, err := sealPiece(nil, b.seal, firstPosition, 0, &Piece{Runs: []record.Run{{First: 0, Count: 2}}, Data: data})
		if err != nil {
			t.Fatal(err)
		}
		base, child, err := b.tree.SealLeaf(b.seal, firstPosition, &record.Leaf{Base: -1, Objects: []record.LeafObject{entry},
			Extents: []record.Extent{{First: 0, Count: 2}}})
		if err != nil {
			t.Fatal(err)
		}
		extra, entry2, err := sealPiece(nil, b.seal, firstPosition, 0, &Piece{Runs: []record.Run{{First: 8, Count: 1}}, Data: data[:sectorSize]})
		if err != nil {
			t.Fatal(err)
		}
		patch := &record.Leaf{Base: 0, Objects: []record.LeafObject{{Ref: child.Ref, Epoch: b.seal.Epoch.ID(), Birth: firstPosition}, entry2},
			Extents: []record.Extent{{First: 8, Count: 1, Object: 1}}}
		if zeroed {
			patch.Extents = append([]record.Extent{{First: 1, Count: 1, Object: record.ZeroObject}}, patch.Extents...)
		}
		top, topChild, err := b.tree.SealLeaf(b.seal, firstPosition, patch)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.s.Store.PutObjects(ctx, []blockstore.Object{object, base, extra, top}); err != nil {
			t.Fatal(err)
		}
		b.changes = append(b.changes, tree.Change{Region: 0, Leaf: topChild})
		id, err := b.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		d := r.open(id, OpenOptions{})
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("read of a patch leaf with zeros panics: %v", p)
				}
			}()
			got := make([]byte, 2*sectorSize)
			_, err := d.ReadAt(ctx, got, 0)
			if err == nil && !zeroed && !bytes.Equal(got, data) {
				t.Errorf("a patch leaf reads as zeros, no error: zero=%v", bytes.Equal(got, make([]byte, len(got))))
			}
		}()
		d.abandon()
	}
}

// hookSink changes the disk while it is drained: Drain must not hand over a write beyond the old size before the resize.
type hookSink struct {
	packer
	hook func()
}

func (h *hookSink) Write(sector uint64, p *dirty.Page) bool {
	if h.hook != nil {
		f := h.hook
		h.hook = nil
		f()
	}
	return h.packer.Write(sector, p)
}

// TestResizeRace: the disk grows and is written beyond its old end while a flush drains it.
func TestResizeRace(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(40 << 20)
	d := r.open(id, OpenOptions{})
	for _, at := range []int64{0, 33 << 20} {
		if _, err := d.WriteAt(ctx, noise(4096, 1), at); err != nil {
			t.Fatal(err)
		}
	}
	// Flush begins; while it drains the first region another thread grows the disk, and writes
	// beyond its old end in a region that the same pass comes to.
	d.flushMu.Lock()
	h := &hookSink{hook: func() {
		if err := d.Resize(ctx, 64<<20); err != nil {
			t.Error(err)
		}
		if _, err := d.WriteAt(ctx, noise(4096, 2), 44<<20); err != nil {
			t.Error(err)
		}
	}}
	d.active.Pass().Drain(h)
	err := d.appendLocked(&h.packer)
	d.flushMu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // all of it is acknowledged now
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	d.abandon()
	r.stop()
	r.start()
	d, err = r.s.Open(ctx, id, OpenOptions{})
	if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	r.close(d)
}

// TestSpill: a spilled record leaves a hole in the journal's chain; records after it make it "corrupt".
func TestSpill(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	no, cancel := context.WithCancel(ctx)
	cancel()
	put := func(at int64, seed uint64) []byte {
		p := noise(4096, seed)
		if _, err := d.WriteAt(ctx, p, at); err != nil {
			t.Fatal(err)
		}
		return p
	}
	put(0, 1)
	if err := d.Commit(no); err == nil { // a commit that fails, or is under way
		t.Fatal("committed")
	}
	kept := put(8192, 2)
	if err := d.Flush(ctx); err != nil { // acknowledged
		t.Fatal(err)
	}
	// A flush whose append has no room: what appendLocked does when Append returns ErrNoSpace.
	put(16384, 3)
	d.flushMu.Lock()
	var p packer
	d.active.Pass().Drain(&p)
	if _, err := d.journal.sealer.Record(nil, p.ops, [][]byte{p.data}, uint64(d.journal.durable)); err != nil {
		t.Fatal(err)
	}
	d.endJournalLocked()
	d.spilled++
	d.flushMu.Unlock()
	for i := range uint64(2) { // later, smaller ones find room; they wait for a commit, so they are not acknowledged
		put(int64(24576+i*8192), 4+i)
		if err := d.Flush(no); err == nil {
			t.Fatal("acknowledged")
		}
	}
	d.abandon() // crash
	r.stop()
	r.start()
	d, err := r.s.Open(ctx, id, OpenOptions{})
	if err != nil {
		t.Fatalf("acknowledged data is out of reach: %v", err)
	}
	got := make([]byte, 4096)
	if _, err := d.ReadAt(ctx, got, 8192); err != nil || !bytes.Equal(got, kept) {
		t.Error("lost")
	}
	r.close(d)
}

// TestOpenLeak: opening fails in its commit: the frozen set stays counted for ever.
func TestOpenLeak(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	d.WriteAt(ctx, noise(1<<20, 1), 0)
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	root := d.state().commit.Root.ID
	d.WriteAt(ctx, noise(1<<20, 2), 4<<20)
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	d.abandon()
	r.stop()
	r.start()
	if err := r.s.Store.DeleteObjects(ctx, []blockstore.ObjectID{root}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := r.s.Open(ctx, id, OpenOptions{}); err == nil {
			t.Fatal("opened")
		}
	}
	if n := r.s.dirty.Load(); n != 0 {
		t.Errorf("%d bytes stay counted as dirty with no disk open", n)
	}
}

// TestStalledNeighbour: one image that cannot commit stops the writers of all others, without an error.
func TestStalledNeighbour(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.dirty = 4 << 20
	r.start()
	ctx := context.Background()
	x, y := r.create(16<<20), r.create(16<<20)
	d := r.open(x, OpenOptions{})
	d.WriteAt(ctx, noise(1<<20, 1), 0)
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	root := d.state().commit.Root.ID
	r.close(d)
	r.stop()
	r.start()
	if err := r.s.Store.DeleteObjects(ctx, []blockstore.ObjectID{root}); err != nil {
		t.Fatal(err)
	}
	d, dy := r.open(x, OpenOptions{}), r.open(y, OpenOptions{})
	for i := range int64(12) {
		if _, err := d.WriteAt(ctx, noise(1<<20, 1), i<<20); err != nil {
			t.Logf("X, the damaged one: write %d: %v", i, err)
			break
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := dy.WriteAt(ctx, noise(4096, 1), 0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Logf("Y: %v", err)
	case <-time.After(8 * time.Second):
		t.Error("a write to a healthy image hangs because another image cannot commit")
	}
}

// TestMiddleJournal: of two journals that are to be replayed the first is taken away.
func TestMiddleJournal(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	no, cancel := context.WithCancel(ctx)
	cancel()
	d.WriteAt(ctx, noise(4096, 1), 0)
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(no); err == nil {
		t.Fatal("committed")
	}
	d.WriteAt(ctx, noise(4096, 2), 8192)
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	d.abandon()
	ns, _ := r.s.Store.Journals(id)
	if len(ns) != 2 {
		t.Fatal(ns)
	}
	if err := r.s.Store.RemoveJournal(id, ns[0]); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	d, err := r.s.Open(ctx, id, OpenOptions{})
	if err == nil {
		t.Error("opens with the first journal gone and the second replayed")
		r.close(d)
	}
}

// TestForgedJournal: a former recipient, with write access to the store, writes into the image by a forged journal.
func TestForgedJournal(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	_, other, err := crypto.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	if err := d.SetRecipients(ctx, to(r.recipient, other)); err != nil {
		t.Fatal(err)
	}
	old := d.state().epoch // which "other" knows
	if err := d.SetRecipients(ctx, to(r.recipient)); err != nil {
		t.Fatal(err)
	}
	h := d.state()
	next := d.nextNumber
	r.close(d)
	js, err := record.NewJournalSealer(record.Seal{Suite: crypto.AES256GCM, Epoch: old}, record.JournalHeader{Image: id,
		Host: r.key.Public(), Era: h.commit.Era, Term: h.commit.Term, Number: next + 5, Base: h.id}, nil, record.Tag{}) // all public
	if err != nil {
		t.Fatal(err)
	}
	j, err := r.s.Store.CreateJournal(id, next+5, js.Header(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	evil := noise(4096, 66)
	b, err := js.Record(nil, []record.Op{{Kind: record.OpWrite, A: 0, B: 1}}, [][]byte{evil}, record.JournalHeaderSize)
	if err != nil {
		t.Fatal(err)
	}
	j.Append(b)
	j.Close()
	r.stop()
	r.start()
	d, err = r.s.Open(ctx, id, OpenOptions{})
	if err != nil {
		return
	}
	got := make([]byte, 4096)
	d.ReadAt(ctx, got, 0)
	if bytes.Equal(got, evil) {
		t.Error("a journal that a former recipient made, under an epoch that is over, is replayed and committed")
	}
	r.close(d)
}

// TestCloneEpochs: a clone of an old snapshot carries the epochs of all that came after it.
func TestCloneEpochs(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	_, other, err := crypto.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	if err := errors.Join(d.Snapshot(ctx, "old"), d.SetRecipients(ctx, to(r.recipient, other)), d.SetRecipients(ctx, to(r.recipient))); err != nil {
		t.Fatal(err)
	}
	later := d.state().epoch.ID()
	d.WriteAt(ctx, noise(4096, 1), 0)
	d.Commit(ctx)
	cloneID, err := d.Clone(ctx, "old", r.options(0))
	if err != nil {
		t.Fatal(err)
	}
	c := r.open(cloneID, OpenOptions{})
	if _, ok := c.state().keys.Epoch(later); ok {
		t.Error("the clone of a snapshot, and whoever becomes its recipient, has the epoch under which the parent wrote afterwards")
	}
	r.close(c)
	r.close(d)
}

// TestCloneLimit: an image can be cloned this often.
func TestCloneLimit(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	d.WriteAt(ctx, noise(4096, 1), 0)
	if err := d.Snapshot(ctx, "s"); err != nil {
		t.Fatal(err)
	}
	for i := range 260 {
		if _, err := d.Clone(ctx, "s", r.options(0)); err != nil {
			t.Errorf("clone %d: %v", i, err)
			break
		}
	}
	_, other, _ := crypto.NewIdentity()
	if err := d.SetRecipients(ctx, to(other)); err != nil {
		t.Errorf("nor can a recipient be removed any more: %v", err)
	}
	r.close(d)
}
