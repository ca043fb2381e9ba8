package image

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/record"
)

// rig is a host with a store, to be opened and closed as a daemon would.
type rig struct {
	t         testing.TB
	dir       string
	key       crypto.HostKey
	identity  age.Identity
	recipient string
	dirty     int64
	reserve   int64
	s         *Shared
}

func newRig(t testing.TB) *rig {
	t.Helper()
	secret, recipient, err := crypto.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	ids, err := crypto.ParseIdentities(bytes.NewReader([]byte(secret)), crypto.Prompt{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), key: crypto.NewHostKey(), identity: ids[0], recipient: recipient}
	if err := blockstore.Create(filepath.Join(r.dir, "store"), r.storeOptions()); err != nil {
		t.Fatal(err)
	}
	r.start()
	t.Cleanup(func() {
		if r.s != nil {
			r.stop()
		}
	})
	return r
}

func (r *rig) storeOptions() blockstore.Options {
	return blockstore.Options{Logger: slog.New(slog.DiscardHandler), Reserve: max(r.reserve, 1<<20)}
}

func (r *rig) start() {
	r.t.Helper()
	st, err := blockstore.Open(context.Background(), filepath.Join(r.dir, "store"), r.storeOptions())
	if err != nil {
		r.t.Fatal(err)
	}
	anchor, err := anchor.Open(filepath.Join(r.dir, "home"), st.ID())
	if err != nil {
		r.t.Fatal(err)
	}
	r.s, err = NewShared(Host{Store: st, Key: r.key, Identities: []age.Identity{r.identity}, Anchor: anchor,
		Log: slog.New(slog.DiscardHandler), Now: time.Now, DirtyBytes: r.dirty})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) stop() {
	r.t.Helper()
	if err := r.s.Store.Close(); err != nil {
		r.t.Error(err)
	}
	r.s = nil
}

func (r *rig) options(size int64) CreateOptions {
	return CreateOptions{Size: size, BlockSize: 64 << 10, Compression: record.Zstd,
		Labels: map[string]string{"name": "test"}, Recipients: []string{r.recipient}, Admins: []string{r.recipient}}
}

