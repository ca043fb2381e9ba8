package fs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxSlices is what one writev(2) takes, less go-fuse's two headers and some air.
const maxSlices = 1000

// handle is one open(2) of a node.
type handle struct {
	node    *node
	disk    Disk
	release func(context.Context) error
	direct  bool // opened with O_DIRECT: past the page cache, writers in parallel
	write   bool
}

func (f *filesystem) handle(fh uint64) *handle {
	f.handleMu.RLock()
	defer f.handleMu.RUnlock()
	return f.handles[fh]
}

// Open makes a handle. Writing handles never get FOPEN_NOFLUSH: the FLUSH of the
// last of them is what a handover waits for.
func (f *filesystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return f.faults.status("open", "", 0, errStale)
	}
	h := &handle{
		node:   n,
		direct: in.Flags&syscall.O_DIRECT != 0,
		write:  in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY,
	}
	e, err := f.entry(n)
	if err == nil {
		h.disk, h.release, err = f.lib.Open(f.ctx, e.Name, h.write)
	}
	if errors.Is(err, ErrNoImage) {
		err = errStale // gone since its look-up
	}
	if err != nil {
		return f.faults.status("open", f.name(n), 0, err)
	}
	out.Fh = f.add(h)
	switch {
	case h.direct:
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	case !n.stale.Swap(false):
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// add registers a handle. A cached one counts before its first read can begin.
func (f *filesystem) add(h *handle) (fh uint64) {
	if !h.direct {
		h.node.cached.Add(1)
	}
	f.mu.Lock()
	f.last++
	fh = f.last
	h.node.open = append(h.node.open, h)
	f.mu.Unlock()

	f.handleMu.Lock()
	defer f.handleMu.Unlock()
	f.handles[fh] = h
	return fh
}

// Release ends a handle. The kernel sends it after the last close(2), munmap(2)
// and request of the handle, and does not wait for the answer.
func (f *filesystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.drop(in.Fh) }

func (f *filesystem) drop(fh uint64) {
	f.handleMu.Lock()
	h := f.handles[fh]
	delete(f.handles, fh)
	f.handleMu.Unlock()
	if h == nil {
		return
	}
	if !h.direct {
		h.node.cached.Add(-1)
	}
	f.mu.Lock()
	h.node.open = slices.DeleteFunc(h.node.open, func(o *handle) bool { return o == h })
	name := h.node.entry.Name
	f.mu.Unlock()
	f.faults.status("release", name, 0, h.release(context.WithoutCancel(f.ctx)))
}

// dropAll ends what the kernel did not release: it sends no RELEASE once the connection is gone.
func (f *filesystem) dropAll() {
	f.handleMu.RLock()
	var all []uint64
	for fh := range f.handles {
		all = append(all, fh)
	}
	f.handleMu.RUnlock()
	slices.Sort(all)
	for _, fh := range all {
		f.drop(fh)
	}
}

// status answers a request on an open handle.
func (f *filesystem) status(op string, h *handle, off uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return f.faults.status(op, f.name(h.node), int64(off), err)
}

// Read hands the disk's own slices to the kernel, uncopied.
func (f *filesystem) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	v, err := h.disk.ReadVector(f.ctx, int64(in.Offset), int(in.Size))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, f.status("read", h, in.Offset, err)
	}
	if len(v) > maxSlices {
		v = [][]byte{bytes.Join(v, nil)}
	}
	return fuse.ReadResultVector(v), fuse.OK
}

// Write writes all or nothing: a disk has a size, and a write does not move it.
func (f *filesystem) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := f.handle(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	n, err := h.disk.WriteAt(f.ctx, data, int64(in.Offset))
	if err == nil && in.Flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0 {
		err = h.disk.Flush(f.ctx) // the kernel sends no FSYNC for these
	}
	if h.direct {
		f.dropPages(h.node, int64(in.Offset), int64(len(data)))
	}
	if err != nil {
		return 0, f.status("write", h, in.Offset, err)
	}
	return uint32(n), fuse.OK
}

// dropPages ends what the page cache holds of a range that a direct write has
// changed. The kernel does so for synchronous writes since 6.6; for others (aio,
// io_uring) only before they start, so a cached read meanwhile brings old bytes
// back. No page is locked here (a cached write would hold its own until it is
// answered), and a READ that locks one is answered by another thread.
func (f *filesystem) dropPages(n *node, off, length int64) {
	if !n.stale.Load() {
		n.stale.Store(true) // before cached is read: whoever opens next sees one or the other
	}
	if n.cached.Load() > 0 {
		f.server.InodeNotify(n.id, off, length)
	}
}

