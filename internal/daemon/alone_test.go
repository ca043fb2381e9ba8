package daemon

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/record"
)

// keyOf gives the key of NAME or NAME@SNAP.
func keyOf(t *testing.T, c *Conn, name string) diskKey {
	t.Helper()
	_, key, err := c.local.find(name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestAnchorBehind: what is listed stays whole when the anchor of the catalogue
// cannot be written after it, and the next change brings the anchor up.
func TestAnchorBehind(t *testing.T) {
	o := newStore(t)
	c := connect(t, o)
	anchors, err := filepath.Glob(filepath.Join(o.Home, "anchor", "*"))
	if err != nil || len(anchors) != 1 {
		t.Fatalf("anchors %q, %v", anchors, err)
	}
	inTheWay := filepath.Join(anchors[0], ".catalogue") // of the file that becomes it
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	importStream(t, c, "a", make([]byte, 1<<20))
	if l := must[[]Listed](t, c, OpList, Nothing{}); len(l) != 1 || l[0].Error != "" {
		t.Errorf("listed %+v, want a", l)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	must[Nothing](t, c, OpRename, NewNameRequest{"a", "b"})
	seen, err := c.local.names.anchor.Catalogue()
	if err != nil || seen != c.local.names.now.Counter {
		t.Errorf("the anchor has seen %d, want %d, %v", seen, c.local.names.now.Counter, err)
	}
}

// TestAlone: who wants an image without other handles gets it beside glances
// only, and nobody else opens it until it is done.
func TestAlone(t *testing.T) {
	ctx := context.Background()
	c := connect(t, newStore(t))
	importStream(t, c, "a", make([]byte, 4096))
	d, key := c.local.disks, keyOf(t, c, "a")
	_, release, err := d.acquire(ctx, key, holds)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.acquire(ctx, key, alone); !errors.Is(err, image.ErrInUse) {
		t.Errorf("beside a handle: got %v, want %v", err, image.ErrInUse)
	}
	if err := release(ctx); err != nil {
		t.Fatal(err)
	}
	_, release, err = d.acquire(ctx, key, alone)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []use{holds, alone} {
		if _, _, err := d.acquire(ctx, key, u); !errors.Is(err, image.ErrInUse) {
			t.Errorf("use %d: got %v, want %v", u, err, image.ErrInUse)
		}
	}
	if _, err := d.claim(key, "a"); !errors.Is(err, image.ErrInUse) {
		t.Errorf("claim: got %v, want %v", err, image.ErrInUse)
	}
	must[Info](t, c, OpInfo, NameRequest{Name: "a"})
	if err := release(ctx); err != nil {
		t.Fatal(err)
	}
	must[Nothing](t, c, OpSnapshot, NameRequest{Name: "a@s"})
}

// TestUpdateAlone: while an image is brought up to date no mount opens it.
func TestUpdateAlone(t *testing.T) {
	ctx := context.Background()
	c := connect(t, newStore(t))
	importStream(t, c, "a", make([]byte, 1<<20))
	path := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	lib := &library{d: c.local}
	opens := 0
	in := &importing{d: c.local, r: ImportRequest{Name: "a", Path: path, Update: true}, c: &call{emit: func(Event) {
		opens++
		if _, _, err := lib.Open(ctx, "a", true); !errors.Is(err, image.ErrInUse) {
			t.Errorf("meanwhile: got %v, want %v", err, image.ErrInUse)
		}
		if e, err := lib.Stat(ctx, "a"); err != nil || e.Size != 1<<20 {
			t.Errorf("meanwhile: size %d, %v", e.Size, err)
		}
	}}}
	if err := in.prepare(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.update(ctx); err != nil {
		t.Fatal(err)
	}
	if opens == 0 {
		t.Error("the update was not seen")
	}
	_, release, err := lib.Open(ctx, "a", true)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, c, OpImport, in.r, CodeInUse)
	if err := release(ctx); err != nil {
		t.Error(err)
	}
}

// TestExportCollector: the collector waits for an export.
func TestExportCollector(t *testing.T) {
	c := connect(t, newStore(t))
	importStream(t, c, "a", bytes.Repeat([]byte{1}, 1<<20))
	reports := 0
	progress := &call{emit: func(Event) {
		reports++
		if c.local.growing.TryAcquire(allGrowing) {
			t.Error("the collector could run")
			c.local.growing.Release(allGrowing)
		}
	}}
	if _, err := c.local.export(context.Background(), progress, ExportRequest{Name: "a", Path: filepath.Join(t.TempDir(), "out")}); err != nil {
		t.Fatal(err)
	}
	if reports == 0 {
		t.Error("the export was not seen")
	}
}

// TestRemoveSnapshotAlone: a snapshot goes when nobody has it, and nobody opens
// it while it goes.
func TestRemoveSnapshotAlone(t *testing.T) {
	ctx := context.Background()
	c := connect(t, newStore(t))
	importStream(t, c, "a", make([]byte, 4096))
	must[Nothing](t, c, OpSnapshot, NameRequest{Name: "a@s"})
	d, key := c.local.disks, keyOf(t, c, "a@s")
	_, release, err := d.acquire(ctx, key, holds)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, c, OpRemove, NameRequest{Name: "a@s"}, CodeInUse)
	if err := release(ctx); err != nil {
		t.Fatal(err)
	}
	unclaim, err := d.claim(key, "a@s")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []use{glance, holds} {
		if _, _, err := d.acquire(ctx, key, u); !errors.Is(err, image.ErrInUse) {
			t.Errorf("use %d: got %v, want %v", u, err, image.ErrInUse)
		}
	}
	must[Info](t, c, OpInfo, NameRequest{Name: "a"})
	unclaim()
	must[Nothing](t, c, OpRemove, NameRequest{Name: "a@s"})
}

// TestStaleLook: a look that was begun before a change is not remembered, and an
// image is not removed with snapshots that a remembered look has not seen.
func TestStaleLook(t *testing.T) {
	c := connect(t, newStore(t))
	importStream(t, c, "a", make([]byte, 4096))
	key := keyOf(t, c, "a")
	k := &c.local.looks
	_, before, _ := k.get(key)
	k.forget(key)
	k.put(key, look{size: 1}, before)
	if _, _, known := k.get(key); known {
		t.Error("an old look is remembered")
	}
	must[Nothing](t, c, OpSnapshot, NameRequest{Name: "a@s"})
	_, now, _ := k.get(key)
	k.put(key, look{size: 4096, changed: time.Unix(0, 0)}, now) // without the snapshot
	refused(t, c, OpRemove, NameRequest{Name: "a"}, CodeInUse)
	must[Nothing](t, c, OpRemove, NameRequest{Name: "a", Force: true})
}

// TestRemoveUnseen: an image whose snapshots cannot be counted goes by force only.
func TestRemoveUnseen(t *testing.T) {
	ctx := context.Background()
	c := connect(t, newStore(t))
	if err := c.local.names.add(ctx, record.Entry{Name: "a", Image: blockstore.ImageID{1}}); err != nil {
		t.Fatal(err)
	}
	refused(t, c, OpRemove, NameRequest{Name: "a"}, CodeCorrupt)
	must[Nothing](t, c, OpRemove, NameRequest{Name: "a", Force: true})
}