func (r *rig) create(size int64) blockstore.ImageID {
	r.t.Helper()
	b, err := r.s.Build(context.Background(), r.options(size))
	if err != nil {
		r.t.Fatal(err)
	}
	id, err := b.Finish(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) open(id blockstore.ImageID, o OpenOptions) *Disk {
	r.t.Helper()
	d, err := r.s.Open(context.Background(), id, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) close(d *Disk) {
	r.t.Helper()
	if err := d.Close(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}

// same compares all of a disk with what it should hold.
func same(t *testing.T, d *Disk, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := d.ReadAt(context.Background(), got, 0); n != len(want) || err != nil {
		t.Fatalf("read %d bytes, %v; want %d", n, err, len(want))
	}
	if d.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", d.Size(), len(want))
	}
	for i := 0; i < len(want); i += sectorSize {
		end := min(i+sectorSize, len(want))
		if !bytes.Equal(got[i:end], want[i:end]) {
			t.Fatalf("sector %d differs", i/sectorSize)
		}
	}
}

// scribble changes disk and model alike, n times.
func scribble(t *testing.T, d *Disk, model []byte, rng *rand.Rand, n int) {
	t.Helper()
	ctx := context.Background()
	for range n {
		off := rng.IntN(len(model))
		length := min(1+rng.IntN([]int{513, 4096, 40960, 300000}[rng.IntN(4)]), len(model)-off)
		if rng.IntN(3) == 0 {
			off, length = off&^4095, (length+4095)&^4095
			length = min(length, len(model)-off)
		}
		switch rng.IntN(8) {
		case 0:
			if err := d.Discard(ctx, int64(off), int64(length)); err != nil {
				t.Fatal(err)
			}
			clear(model[off : off+length])
		default:
			p := make([]byte, length)
			fill(p, rng)
			if _, err := d.WriteAt(ctx, p, int64(off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], p)
		}
	}
}

func fill(p []byte, rng *rand.Rand) {
	for i := range p {
		p[i] = byte(rng.Uint32() >> (i % 7))
	}
}

func TestReopen(t *testing.T) {
	r := newRig(t)
	model := make([]byte, 40<<20+777)
	id := r.create(int64(len(model)))
	rng := rand.New(rand.NewPCG(1, 2))
	ctx := context.Background()
	for round := range 6 {
		d := r.open(id, OpenOptions{})
		same(t, d, model)
		scribble(t, d, model, rng, 60)
		if round%2 == 0 {
			if err := d.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			scribble(t, d, model, rng, 20)
		}
		same(t, d, model)
		if round == 3 {
			model = append(model, make([]byte, 300<<20)...)
			if err := d.Resize(ctx, int64(len(model))); err != nil {
				t.Fatal(err)
			}
		}
		r.close(d)
		r.stop()
		r.start()
	}
}

// TestCrash abandons disks without closing them: what was flushed must be there.
func TestCrash(t *testing.T) {
	r := newRig(t)
	model := make([]byte, 20<<20)
	id := r.create(int64(len(model)))
	rng := rand.New(rand.NewPCG(3, 4))
	ctx := context.Background()
	for round := range 8 {
		d := r.open(id, OpenOptions{})
		same(t, d, model)
		for range 5 {
			scribble(t, d, model, rng, 10)
			if err := d.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if round%3 == 1 {
				if err := d.Commit(ctx); err != nil {
					t.Fatal(err)
				}
			}
		}
		kept := bytes.Clone(model)
		scribble(t, d, model, rng, 10) // lost with the crash
		model = kept
		d.abandon()
		r.stop()
		r.start()
	}
}

// abandon ends a disk as a crash would: nothing is written.
func (d *Disk) abandon() {
	if d.stop != nil {
		d.stop()
		<-d.done
	}
	if d.journal != nil {
		d.journal.file.Close()
	}
	d.s.leave(d)
}

func TestSnapshotAndClone(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	model := make([]byte, 33<<20)
	id := r.create(int64(len(model)))
	rng := rand.New(rand.NewPCG(5, 6))
	d := r.open(id, OpenOptions{})
	scribble(t, d, model, rng, 80)
	if err := d.Snapshot(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if err := d.Snapshot(ctx, "one"); !errors.Is(err, ErrExists) {
		t.Errorf("a name taken: %v, want ErrExists", err)
	}
	one := bytes.Clone(model)
	scribble(t, d, model, rng, 80)
	cloneID, err := d.Clone(ctx, "", r.options(0))
	if err != nil {
		t.Fatal(err)
	}
	clone := r.open(cloneID, OpenOptions{})
	cloneModel := bytes.Clone(model)
	oldID, err := d.Clone(ctx, "one", r.options(0))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		scribble(t, d, model, rng, 60)
		scribble(t, clone, cloneModel, rng, 60)
		if err := errors.Join(d.Commit(ctx), clone.Commit(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		same(t, d, model)
		same(t, clone, cloneModel)
		snap := r.open(id, OpenOptions{Snapshot: "one"})
		same(t, snap, one)
		r.close(snap)
		old := r.open(oldID, OpenOptions{})
		same(t, old, one)
		r.close(old)
	}
	check()
	if _, err := r.s.Store.Collect(ctx, blockstore.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	check()
	r.close(d)
	r.close(clone)
	r.stop()
	r.start()
	d, clone = r.open(id, OpenOptions{}), r.open(cloneID, OpenOptions{})
	check()
	if err := d.RemoveSnapshot(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.s.Store.Collect(ctx, blockstore.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, d, model)
	same(t, clone, cloneModel)
	if _, err := r.s.Open(ctx, id, OpenOptions{Snapshot: "one"}); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("a removed snapshot opens: %v", err)
	}
	if a, b := epochs(d), epochs(clone); a[len(a)-1] == b[len(b)-1] {
		t.Error("image and clone seal under the same epoch")
	}
	r.close(d)
	r.close(clone)
}

func epochs(d *Disk) (ids []crypto.EpochID) {
	for _, e := range d.state().keys.Epochs {
		ids = append(ids, e.ID())
	}
	return ids
}

// to makes some recipients the only ones.
func to(recipients ...string) func([]string) ([]string, error) {
	return func([]string) ([]string, error) { return recipients, nil }
}
