package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/audit"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// TestGrant: after a grant: the former holder's later commit, and the new holder's first one.
func TestGrant(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	d.WriteAt(ctx, noise(4096, 1), 0)
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	h := d.state()
	b := crypto.NewHostKey()
	last, prev := h.id, h.commit.CommitPublic.Lease
	grant, err := lease.Sign(&blockstore.Lease{Image: id, Era: h.commit.Era, Term: h.commit.Term + 1, Holder: b.Public(), Previous: &prev, LastCommit: &last}, r.key.Sign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.Store.PutLease(ctx, grant); err != nil {
		t.Fatal(err)
	}
	d.WriteAt(ctx, noise(4096, 2), 0) // the former holder goes on
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	d.abandon()
	ro, err := r.s.Open(ctx, id, OpenOptions{ReadOnly: true})
	if err == nil {
		t.Error("a commit of term 1 after the grant's last commit is accepted as head")
		r.close(ro)
	}
}

// TestNewHolder: the new holder's commits are its own.
func TestNewHolder(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	h := d.state()
	r.close(d)
	b := crypto.NewHostKey()
	grant, err := lease.Sign(&blockstore.Lease{Image: id, Era: h.commit.Era, Term: h.commit.Term + 1, Holder: b.Public(),
		Previous: &h.commit.Lease, LastCommit: &h.id}, r.key.Sign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.Store.PutLease(ctx, grant); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.Open(ctx, id, OpenOptions{}); !errors.Is(err, ErrNotHolder) {
		t.Errorf("the former holder opens it: %v, want ErrNotHolder", err)
	}
	r.key = b
	r.stop()
	r.start()
	d = r.open(id, OpenOptions{})
	p := noise(4096, 3)
	if _, err := d.WriteAt(ctx, p, 0); err != nil {
		t.Fatal(err)
	}
	r.close(d)
	d = r.open(id, OpenOptions{ReadOnly: true})
	if got := d.state().commit.Term; got != h.commit.Term+1 {
		t.Errorf("committed in term %d", got)
	}
	same(t, d, append(p, make([]byte, 16<<20-4096)...))
	r.close(d)
}

// TestForgottenAge: what a failed commit froze is old, and nothing asks for another try.
func TestForgottenAge(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	d := r.open(r.create(16<<20), OpenOptions{})
	no, cancel := context.WithCancel(ctx)
	cancel()
	d.WriteAt(ctx, noise(4096, 1), 0)
	d.Commit(no)
	if d.since.Load() == 0 && d.dirtyBytes() > 0 && !d.merging() {
		t.Error("uncommitted data, and the committer's clock stands at 0")
	}
	r.close(d)
}

// TestLiveChecks: gc and verify beside a live, healthy disk.
func TestLiveChecks(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(64 << 20)
	d := r.open(id, OpenOptions{})
	d.WriteAt(ctx, noise(32<<20, 1), 0)
	d.Commit(ctx)
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	commits := 0
	go func() {
		defer wg.Done()
		for i := uint64(0); !stop.Load(); i++ {
			d.WriteAt(ctx, noise(64<<10, i), int64(i%500)<<16)
			if err := d.Commit(ctx); err != nil {
				t.Error("commit:", err)
				return
			}
			commits++
		}
	}()
	gcs, gcErr, faults := 0, map[string]int{}, map[string]int{}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		gcs++
		if _, err := r.s.Store.Collect(ctx, blockstore.CollectOptions{}); err != nil {
			gcErr[fmt.Sprintf("%.60s", err.Error())]++
		}
		if err := r.s.Verify(ctx, id, func(f audit.Fault) { faults[fmt.Sprintf("%.20s", f.Object)]++ }, nil); err != nil {
			faults[err.Error()]++
		}
	}
	stop.Store(true)
	wg.Wait()
	if len(gcErr)+len(faults) > 0 || commits == 0 {
		t.Errorf("%d commits, %d rounds; gc errors %v; verify faults %v", commits, gcs, gcErr, faults)
	}
	r.close(d)
	r.stop()
	r.start()
	clean := 0
	r.s.Verify(ctx, id, func(f audit.Fault) { clean++; t.Log("at rest:", f) }, nil)
	if clean > 0 {
		t.Errorf("damaged at rest: %d faults", clean)
	}
}

// TestYield: a disk that is written from all sides while its lease is given away. What was
// acknowledged is in the last commit, no journal of the term is left, and nothing comes after it.
func TestYield(t *testing.T) {
	for range 5 {
		testYield(t)
	}
}

func testYield(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(64 << 20)
	d := r.open(id, OpenOptions{})
	const writers = 4
	var acknowledged [writers]uint64
	var started, all sync.WaitGroup
	started.Add(2 * writers)
	for w := range writers {
		all.Go(func() {
			begun := sync.OnceFunc(started.Done)
			for n := uint64(1); ; n++ {
				_, err := d.WriteAt(ctx, binary.BigEndian.AppendUint64(nil, n), int64(w)*regionSize)
				if err == nil {
					acknowledged[w] = n
					begun()
					continue
				}
				if !errors.Is(err, ErrReadOnly) {
					t.Errorf("write: %v, want ErrReadOnly", err)
				}
				return
			}
		})
		all.Go(func() {
			begun := sync.OnceFunc(started.Done)
			for !d.ReadOnly() {
				if err := d.Flush(ctx); err != nil {
					t.Errorf("flush: %v", err)
				}
				begun()
			}
		})
	}
	started.Wait()
	b := crypto.NewHostKey()
	if err := d.Yield(ctx, b.Public()); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if err := d.Commit(ctx); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a commit after that: %v, want ErrReadOnly", err)
	}
	// What had passed WriteAt's look at the disk before, and comes to the dirty set only now.
	if err := d.put(0, 0, make([]byte, sectorSize)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a late write: %v, want ErrReadOnly", err)
	}
	if err := d.patch(ctx, 0, 0, 1, []byte{1}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a late write of a part: %v, want ErrReadOnly", err)
	}
	last, raw, err := r.s.Store.Head(id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := blockstore.ParseCommit(raw)
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := r.s.Store.Journals(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range numbers {
		if n > c.Absorbed {
			t.Errorf("journal %v is in no commit", n)
		}
	}
	chain, err := lease.Load(r.s.Store, id)
	if err != nil || chain.Newest().Holder != b.Public() || *chain.Newest().LastCommit != last {
		t.Fatalf("the chain ends with %+v, %v", chain.Newest(), err)
	}
	r.close(d)
	d = r.open(id, OpenOptions{ReadOnly: true})
	defer r.close(d)
	for w := range writers {
		var got [8]byte
		if _, err := d.ReadAt(ctx, got[:], int64(w)*regionSize); err != nil || binary.BigEndian.Uint64(got[:]) != acknowledged[w] {
			t.Errorf("writer %d: %d is there, %v; %d was acknowledged", w, binary.BigEndian.Uint64(got[:]), err, acknowledged[w])
		}
	}
}

// TestTakeLease: a lease that is taken by force begins an era, with an epoch of its own; without the
// image key there is none to be had.
func TestTakeLease(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	if err := r.s.Grant(ctx, id, crypto.NewHostKey().Public()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.Open(ctx, id, OpenOptions{}); !errors.Is(err, ErrNotHolder) {
		t.Errorf("%v, want ErrNotHolder", err)
	}
	for range 2 { // again it does nothing
		if err := r.s.TakeLease(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	d := r.open(id, OpenOptions{})
	defer r.close(d)
	h := d.state()
	if h.commit.Era != 2 || h.commit.Term != 3 || len(h.commit.Epochs) != 2 || h.commit.Floor != h.commit.Position() {
		t.Errorf("at %v with %d epochs, floor %v", h.commit.Position(), len(h.commit.Epochs), h.commit.Floor)
	}
}

// TestBornLater: what says of itself that it was born after the commit that names it counts as born then:
// whoever made it could have an object deleted that others use.
func TestBornLater(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(32 << 20)
	d := r.open(id, OpenOptions{})
	defer r.close(d)
	for n := range 2 {
		if _, err := d.WriteAt(ctx, noise(4096, uint64(n)), int64(n)*regionSize); err != nil {
			t.Fatal(err)
		}
		if err := d.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m := d.current.tree
	m.Birth, m.Latest = blockstore.Position{}, blockstore.Position{Era: 1, Term: 1, Sequence: 1}
	_, birth, err := m.LeafBorn(ctx, 1)
	if err != nil || birth != m.Latest {
		t.Errorf("born at %v, %v, want %v", birth, err, m.Latest)
	}
	up, err := m.Update(ctx, record.Seal{Suite: r.s.suite, Epoch: d.head.epoch}, blockstore.Position{Era: 1, Term: 2, Sequence: 9}, 1, []tree.Change{{Region: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range up.Dead {
		if x.Birth.Compare(m.Latest) > 0 {
			t.Errorf("%v was born at %v", x.ID, x.Birth)
		}
	}
	if len(up.Dead) < 2 {
		t.Errorf("%d nodes died", len(up.Dead))
	}
}