// Fsync makes the image durable; its metadata always is part of that.
func (f *filesystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	return f.status("fsync", h, 0, h.disk.Flush(f.ctx))
}

// Flush comes at each close(2) of a descriptor, a dup'ed one too, and close
// waits for the answer. It does not sync: POSIX does not ask for it.
func (f *filesystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	c, ok := h.disk.(Closer)
	if !ok {
		return fuse.OK
	}
	return f.status("close", h, 0, c.Closing(f.ctx))
}

// Fallocate punches holes and zeroes ranges (QEMU's discard and write-zeroes).
// Plain preallocation within the size succeeds and reserves nothing.
func (f *filesystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	return f.status("fallocate", h, in.Offset, fallocate(f.ctx, h.disk, in))
}

func fallocate(ctx context.Context, d Disk, in *fuse.FallocateIn) error {
	if in.Offset > math.MaxInt64 || in.Length > math.MaxInt64-in.Offset {
		return errInvalid
	}
	off, end, size := int64(in.Offset), int64(in.Offset+in.Length), d.Size()
	zero := false
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
	case unix.FALLOC_FL_ZERO_RANGE:
		zero = true
	case unix.FALLOC_FL_PUNCH_HOLE:
		if in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
			return errUnsupported
		}
		zero = true
	default:
		return errUnsupported
	}
	if zero && off < size {
		if err := d.Discard(ctx, off, min(end, size)-off); err != nil {
			return err
		}
	}
	if in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 && end > size {
		return d.Resize(ctx, end)
	}
	return nil
}

// Lseek finds the next data or hole at or after an offset (lseek(2)).
func (f *filesystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := f.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return f.status("lseek", h, in.Offset, errInvalid)
	}
	off, err := seek(f.ctx, h.disk, int64(in.Offset), in.Whence == unix.SEEK_DATA)
	out.Offset = uint64(off)
	return f.status("lseek", h, in.Offset, err)
}

// seek walks the extents from off until one is data, or is not. The end of the
// disk counts as a hole, as lseek(2) has it.
func seek(ctx context.Context, d Disk, off int64, data bool) (int64, error) {
	if off < 0 || off >= d.Size() {
		return 0, errNoData
	}
	for {
		e, err := d.Next(ctx, off)
		switch {
		case errors.Is(err, io.EOF) && data:
			return 0, errNoData
		case errors.Is(err, io.EOF):
			return off, nil
		case err != nil:
			return 0, err
		case e.Data == data:
			return off, nil
		case e.Offset+e.Length <= off:
			return 0, errInvalid // a Disk that stands still must not hold a thread
		}
		off = e.Offset + e.Length
	}
}

// SetAttr grows a file. Times belong to the disk: what touch(1) sets is taken
// without an error and not kept. Owner and mode belong to the mount.
func (f *filesystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return f.refuse()
	}
	if size, ok := in.GetSize(); ok {
		if err := f.truncate(in, size); err != nil {
			n := f.node(in.NodeId)
			if n == nil {
				return fuse.Status(errnoOf(err))
			}
			return f.faults.status("truncate", f.name(n), int64(min(size, math.MaxInt64)), err)
		}
	}
	return f.GetAttr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, out)
}

func (f *filesystem) truncate(in *fuse.SetAttrIn, size uint64) error {
	if size > math.MaxInt64 {
		return errInvalid
	}
	if fh, ok := in.GetFh(); ok {
		h := f.handle(fh)
		if h == nil {
			return errStale
		}
		return resize(f.ctx, h.disk, int64(size))
	}
	n := f.node(in.NodeId)
	if n == nil {
		return errStale
	}
	e, err := f.entry(n)
	if err != nil {
		return err
	}
	d, release, err := f.lib.Open(f.ctx, e.Name, true)
	if err != nil {
		return err
	}
	return errors.Join(resize(f.ctx, d, int64(size)), release(f.ctx))
}

func resize(ctx context.Context, d Disk, size int64) error {
	if size == d.Size() {
		return nil
	}
	return d.Resize(ctx, size)
}
