package fs

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/time/rate"
	"log/slog"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
)

// Errors of this package that become an errno.
var (
	errNotPermitted = errors.New("fs: images are made, removed and renamed by commands, not through the mount")
	errNoData       = errors.New("fs: nothing but a hole follows")
	errUnsupported  = errors.New("fs: not supported")
	errInvalid      = errors.New("fs: out of range")
	errStale        = errors.New("fs: the name means another image now")
	errNoIoctl      = errors.New("fs: an image has no ioctls")
)

// errnos says what the kernel is told, by the first line that matches. What is
// stored and wrong comes first: an error of that kind must be EIO whatever else
// it wraps. What matches no line is EIO too.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{blockstore.ErrCorrupt, syscall.EIO},
	{blockstore.ErrNotFound, syscall.EIO},
	{blockstore.ErrFailed, syscall.EIO},
	{crypto.ErrAuth, syscall.EIO},

	{ErrNoImage, syscall.ENOENT},
	{image.ErrNoSnapshot, syscall.ENOENT},
	{image.ErrReadOnly, syscall.EROFS},
	{image.ErrNotHolder, syscall.EROFS},
	{image.ErrInUse, syscall.EBUSY},
	{image.ErrShrink, syscall.EPERM}, // as a shell's ">" and dd without conv=notrunc should read it
	{image.ErrTooLarge, syscall.EFBIG},
	{blockstore.ErrNoSpace, syscall.ENOSPC},
	{context.Canceled, syscall.EINTR},

	{errNotPermitted, syscall.EPERM},
	{errNoData, syscall.ENXIO},
	{errUnsupported, syscall.EOPNOTSUPP},
	{errInvalid, syscall.EINVAL},
	{errStale, syscall.ESTALE},
	{errNoIoctl, syscall.ENOTTY},
}

// errnoOf gives the errno of an error that is not nil.
func errnoOf(err error) syscall.Errno {
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}

// faults logs failed requests, a burst of 16 and then one each second; a guest
// that reads a bad sector in a loop must not fill the disk with lines about it.
type faults struct {
	log     *slog.Logger
	limit   *rate.Limiter
	dropped atomic.Int64
}

func newFaults(log *slog.Logger) *faults {
	return &faults{log: log, limit: rate.NewLimiter(1, 16)}
}

// status gives the answer to a request that ended with err. It logs what an
// operator must know: bad or lost data, a full store, a lease held elsewhere.
func (f *faults) status(op, image string, off int64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno := errnoOf(err)
	switch errno {
	case syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EBUSY:
		f.report(op, image, off, errno, err)
	}
	return fuse.Status(errno)
}

func (f *faults) report(op, image string, off int64, errno syscall.Errno, err error) {
	if !f.limit.Allow() {
		f.dropped.Add(1)
		return
	}
	f.log.Error("a request on the mount failed", "op", op, "image", image, "offset", off,
		"errno", errno.Error(), "err", err, "unlogged", f.dropped.Swap(0))
}
