package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
)

// diskKey names an image, or one of its snapshots.
type diskKey struct {
	id       blockstore.ImageID
	snapshot string
}

// use says how long a disk is wanted.
type use int

const (
	glance use = iota // a look at it: who claims it waits
	holds             // a handle or an operation: who claims it is refused
	alone             // holds, beside no other than glances
)

// disks keeps one Disk for each image and snapshot in use and shares it among
// all who want it. A disk whose last user has gone is closed, which commits it.
type disks struct {
	shared *image.Shared
	unlock func() error // reads the identities: a wrong passphrase is told as such
	log    *slog.Logger

	mu      sync.Mutex
	quiet   *sync.Cond // refs of some disk fell to 0
	open    map[diskKey]*sharedDisk
	claimed map[diskKey]bool // it is being removed; with an image all its snapshots are
}

// sharedDisk is locked before disks.mu.
type sharedDisk struct {
	mu   sync.Mutex // held while the disk is opened or closed
	disk *image.Disk

	refs, holders int  // guarded by disks.mu
	alone         bool // likewise: its only holder wants no other
}

func newDisks(s *image.Shared, unlock func() error, log *slog.Logger) *disks {
	d := &disks{shared: s, unlock: unlock, log: log, open: map[diskKey]*sharedDisk{}, claimed: map[diskKey]bool{}}
	d.quiet = sync.NewCond(&d.mu)
	return d
}

// acquire opens a disk or shares the open one. The release that it returns must
// be called once.
func (d *disks) acquire(ctx context.Context, key diskKey, u use) (*image.Disk, func(context.Context) error, error) {
	e, err := d.enter(key, u)
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.disk == nil {
		disk, err := d.openDisk(ctx, key)
		if err != nil {
			d.leave(key, e, u)
			return nil, nil, err
		}
		e.disk = disk
	}
	return e.disk, func(ctx context.Context) error { return d.release(ctx, key, e, u) }, nil
}

// enter takes a reference, which keeps others' claims away.
func (d *disks) enter(key diskKey, u use) (*sharedDisk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.open[key]
	switch {
	case d.claimed[diskKey{id: key.id}] || d.claimed[key] || e != nil && e.alone && u != glance:
		return nil, &Error{
			Code: CodeInUse, Message: "the image is in use by an operation that needs it alone",
			Hint: "try again when the operation on it is done", cause: image.ErrInUse,
		}
	case u == alone && d.heldLocked(key):
		return nil, inUse("the image")
	}
	if e == nil {
		e = &sharedDisk{}
		d.open[key] = e
	}
	e.refs++
	if u != glance {
		e.holders++
	}
	e.alone = e.alone || u == alone
	return e, nil
}

// openDisk opens an image for writing; one whose lease is elsewhere read-only.
func (d *disks) openDisk(ctx context.Context, key diskKey) (*image.Disk, error) {
	if err := d.unlock(); err != nil {
		return nil, err
	}
	disk, err := d.shared.Open(ctx, key.id, image.OpenOptions{Snapshot: key.snapshot, ReadOnly: key.snapshot != ""})
	if errors.Is(err, image.ErrNotHolder) {
		disk, err = d.shared.Open(ctx, key.id, image.OpenOptions{ReadOnly: true})
	}
	return disk, err
}

func (d *disks) release(ctx context.Context, key diskKey, e *sharedDisk, u use) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	d.mu.Lock()
	last := e.refs == 1
	d.mu.Unlock()
	var err error
	if last {
		// Whoever comes now waits for e.mu and opens it again.
		err = e.disk.Close(context.WithoutCancel(ctx))
		e.disk = nil
	}
	d.leave(key, e, u)
	if err != nil {
		d.log.Error("closing an image failed", "image", key.id, "err", err)
		return fmt.Errorf("daemon: close: %w", err)
	}
	return nil
}

// leave gives one reference back; e.mu is held.
func (d *disks) leave(key diskKey, e *sharedDisk, u use) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.refs--
	if u != glance {
		e.holders--
	}
	if u == alone {
		e.alone = false
	}
	if e.refs == 0 {
		delete(d.open, key)
		d.quiet.Broadcast()
	}
}

// claim keeps everybody out of a snapshot, or of an image with its snapshots,
// until release: nothing of it is open when it returns. It is refused while a
// handle or an operation has one of them.
func (d *disks) claim(key diskKey, name string) (release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claimed[key] || d.heldLocked(key) {
		return nil, inUse(name)
	}
	d.claimed[key] = true
	for d.openLocked(key) {
		d.quiet.Wait()
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.claimed, key)
	}, nil
}

func inUse(name string) *Error {
	return &Error{Code: CodeInUse, Message: name + " is in use", Hint: "close its files, or wait for the operation on it", cause: image.ErrInUse}
}

// covers says whether other is key, or a snapshot of the image that key is.
func (key diskKey) covers(other diskKey) bool {
	return key == other || key.snapshot == "" && key.id == other.id
}

func (d *disks) heldLocked(key diskKey) bool {
	for other, e := range d.open {
		if key.covers(other) && e.holders > 0 {
			return true
		}
	}
	return false
}

func (d *disks) openLocked(key diskKey) bool {
	for other := range d.open {
		if key.covers(other) {
			return true
		}
	}
	return false
}

// held says whether a handle or an operation uses the snapshot, or the image or
// one of its snapshots.
func (d *disks) held(key diskKey) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.heldLocked(key)
}
