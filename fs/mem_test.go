package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/image"
)

// memDisk is a Disk in memory. Its sectors are never changed in place, so slices
// that it gave away stay as they were.
type memDisk struct {
	mu      sync.RWMutex
	size    int64
	time    time.Time
	sectors map[int64][]byte
	fail    func(op string, off int64) error // may be nil
	gate    func(op string)                  // called before a write and after a read; may be nil
	reads   int
	flushes int
	closes  int
}

// Closing implements Closer.
func (d *memDisk) Closing(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closes++
	return d.failing("close", 0)
}

var zeroSector = make([]byte, sectorSize)

func newMemDisk(size int64) *memDisk {
	return &memDisk{size: size, time: time.Unix(1_700_000_000, 0), sectors: make(map[int64][]byte)}
}

// failWith makes every operation ask f first.
func (d *memDisk) failWith(f func(op string, off int64) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = f
}

// gateWith makes writes and reads pass through f.
func (d *memDisk) gateWith(f func(op string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = f
}

func (d *memDisk) pass(op string) {
	d.mu.RLock()
	gate := d.gate
	d.mu.RUnlock()
	if gate != nil {
		gate(op)
	}
}

func (d *memDisk) failing(op string, off int64) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op, off)
}

func (d *memDisk) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.size
}

func (d *memDisk) ModTime() time.Time {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.time
}

func (d *memDisk) sector(i int64) []byte {
	if s := d.sectors[i]; s != nil {
		return s
	}
	return zeroSector
}

func (d *memDisk) ReadVector(_ context.Context, off int64, n int) (v [][]byte, err error) {
	defer d.pass("read")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	if err := d.failing("read", off); err != nil {
		return nil, err
	}
	if off >= d.size {
		return nil, io.EOF
	}
	for end := min(off+int64(n), d.size); off < end; {
		in := off % sectorSize
		part := d.sector(off / sectorSize)[in:min(sectorSize, in+end-off)]
		v = append(v, part)
		off += int64(len(part))
	}
	return v, nil
}

func (d *memDisk) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	d.pass("write")
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failing("write", off); err != nil {
		return 0, err
	}
	if off+int64(len(p)) > d.size {
		return 0, image.ErrTooLarge
	}
	d.put(p, off)
	d.time = d.time.Add(time.Millisecond)
	return len(p), nil
}

func (d *memDisk) put(p []byte, off int64) {
	for len(p) > 0 {
		i, in := off/sectorSize, off%sectorSize
		s := slices.Clone(d.sector(i))
		n := copy(s[in:], p)
		d.sectors[i] = s
		p, off = p[n:], off+int64(n)
	}
}

func (d *memDisk) Discard(_ context.Context, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failing("discard", off); err != nil {
		return err
	}
	if off < 0 || n < 0 || off+n > d.size {
		return fmt.Errorf("discard [%d, +%d) of %d", off, n, d.size)
	}
	for end := off + n; off < end; {
		in := off % sectorSize
		part := min(sectorSize-in, end-off)
		if part == sectorSize {
			delete(d.sectors, off/sectorSize)
		} else {
			d.put(zeroSector[:part], off)
		}
		off += part
	}
	return nil
}

func (d *memDisk) Flush(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	return d.failing("flush", 0)
}

func (d *memDisk) Resize(_ context.Context, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if size < d.size {
		return image.ErrShrink
	}
	d.size = size
	return nil
}

func (d *memDisk) Next(_ context.Context, off int64) (image.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if off >= d.size {
		return image.Extent{}, io.EOF
	}
	i := off / sectorSize
	_, data := d.sectors[i]
	return image.Extent{Offset: i * sectorSize, Length: min(sectorSize, d.size-i*sectorSize), Data: data}, nil
}

func (d *memDisk) counts() (reads, flushes int) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.reads, d.flushes
}

// memLibrary is a Library of memDisks. A name with "@" is read-only.
type memLibrary struct {
	mu     sync.Mutex
	disks  map[string]*memDisk
	inodes map[*memDisk]uint64
	open   int // handles not released yet
	refuse error
}

func newMemLibrary() *memLibrary {
	return &memLibrary{disks: make(map[string]*memDisk), inodes: make(map[*memDisk]uint64)}
}

func (l *memLibrary) add(name string, size int64) *memDisk {
	d := newMemDisk(size)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disks[name] = d
	l.inodes[d] = uint64(len(l.inodes)) + 100
	return d
}

func (l *memLibrary) rename(name, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.disks[name]; d != nil && to != "" {
		l.disks[to] = d
	}
	delete(l.disks, name)
}

func (l *memLibrary) handles() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

func (l *memLibrary) entryLocked(name string) (Entry, error) {
	d := l.disks[name]
	if d == nil {
		return Entry{}, fmt.Errorf("memory: %w: %s", ErrNoImage, name)
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return Entry{Name: name, Inode: l.inodes[d], Size: d.size, Stored: int64(len(d.sectors)) * sectorSize,
		ModTime: d.time, ReadOnly: strings.Contains(name, "@")}, nil
}

func (l *memLibrary) List(context.Context) (list []Entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range maps.Keys(l.disks) {
		e, err := l.entryLocked(name)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func (l *memLibrary) Stat(_ context.Context, name string) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entryLocked(name)
}

func (l *memLibrary) Open(_ context.Context, name string, write bool) (Disk, func(context.Context) error, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := l.entryLocked(name)
	if err == nil && write {
		err = l.refuse
		if e.ReadOnly {
			err = image.ErrReadOnly
		}
	}
	if err != nil {
		return nil, nil, err
	}
	l.open++
	released := false
	return l.disks[name], func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if released {
			return errors.New("memory: released twice")
		}
		released = true
		l.open--
		return nil
	}, nil
}

func (l *memLibrary) Space(context.Context) (total, free int64, err error) {
	return 1 << 40, 1 << 38, nil
}
