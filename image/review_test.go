package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/audit"
)

func TestStalledUnbounded(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.dirty = 4 << 20
	r.start()
	ctx := context.Background()
	x := r.create(256 << 20)
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
	d = r.open(x, OpenOptions{})
	var errs int
	for i := range int64(128) {
		if _, err := d.WriteAt(ctx, noise(1<<20, 1), i<<20); err != nil {
			errs++
		}
		if i == 3 {
			for d.stall.Load() == nil {
				runtime.Gosched()
			}
		}
	}
	t.Logf("errors %d; dirty %d MiB of a bound of %d MiB", errs, r.s.dirty.Load()>>20, r.s.DirtyBytes>>20)
	if r.s.dirty.Load() > 2*r.s.DirtyBytes {
		t.Error("unbounded")
	}
}

func TestCollectBesideWriter(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(256 << 20)
	d := r.open(id, OpenOptions{})
	d.WriteAt(ctx, noise(64<<20, 1), 0)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d.WriteAt(ctx, noise(4096, uint64(i)), (i%60)<<20)
			if err := d.Commit(ctx); err != nil {
				t.Error(err)
				return
			}
		}
	})
	end := time.Now().Add(3 * time.Second)
	n, bad, headbad := 0, 0, 0
	for time.Now().Before(end) {
		n++
		if _, err := r.s.Store.Collect(ctx, blockstore.CollectOptions{}); err != nil {
			bad++
			if bad < 4 {
				t.Log(err)
			}
		}
		for range 200 {
			if _, _, err := r.s.Store.Head(id); err != nil {
				headbad++
				if headbad < 3 {
					t.Log("head", err)
				}
			}
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d collections, %d failed; head failed %d", n, bad, headbad)
	if bad+headbad > 0 {
		t.Fail()
	}
}

func TestVerifyThenOpen(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(64 << 20)
	d := r.open(id, OpenOptions{})
	d.WriteAt(ctx, noise(32<<20, 1), 0)
	r.close(d)
	once := false
	var faults int
	err := r.s.Verify(ctx, id, func(f audit.Fault) {
		faults++
		if faults < 3 {
			t.Log(f.Error())
		}
	}, func(int64, int64) {
		if !once {
			once = true
			d = r.open(id, OpenOptions{})
			d.WriteAt(ctx, noise(32<<20, 2), 0)
			if err := d.Commit(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || faults > 0 {
		t.Error(err, faults)
	}
}

func TestStallStays(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(64 << 20)
	d := r.open(id, OpenOptions{})
	e := errors.New("full")
	d.stall.Store(&e) // the background commit had no room
	d.WriteAt(ctx, noise(4096, 1), 0)
	if err := d.Commit(ctx); err != nil { // space is there again
		t.Fatal(err)
	}
	if d.stalled() != nil {
		t.Error("stalled after a commit that succeeded")
	}
}

func TestCollectMidMark(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(1 << 30)
	d := r.open(id, OpenOptions{})
	for i := range int64(64) {
		d.WriteAt(ctx, noise(4096, uint64(i)), i<<24)
	}
	if err := d.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	n := 0
	_, err := r.s.Store.Collect(ctx, blockstore.CollectOptions{Progress: func(blockstore.CollectStats) {
		if n++; n == 10 { // one guest write committed while the mark is under way
			d.WriteAt(ctx, noise(4096, 99), 60<<24)
			if err := d.Commit(ctx); err != nil {
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Error("collect:", err)
	}
}

// TestGuardOpening: a guard meets a disk that has no version yet.
func TestGuardOpening(t *testing.T) {
	r := newRig(t)
	id := r.create(1 << 20)
	h, mark, err := r.s.load(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	_ = h
	d := &Disk{s: r.s, id: id, mark: mark, merges: map[uint64]wear{}, kicks: make(chan struct{}, 1)}
	if err := r.s.enter(d); err != nil { // open.go: Open, before start
		t.Fatal(err)
	}
	defer func() {
		if p := recover(); p != nil {
			t.Error("panic:", p)
		}
	}()
	r.s.Guard(id)()
}

func TestEmptiedJournal(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	d := r.open(id, OpenOptions{})
	no, cancel := context.WithCancel(ctx)
	cancel()
	first := noise(4096, 1)
	d.WriteAt(ctx, first, 0)
	if err := d.Flush(ctx); err != nil { // acknowledged
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
	path := filepath.Join(r.dir, "store", "journal", id.String(), ns[0].String())
	r.stop()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{0xff}, 4096+100) // one byte of the record
	f.Close()
	r.start()
	d, err = r.s.Open(ctx, id, OpenOptions{})
	if err != nil {
		return
	}
	got, second := make([]byte, 4096), make([]byte, 4096)
	d.ReadAt(ctx, got, 0)
	d.ReadAt(ctx, second, 8192)
	t.Errorf("opens; first flushed write is there: %v, second: %v", bytes.Equal(got, first), bytes.Equal(second, noise(4096, 2)))
	r.close(d)
}

func TestOpenRace(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.dirty = 4 << 20
	r.start()
	ctx := context.Background()
	x, y := r.create(16<<20), r.create(16<<20)
	d := r.open(x, OpenOptions{})
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for i := range int64(60) {
			d.WriteAt(ctx, noise(1<<20, 1), i%16<<20)
		}
	}()
	for {
		select {
		case <-stop:
			r.close(d)
			return
		default:
		}
		r.close(r.open(y, OpenOptions{}))
	}
}

func TestOpenBesideClose(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	id := r.create(16 << 20)
	var wg sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	for g := range int64(3) {
		wg.Go(func() {
			var last []byte
			for n := uint64(1); time.Now().Before(end); n++ {
				d, err := r.s.Open(ctx, id, OpenOptions{})
				if errors.Is(err, ErrInUse) {
					continue
				}
				if err != nil {
					t.Error("open:", err)
					return
				}
				got := make([]byte, 4096)
				d.ReadAt(ctx, got, g*8192)
				if last != nil && !bytes.Equal(got, last) {
					t.Errorf("writer %d: what it wrote, flushed and closed is gone", g)
					d.Close(ctx)
					return
				}
				last = noise(4096, n<<8|uint64(g))
				d.WriteAt(ctx, last, g*8192)
				if err := errors.Join(d.Flush(ctx), d.Close(ctx)); err != nil {
					t.Error("close:", err)
					return
				}
			}
		})
	}
	wg.Wait()
}
