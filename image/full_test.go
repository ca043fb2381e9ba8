package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore"
)

// TestFullStore fills a small disk that holds the store: what was flushed can be read
// after a new start, and is committed once there is room.
func TestFullStore(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	r.stop()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=200m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.s != nil {
			r.stop()
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r.dir, r.reserve = dir, 64<<20
	if err := blockstore.Create(dir+"/store", r.storeOptions()); err != nil {
		t.Fatal(err)
	}
	r.start()
	id := r.create(256 << 20)
	d := r.open(id, OpenOptions{})
	var model []byte
	for i := range int64(256) {
		p := noise(1<<20, uint64(i))
		if _, err := d.WriteAt(ctx, p, i<<20); err != nil {
			break
		}
		if err := d.Flush(ctx); err != nil {
			break
		}
		model = append(model, p...)
	}
	if len(model) < 16<<20 || len(model) == 256<<20 {
		t.Fatalf("%d bytes fitted", len(model))
	}
	check := func(d *Disk) {
		t.Helper()
		got := make([]byte, len(model))
		if _, err := d.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, model) {
			t.Fatalf("what was flushed is not there: %v", err)
		}
	}
	check(d)
	d.abandon()
	r.stop() // or it would give its reserve to the filler
	filler, err := os.Create(dir + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	for err == nil {
		_, err = filler.Write(b)
	}
	if err := filler.Close(); err != nil {
		t.Fatal(err)
	}
	r.start()
	d = r.open(id, OpenOptions{})
	check(d)
	if err := d.Close(ctx); err != nil && !errors.Is(err, blockstore.ErrNoSpace) {
		t.Errorf("close: %v", err)
	}
	r.stop()
	if err := os.Remove(dir + "/filler"); err != nil {
		t.Fatal(err)
	}
	r.start()
	d = r.open(id, OpenOptions{})
	check(d)
	r.close(d)
}
