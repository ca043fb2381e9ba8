package image

import (
	"context"
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
