package fs

import (
	"context"
	"errors"
	"time"

	"github.com/sealdisk/sealdisk/image"
)

// ErrNoImage says that a [Library] knows no image or snapshot of that name. It
// is a sentinel of this package so that a file missing somewhere in a store can
// not pass for it.
var ErrNoImage = errors.New("fs: no such image")

// Disk is the content of one image or snapshot in use. All methods may be called
// concurrently; every offset and length that is passed is ≥ 0 and their sum does
// not overflow. Errors are told apart as errno.go lists.
type Disk interface {
	// Size is the length in bytes. It never falls.
	Size() int64
	// ModTime is when the content last changed.
	ModTime() time.Time
	// ReadVector gives n bytes at off, fewer only at the end of the disk, none
	// or io.EOF beyond it. The slices stay valid and unchanged until the caller drops them.
	ReadVector(ctx context.Context, off int64, n int) ([][]byte, error)
	// WriteAt writes all of p or fails, with image.ErrTooLarge if p ends beyond
	// the size. It does not keep p. Reads that begin after it returned see p.
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Discard makes [off, off+n) read as zeros and gives whole sectors back. The range lies within the disk.
	Discard(ctx context.Context, off, n int64) error
	// Flush returns nil when a power cut loses nothing that was written, discarded or grown before the call.
	Flush(ctx context.Context) error
	// Resize grows the disk, image.ErrShrink otherwise; new bytes read as zeros.
	Resize(ctx context.Context, size int64) error
	// Next gives a run around off of bytes that may be data or that all read as
	// zeros; io.EOF at or beyond the size.
	Next(ctx context.Context, off int64) (image.Extent, error)
}

var _ Disk = (*image.Disk)(nil)

// Closer is a Disk that is told when a descriptor is closed: close(2) waits for Closing, and
// its error is close's. A descriptor that was dup'ed comes more than once.
type Closer interface {
	Closing(ctx context.Context) error
}

// Entry is one name of a library.
type Entry struct {
	Name     string // "NAME" or "NAME@SNAP": not empty, no slash, at most 255 bytes
	Inode    uint64 // stable, and unique in the library; not 0, 1 or all ones
	Size     int64  // bytes
	Stored   int64  // bytes that hold data, at most Size: what du shows, and what tells cp to look for holes
	ModTime  time.Time
	ReadOnly bool
}

// Library names the images of a mount. All methods may be called concurrently.
type Library interface {
	// List gives every entry, in any order.
	List(ctx context.Context) ([]Entry, error)
	// Stat gives one entry, ErrNoImage if there is none. The state of a disk in
	// use counts. It is called often (each second for a file in use) and should be cheap.
	Stat(ctx context.Context, name string) (Entry, error)
	// Open gives the disk of an entry, for reading or also for writing; any
	// number of handles may share one Disk. If it may not be written the error
	// is image.ErrReadOnly or image.ErrNotHolder and says who may. Release is
	// called once, when the handle is gone; close(2) does not wait for it.
	Open(ctx context.Context, name string, write bool) (d Disk, release func(context.Context) error, err error)
	// Space says how many bytes the store holds at most and how many of them are free.
	Space(ctx context.Context) (total, free int64, err error)
}
