package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/imagetest"
)

// sealed is a Library of real images in a store of its own. A disk stays open
// from its first handle to the next restart.
type sealed struct {
	dir       string
	host      image.Host
	recipient string

	mu    sync.Mutex
	s     *image.Shared
	ids   map[string]blockstore.ImageID
	disks map[string]*image.Disk
}

func newSealed(t *testing.T) *sealed {
	t.Helper()
	secret, recipient, err := crypto.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	identities, err := crypto.ParseIdentities(bytes.NewReader([]byte(secret)), crypto.Prompt{})
	if err != nil {
		t.Fatal(err)
	}
	l := &sealed{dir: t.TempDir(), recipient: recipient, ids: make(map[string]blockstore.ImageID),
		// A small bound on dirty bytes makes commits happen under way.
		host: image.Host{Key: crypto.NewHostKey(), Identities: []age.Identity{identities[0]},
			Log: slog.New(slog.DiscardHandler), Now: time.Now, DirtyBytes: 8 << 20, CacheBytes: 8 << 20}}
	if err := blockstore.Create(filepath.Join(l.dir, "store"), l.storeOptions()); err != nil {
		t.Fatal(err)
	}
	if err := l.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.stop(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *sealed) storeOptions() blockstore.Options {
	return blockstore.Options{Logger: slog.New(slog.DiscardHandler), Reserve: 1 << 20}
}

func (l *sealed) start() (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.host.Store, err = blockstore.Open(context.Background(), filepath.Join(l.dir, "store"), l.storeOptions()); err != nil {
		return err
	}
	if l.host.Anchor, err = anchor.Open(filepath.Join(l.dir, "home"), l.host.Store.ID()); err != nil {
		return err
	}
	l.disks = make(map[string]*image.Disk)
	l.s, err = image.NewShared(l.host)
	return err
}

func (l *sealed) stop() (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.disks {
		err = errors.Join(err, d.Close(context.Background()))
	}
	return errors.Join(err, l.host.Store.Close())
}

func (l *sealed) add(t *testing.T, name string, size int64) {
	t.Helper()
	b, err := l.s.Build(t.Context(), image.CreateOptions{Size: size, BlockSize: 64 << 10, Compression: record.S2,
		Labels: map[string]string{"name": name}, Recipients: []string{l.recipient}, Admins: []string{l.recipient}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids[name] = id
}

func (l *sealed) diskLocked(ctx context.Context, name string) (*image.Disk, error) {
	id, ok := l.ids[name]
	if !ok {
		return nil, ErrNoImage
	}
	if d := l.disks[name]; d != nil {
		return d, nil
	}
	d, err := l.s.Open(ctx, id, image.OpenOptions{})
	if err == nil {
		l.disks[name] = d
	}
	return d, err
}

func (l *sealed) Stat(ctx context.Context, name string) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.diskLocked(ctx, name)
	if err != nil {
		return Entry{}, err
	}
	id := d.ID()
	return Entry{Name: name, Inode: uint64(id[0])<<8 | uint64(id[1]) | 1<<32, Size: d.Size(), ModTime: d.ModTime()}, nil
}

func (l *sealed) List(ctx context.Context) (list []Entry, err error) {
	for name := range l.ids {
		e, err := l.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func (l *sealed) Open(ctx context.Context, name string, _ bool) (Disk, func(context.Context) error, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := l.diskLocked(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	return d, func(context.Context) error { return nil }, nil
}

func (l *sealed) Space(context.Context) (total, free int64, err error) {
	free, total, err = l.host.Store.Free()
	return total, free, err
}

// mountSealed mounts real images; remount ends and begins everything, the store included.
func mountSealed(t *testing.T) (l *sealed, dir string, remount func() error) {
	t.Helper()
	l = newSealed(t)
	o := Options{Dir: t.TempDir(), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	s, err := Mount(t.Context(), l, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l, o.Dir, func() error {
		if err := s.Unmount(context.Background()); err != nil {
			return err
		}
		if err := l.stop(); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		if err := l.start(); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		var err error
		s, err = Mount(context.Background(), l, o)
		return err
	}
}

// TestSealedContract holds real images behind a mount to the contract.
func TestSealedContract(t *testing.T) {
	l, dir, remount := mountSealed(t)
	for _, c := range imagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			l.add(t, c.Name, c.Size)
			err := imagetest.Child(t.Context(), imagetest.Job{Do: "contract", Case: c.Name, Path: filepath.Join(dir, c.Name), Remount: remount})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSealedModel does random operations on a real image across restarts.
func TestSealedModel(t *testing.T) {
	l, dir, remount := mountSealed(t)
	l.add(t, "disk", 48<<20+4321)
	ops := imagetest.Ops(8000)
	err := imagetest.Child(t.Context(), imagetest.Job{Do: "model", Path: filepath.Join(dir, "disk"), Remount: remount,
		ModelOptions: imagetest.ModelOptions{Seed: 1, Ops: ops, MaxSize: 64 << 20, Reopens: 4 + ops/20000}})
	if err != nil {
		t.Error(err)
	}
}

// TestSealedParallel lets neighbours share the sectors of a real image.
func TestSealedParallel(t *testing.T) {
	l, dir, remount := mountSealed(t)
	l.add(t, "disk", 20<<20+99)
	err := imagetest.Child(t.Context(), imagetest.Job{Do: "parallel", Path: filepath.Join(dir, "disk"), Remount: remount,
		ModelOptions: imagetest.ModelOptions{Seed: 5, Ops: imagetest.Ops(8000), Workers: 6}})
	if err != nil {
		t.Error(err)
	}
}
