package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/fs"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/record"
)

// library is what one mount shows of the store.
type library struct {
	d        *Daemon
	only     []string // names of images to show; nil: all
	readOnly bool
}

// look is what a listing needs of a disk.
type look struct {
	size, allocated int64
	changed         time.Time
	readOnly        bool // and stays so: a lease that is elsewhere can be asked for
	snapshots       []record.Snapshot
}

var _ fs.Library = (*library)(nil)

func (l *library) shows(name string) bool { return l.only == nil || slices.Contains(l.only, name) }

// List implements fs.Library. An image that cannot be opened is left out, with a
// line in the log: its size is not known.
func (l *library) List(ctx context.Context) ([]fs.Entry, error) {
	var out []fs.Entry
	for _, e := range l.d.names.list() {
		if !l.shows(e.Name) || isReplica(e) {
			continue
		}
		at, err := l.d.look(ctx, diskKey{id: e.Image})
		if err != nil {
			l.d.log.Warn("image not shown", "image", e.Name, "err", err)
			continue
		}
		out = append(out, l.entry(e.Name, diskKey{id: e.Image}, at))
		for _, s := range at.snapshots {
			key := diskKey{id: e.Image, snapshot: s.Name}
			if at, err := l.d.look(ctx, key); err != nil {
				l.d.log.Warn("snapshot not shown", "image", e.Name, "snapshot", s.Name, "err", err)
			} else {
				out = append(out, l.entry(e.Name+"@"+s.Name, key, at))
			}
		}
	}
	return out, nil
}

// Stat implements fs.Library.
func (l *library) Stat(ctx context.Context, name string) (fs.Entry, error) {
	key, err := l.key(name)
	if err != nil {
		return fs.Entry{}, err
	}
	at, err := l.d.look(ctx, key)
	if err != nil {
		return fs.Entry{}, err
	}
	return l.entry(name, key, at), nil
}

func (l *library) key(name string) (diskKey, error) {
	base, snapshot, err := splitName(name)
	if err != nil {
		return diskKey{}, fmt.Errorf("daemon: %q: %w", name, fs.ErrNoImage)
	}
	e, err := l.d.names.find(base)
	if err != nil || e.Name != base || !l.shows(base) {
		return diskKey{}, fmt.Errorf("daemon: %q: %w", name, fs.ErrNoImage)
	}
	return diskKey{id: e.Image, snapshot: snapshot}, nil
}

func (l *library) entry(name string, key diskKey, at look) fs.Entry {
	return fs.Entry{
		Name: name, Inode: inode(key), Size: at.size, Stored: min(at.allocated, at.size),
		ModTime: at.changed, ReadOnly: l.readOnly || at.readOnly,
	}
}

// inode is a number that stays with an image or snapshot.
func inode(key diskKey) uint64 {
	h := sha256.New()
	h.Write(key.id[:])
	h.Write([]byte(key.snapshot))
	n := binary.BigEndian.Uint64(h.Sum(nil))
	if n <= 1 || n == 1<<64-1 {
		n = 2
	}
	return n
}

// Open implements fs.Library.
func (l *library) Open(ctx context.Context, name string, write bool) (fs.Disk, func(context.Context) error, error) {
	key, err := l.key(name)
	if err != nil {
		return nil, nil, err
	}
	if write && l.readOnly {
		return nil, nil, fmt.Errorf("daemon: the mount is read-only: %w", image.ErrReadOnly)
	}
	disk, release, err := l.d.disks.acquire(ctx, key, holds)
	if err != nil {
		return nil, nil, err
	}
	if !write {
		return disk, release, nil
	}
	if key.snapshot != "" {
		return nil, nil, errors.Join(fmt.Errorf("daemon: %s: %w", name, image.ErrReadOnly), release(ctx))
	}
	h := l.d.writers.Open(key.id, disk) // from here on the lease stays, if it is here
	if disk.ReadOnly() {
		if err := l.d.promote(ctx, key, disk); err != nil {
			h.Close()
			l.d.log.Warn("not opened for writing", "image", name, "err", err)
			if errors.Is(err, image.ErrNotHolder) {
				err = fmt.Errorf("%w: %w", image.ErrReadOnly, err)
			}
			return nil, nil, errors.Join(fmt.Errorf("daemon: %s: %w", name, err), release(ctx))
		}
	}
	disk.Record() // a guest starts
	return h, func(ctx context.Context) error {
		h.Close()
		err := release(ctx)
		l.d.looks.forget(key)
		return err
	}, nil
}

// promote makes a disk writable whose lease is elsewhere: it asks the holder for it.
func (d *Daemon) promote(ctx context.Context, key diskKey, disk *image.Disk) error {
	began := time.Now()
	if err := d.peers.Acquire(ctx, key.id); err != nil {
		return err
	}
	acquired := time.Since(began)
	d.looks.forget(key)
	err := disk.Promote(ctx)
	d.log.Debug("an image was opened for writing", "lease", acquired, "in all", time.Since(began), "err", err)
	return err
}

// Space implements fs.Library.
func (l *library) Space(context.Context) (total, free int64, err error) {
	free, total, err = l.d.store.Free()
	return total, free, err
}

// looks remembers what disks looked like, so that listing a folder opens no image
// twice. What an operation or a writing handle may have changed is forgotten.
type looks struct {
	mu      sync.Mutex
	seen    map[diskKey]look
	forgets uint64
}

// get gives with it, for put, how much was forgotten so far.
func (k *looks) get(key diskKey) (at look, forgets uint64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok = k.seen[key]
	return at, k.forgets, ok
}

// put remembers a look that was begun after forgets: if anything was forgotten
// since, it may be older than a change.
func (k *looks) put(key diskKey, at look, forgets uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if forgets != k.forgets {
		return
	}
	if k.seen == nil {
		k.seen = map[diskKey]look{}
	}
	k.seen[key] = at
}

func (k *looks) forget(key diskKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgets++
	delete(k.seen, key)
}

// look looks at a disk. Size and time of one in use are as of now; what it
// allocates, for which the root of its map is opened, as of the last look.
func (d *Daemon) look(ctx context.Context, key diskKey) (look, error) {
	at, forgets, known := d.looks.get(key)
	if known && !d.disks.held(key) {
		return at, nil
	}
	disk, release, err := d.disks.acquire(ctx, key, glance)
	if err != nil {
		return look{}, err
	}
	if !known {
		at, err = lookInto(ctx, disk)
	}
	at.size, at.changed, at.readOnly = disk.Size(), disk.ModTime(), key.snapshot != "" || disk.Failed()
	if err == nil && !known {
		d.looks.put(key, at, forgets)
	}
	return at, errors.Join(err, release(ctx))
}

func lookInto(ctx context.Context, disk *image.Disk) (look, error) {
	info, err := disk.Info(ctx)
	if err != nil {
		return look{}, fmt.Errorf("daemon: %w", err)
	}
	return look{allocated: info.Allocated, snapshots: info.Snapshots}, nil
}
