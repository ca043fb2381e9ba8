package format

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// input is an image's file or device, of the size that it had when it was
// opened. Safe for concurrent use.
type input struct {
	f      *os.File
	size   int64
	device bool
}

// openInput opens a regular file or a block device for reading and refuses
// one that is known to be written by someone else.
func openInput(path string) (*input, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case fi.Mode().IsRegular():
		return openFile(path)
	case fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0:
		return openDevice(path)
	case fi.IsDir():
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.EISDIR}
	}
	return nil, fmt.Errorf("%s is neither a regular file nor a block device: %w", path, ErrUnsupported)
}

func openFile(path string) (*input, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil {
		err = checkWriters(f)
	}
	if err != nil {
		_ = f.Close() // read only
		return nil, err
	}
	return &input{f: f, size: fi.Size()}, nil
}

// openDevice claims the device, so that nobody mounts or claims it while it
// is read. One that is claimed already is read only if nothing can write it.
func openDevice(path string) (*input, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		if err = deviceReadOnly(path); err != nil {
			return nil, err
		}
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, err
	}
	size, err := deviceSize(f)
	if err == nil {
		err = checkWriters(f)
	}
	if err != nil {
		_ = f.Close() // read only
		return nil, err
	}
	return &input{f: f, size: size, device: true}, nil
}

// deviceSize is the size in bytes of the block device f.
func deviceSize(f *os.File) (int64, error) {
	var size uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, fmt.Errorf("size of device %s: %w", f.Name(), errno)
	}
	if size > 1<<62 {
		return 0, fmt.Errorf("size of device %s: %d bytes: %w", f.Name(), size, ErrUnsupported)
	}
	return int64(size), nil
}

// checkWriters looks for the lock with which QEMU announces, by a shared
// open-file-description lock on byte 101, that it may write a file.
func checkWriters(f *os.File) error {
	const qemuWriteLock = 101
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: qemuWriteLock, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return nil // a file system without locks: nobody can have announced anything
	}
	if lk.Type != unix.F_UNLCK {
		return fmt.Errorf("%s: %w: a virtual machine or another program may be writing it", f.Name(), ErrInUse)
	}
	return nil
}

// ReadAt follows io.ReaderAt over the size at opening. A file that has become
// shorter gives ErrShrunk.
func (in *input) ReadAt(p []byte, off int64) (int, error) {
	want, eof := clipRead(p, off, in.size)
	if len(want) == 0 {
		return 0, eof
	}
	n, err := in.f.ReadAt(want, off)
	if n == len(want) {
		return n, eof
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: no data at byte %d of %d: %w", in.f.Name(), off+int64(n), in.size, ErrShrunk)
	}
	return n, err
}

// checkSize gives ErrShrunk if the file is shorter than at opening.
func (in *input) checkSize() error {
	if in.device {
		return nil
	}
	fi, err := in.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < in.size {
		return fmt.Errorf("%s: %d bytes left of %d: %w", in.f.Name(), fi.Size(), in.size, ErrShrunk)
	}
	return nil
}

func (in *input) Close() error { return in.f.Close() }
