package format

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Writer takes an export. WriteAt and WriteZeros may be called concurrently
// and in any order for ranges that do not overlap; together they must cover
// the disk once. After them, Commit or Abort is called, once.
type Writer interface {
	io.WriterAt
	// WriteZeros makes [off, off+n) read as zeros.
	WriteZeros(off, n int64) error
	// Commit makes the export durable and, if it is a file, gives it its
	// name. If it fails nothing but Abort remains to be done.
	Commit() error
	// Abort drops what was written. After a Commit that succeeded it does
	// nothing, so that it can be deferred. What was written to a device
	// stays there.
	Abort() error
}

// Create makes an export of size bytes in a format, raw or qcow2, at path.
// An existing file is replaced, and a device written, only with force; until
// Commit an existing file stays as it is.
func Create(path, format string, size int64, force bool) (Writer, error) {
	switch format {
	case Raw:
		return CreateRaw(path, size, force)
	case Qcow2:
		return CreateQcow2(path, size, force)
	}
	return nil, fmt.Errorf("format: create %s: format %q: %w", path, format, ErrUnsupported)
}

// pending is a file that gets its name when it is complete. It lies in the
// folder of its name to be, so that giving it the name is one rename.
type pending struct {
	f       *os.File
	path    string
	force   bool
	settled bool
}

// createPending refuses, without force, a name that is taken. The file is
// readable by its owner alone: it holds what was sealed.
func createPending(path string, force bool) (*pending, error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // replace what a link names, not the link
	}
	fi, err := os.Stat(path)
	switch {
	case err == nil && !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file: %w", path, ErrUnsupported)
	case err == nil && !force:
		return nil, &os.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.part")
	if err != nil {
		return nil, err
	}
	return &pending{f: f, path: path, force: force}, nil
}

// writeBack lets the device begin with a range, beside what is read and opened next:
// otherwise commit waits for all of it. It is a hint; commit is told what failed.
func (p *pending) writeBack(off, n int64) {
	_ = unix.SyncFileRange(int(p.f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// commit makes the file durable, then its name. The order matters: after a
// crash the name must not stand for a file that is not whole.
func (p *pending) commit() error {
	if err := p.f.Sync(); err != nil {
		return err
	}
	if err := p.f.Close(); err != nil {
		return err
	}
	if err := p.rename(); err != nil {
		return err
	}
	p.settled = true // the point of no return
	return syncDir(filepath.Dir(p.path))
}

func (p *pending) rename() error {
	if p.force {
		return os.Rename(p.f.Name(), p.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, p.f.Name(), unix.AT_FDCWD, p.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// The file system cannot do it in one step.
		if _, statErr := os.Lstat(p.path); statErr == nil {
			err = unix.EEXIST
		} else {
			err = os.Rename(p.f.Name(), p.path)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: p.f.Name(), New: p.path, Err: err}
	}
	return nil
}

func (p *pending) abort() error {
	if p.settled {
		return nil
	}
	p.settled = true
	_ = p.f.Close() // commit may have closed it
	return os.Remove(p.f.Name())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// allZero says whether p holds nothing but zeros.
func allZero(p []byte) bool {
	const chunk = 4096
	for len(p) > chunk {
		if string(p[:chunk]) != string(zeroChunk[:]) {
			return false
		}
		p = p[chunk:]
	}
	return string(p) == string(zeroChunk[:len(p)])
}

var zeroChunk [4096]byte
