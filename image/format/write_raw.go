package format

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RawWriter writes a raw image, as a sparse file or to a block device. See
// Writer for what may be called when.
type RawWriter struct {
	f       *os.File
	size    int64
	file    *pending     // nil for a device
	covered atomic.Int64 // bytes of a device that were written or zeroed
	closed  bool
}

// rawHole is the grid on which zeros are left out of a file.
const rawHole = 4096

// CreateRaw starts a raw export of size bytes at path. A block device must
// be at least that large and not be in use.
func CreateRaw(path string, size int64, force bool) (*RawWriter, error) {
	w, err := createRaw(path, size, force)
	if err != nil {
		return nil, fmt.Errorf("format: create raw: %w", err)
	}
	return w, nil
}

func createRaw(path string, size int64, force bool) (*RawWriter, error) {
	if size < 0 {
		return nil, fmt.Errorf("negative size %d", size)
	}
	if fi, err := os.Stat(path); err == nil && fi.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
		if !force {
			return nil, &os.PathError{Op: "write to device", Path: path, Err: fs.ErrExist}
		}
		return createOnDevice(path, size)
	}
	p, err := createPending(path, force)
	if err != nil {
		return nil, err
	}
	if err := p.f.Truncate(size); err != nil {
		return nil, errors.Join(err, p.abort())
	}
	return &RawWriter{f: p.f, size: size, file: p}, nil
}

func createOnDevice(path string, size int64) (*RawWriter, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("device %s: %w: it is mounted or belongs to a volume", path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	have, err := deviceSize(f)
	if err == nil && have < size {
		err = fmt.Errorf("device %s has %d bytes, the image %d: %w", path, have, size, unix.ENOSPC)
	}
	if err == nil {
		err = checkWriters(f)
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return &RawWriter{f: f, size: size}, nil
}

// WriteAt writes p. In a file its zeros become holes.
func (w *RawWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), w.size); err != nil {
		return 0, err
	}
	if w.file == nil {
		n, err := w.f.WriteAt(p, off)
		w.covered.Add(int64(n))
		return n, wrapWrite(err)
	}
	for n := 0; n < len(p); {
		k, zero := zeroRun(p[n:], off+int64(n), rawHole)
		if !zero {
			if done, err := w.f.WriteAt(p[n:n+k], off+int64(n)); err != nil {
				return n + done, wrapWrite(err)
			}
		}
		n += k
	}
	w.file.writeBack(off, int64(len(p)))
	return len(p), nil
}

// zeroRun gives the length of the longest beginning of p, which stands at
// off, whose pieces on a grid are all zeros, or all not.
func zeroRun(p []byte, off, grid int64) (n int, zero bool) {
	for n < len(p) {
		k := min(len(p)-n, int(grid-(off+int64(n))%grid))
		z := allZero(p[n : n+k])
		if n > 0 && z != zero {
			break
		}
		zero = z
		n += k
	}
	return n, zero
}

// WriteZeros leaves a hole in a file; a device is told to zero the range.
func (w *RawWriter) WriteZeros(off, n int64) error {
	if err := checkRange(off, n, w.size); err != nil {
		return err
	}
	if w.file != nil || n == 0 {
		return nil
	}
	if err := zeroDevice(w.f, off, n); err != nil {
		return wrapWrite(err)
	}
	w.covered.Add(n)
	return nil
}

// zeroDevice uses the device's own means on whole sectors and writes zeros
// where it has none.
func zeroDevice(f *os.File, off, n int64) error {
	const grid = 4096
	if off%grid == 0 && n%grid == 0 {
		r := [2]uint64{uint64(off), uint64(n)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&r)))
		if errno == 0 {
			return nil
		}
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k, err := f.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// Commit makes the image durable and gives a file its name.
func (w *RawWriter) Commit() error {
	if w.file != nil {
		return wrapWrite(w.file.commit())
	}
	if got := w.covered.Load(); got != w.size {
		// Old content of the device would show in what was left out.
		return fmt.Errorf("format: write raw: %d bytes of %d were written to the device", got, w.size)
	}
	if err := w.f.Sync(); err != nil {
		return wrapWrite(err)
	}
	w.closed = true
	return wrapWrite(w.f.Close())
}

// Abort removes a file that was not committed.
func (w *RawWriter) Abort() error {
	if w.file != nil {
		return wrapWrite(w.file.abort())
	}
	if w.closed {
		return nil
	}
	w.closed = true
	return wrapWrite(w.f.Close())
}

func wrapWrite(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("format: write: %w", err)
}
