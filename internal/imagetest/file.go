package imagetest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FileTarget is a file opened twice, buffered and with O_DIRECT.
type FileTarget struct {
	name             string
	align            int64
	remount          func() error
	buffered, direct *os.File
}

var _ Target = (*FileTarget)(nil)

// OpenFile opens a file. O_DIRECT requests that are not multiples of align bytes
// go through the buffered descriptor instead: 1 for a mount of ours, the logical
// block size for a plain file. remount is called while Reopen has the file closed; it may be nil.
func OpenFile(name string, align int64, remount func() error) (*FileTarget, error) {
	f := &FileTarget{name: name, align: align, remount: remount}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *FileTarget) open() (err error) {
	if f.buffered, err = os.OpenFile(f.name, os.O_RDWR, 0); err != nil {
		return err
	}
	if f.direct, err = os.OpenFile(f.name, os.O_RDWR|syscall.O_DIRECT, 0); err != nil {
		return errors.Join(err, f.buffered.Close())
	}
	return nil
}

// Paths gives buffered, O_DIRECT and mapped reading; the last writes buffered.
func (f *FileTarget) Paths() []ReadWriterAt {
	return []ReadWriterAt{f.buffered, directPath{f}, mappedPath{f}}
}

func (f *FileTarget) fallocate(mode uint32, off, n int64) error {
	return retry(func() error { return unix.Fallocate(int(f.direct.Fd()), mode, off, n) })
}

func (f *FileTarget) Discard(off, n int64) error {
	return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *FileTarget) Zero(off, n int64) error {
	return f.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
}

func (f *FileTarget) Sync() error           { return f.buffered.Sync() }
func (f *FileTarget) Grow(size int64) error { return f.buffered.Truncate(size) }

func (f *FileTarget) SeekData(off int64) (int64, error) { return f.seek(off, unix.SEEK_DATA) }
func (f *FileTarget) SeekHole(off int64) (int64, error) { return f.seek(off, unix.SEEK_HOLE) }

func (f *FileTarget) seek(off int64, whence int) (int64, error) {
	at, err := unix.Seek(int(f.buffered.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	return at, err
}

func (f *FileTarget) Size() (int64, error) {
	st, err := f.direct.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *FileTarget) Reopen() error {
	if err := f.Close(); err != nil {
		return err
	}
	if f.remount != nil {
		if err := f.remount(); err != nil {
			return err
		}
	}
	return f.open()
}

func (f *FileTarget) Close() error { return errors.Join(f.buffered.Close(), f.direct.Close()) }

// retry repeats what a signal of the Go runtime interrupted.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// directPath is O_DIRECT where the request allows it.
type directPath struct{ f *FileTarget }

func (d directPath) fits(p []byte, off int64) bool {
	return off%d.f.align == 0 && int64(len(p))%d.f.align == 0 && len(p) > 0
}

func (d directPath) ReadAt(p []byte, off int64) (int, error) {
	if !d.fits(p, off) {
		return d.f.buffered.ReadAt(p, off)
	}
	buf := aligned(len(p))
	n, err := d.f.direct.ReadAt(buf, off)
	copy(p, buf[:n])
	return n, err
}

func (d directPath) WriteAt(p []byte, off int64) (int, error) {
	if !d.fits(p, off) {
		return d.f.buffered.WriteAt(p, off)
	}
	buf := aligned(len(p))
	copy(buf, p)
	return d.f.direct.WriteAt(buf, off)
}

// aligned gives memory that starts on a page.
func aligned(n int) []byte {
	b := make([]byte, n+sector)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (sector - 1))
	return b[skip : skip+n]
}

// mappedPath reads through mmap(2).
type mappedPath struct{ f *FileTarget }

func (m mappedPath) WriteAt(p []byte, off int64) (int, error) { return m.f.buffered.WriteAt(p, off) }

func (m mappedPath) ReadAt(p []byte, off int64) (int, error) {
	size, err := m.f.Size()
	if err != nil {
		return 0, err
	}
	if off >= size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), size-off)
	start := off / sector * sector
	b, err := unix.Mmap(int(m.f.buffered.Fd()), start, int(off+n-start), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("mmap: %w", err)
	}
	copy(p[:n], b[off-start:])
	if err := unix.Munmap(b); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
