package fs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	rootID = fuse.FUSE_ROOT_ID
	// fresh is how long the kernel believes a name and its attributes. Invalidate
	// ends it sooner; the bound is for what changes without anyone telling us.
	fresh      = time.Second
	sectorSize = 4096
)

// node is a name that the kernel knows. Its id is the entry's inode number, so
// an image that is renamed stays the same file for whoever has it open.
type node struct {
	id uint64

	// Below filesystem.mu.
	entry   Entry // as last seen; Name is the name to ask the library for
	lookups uint64
	open    []*handle

	cached atomic.Int32 // handles that read through the page cache
	stale  atomic.Bool  // the next cached open must not keep pages
}

// filesystem answers the kernel. Requests that change names get EPERM; the
// defaults of go-fuse (ENOSYS) serve where the kernel then does without.
type filesystem struct {
	fuse.RawFileSystem
	lib    Library
	opts   Options
	faults *faults
	server *fuse.Server // set by Init, before the first request

	ctx context.Context // ends with the mount

	mu    sync.Mutex
	nodes map[uint64]*node
	dirs  map[uint64][]Entry
	last  uint64 // newest handle number, files and folders

	handleMu sync.RWMutex
	handles  map[uint64]*handle
}

func newFilesystem(ctx context.Context, lib Library, o Options) *filesystem {
	return &filesystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		lib:           lib,
		opts:          o,
		faults:        newFaults(o.Logger),
		ctx:           ctx,
		nodes:         make(map[uint64]*node),
		dirs:          make(map[uint64][]Entry),
		handles:       make(map[uint64]*handle),
	}
}

func (f *filesystem) String() string      { return "sealdisk" }
func (f *filesystem) Init(s *fuse.Server) { f.server = s }

// node gives a node that the kernel holds a reference to.
func (f *filesystem) node(id uint64) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id]
}

// name is what the library calls the node.
func (f *filesystem) name(n *node) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n.entry.Name
}

// Lookup finds a name and counts one more reference to its node.
func (f *filesystem) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	e, err := f.stat(name)
	if err != nil {
		return f.faults.status("lookup", name, 0, err)
	}
	f.mu.Lock()
	n := f.nodes[e.Inode]
	if n == nil {
		n = &node{id: e.Inode}
		f.nodes[e.Inode] = n
	}
	n.lookups++
	e = f.seeLocked(n, e)
	f.mu.Unlock()

	out.NodeId = n.id
	out.SetEntryTimeout(fresh)
	out.SetAttrTimeout(fresh)
	f.fill(e, &out.Attr)
	return fuse.OK
}

// stat asks the library and refuses what would collide with numbers of FUSE.
func (f *filesystem) stat(name string) (Entry, error) {
	e, err := f.lib.Stat(f.ctx, name)
	if err == nil && (e.Inode <= rootID || e.Inode == ^uint64(0)) {
		err = fmt.Errorf("fs: inode number %d is reserved", e.Inode)
	}
	return e, err
}

// seeLocked takes an entry as the news of a node and gives it back with what an
// open disk knows better.
func (f *filesystem) seeLocked(n *node, e Entry) Entry {
	n.entry = e
	if len(n.open) > 0 {
		d := n.open[0].disk
		e.Size, e.ModTime = d.Size(), d.ModTime()
	}
	return e
}

// Forget drops references; the node goes with the last of them. The kernel keeps
// one for every open handle.
func (f *filesystem) Forget(id, count uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[id]; n != nil {
		n.lookups -= min(count, n.lookups)
		if n.lookups == 0 && len(n.open) == 0 {
			delete(f.nodes, id)
		}
	}
}

// entry gives the present state of a node. An image that lost its name while it
// is open is described by its disk.
func (f *filesystem) entry(n *node) (Entry, error) {
	name := f.name(n)
	e, err := f.stat(name)
	if err == nil && e.Inode != n.id {
		err = errStale
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		return f.seeLocked(n, e), nil
	case len(n.open) > 0 && (errors.Is(err, errStale) || errors.Is(err, ErrNoImage)):
		return f.seeLocked(n, n.entry), nil
	case errors.Is(err, ErrNoImage):
		return Entry{}, errStale // makes the kernel look the name up again
	}
	return Entry{}, err
}

// GetAttr is stat(2) of the folder or of a file.
func (f *filesystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(fresh)
	if in.NodeId == rootID {
		out.Attr = fuse.Attr{Ino: rootID, Mode: fuse.S_IFDIR | 0o700, Nlink: 2, Owner: f.owner(), Blksize: sectorSize}
		if f.opts.ReadOnly {
			out.Mode = fuse.S_IFDIR | 0o500
		}
		return fuse.OK
	}
	n := f.node(in.NodeId)
	if n == nil {
		return f.faults.status("stat", "", 0, errStale)
	}
	e, err := f.entry(n)
	if err != nil {
		return f.faults.status("stat", f.name(n), 0, err)
	}
	f.fill(e, &out.Attr)
	return fuse.OK
}

func (f *filesystem) owner() fuse.Owner { return fuse.Owner{Uid: f.opts.UID, Gid: f.opts.GID} }

func (f *filesystem) fill(e Entry, a *fuse.Attr) {
	*a = fuse.Attr{
		Ino:     e.Inode,
		Size:    uint64(e.Size),
		Blocks:  uint64((e.Stored + 511) / 512),
		Mode:    fuse.S_IFREG | 0o600,
		Nlink:   1,
		Owner:   f.owner(),
		Blksize: sectorSize,
	}
	if e.ReadOnly || f.opts.ReadOnly {
		a.Mode = fuse.S_IFREG | 0o400
	}
	if e.ModTime.Unix() > 0 { // the wire has no negative seconds
		a.SetTimes(&e.ModTime, &e.ModTime, &e.ModTime)
	}
}

// OpenDir takes no picture yet: ReadDir does at offset 0, so rewinddir(3) sees news.
func (f *filesystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	out.Fh = f.last
	f.dirs[out.Fh] = nil
	return fuse.OK
}

// ReadDir lists ".", ".." and the entries by name, from the picture taken when the reader began.
func (f *filesystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.mu.Lock()
	list := f.dirs[in.Fh]
	f.mu.Unlock()
	if in.Offset == 0 {
		var err error
		if list, err = f.lib.List(f.ctx); err != nil {
			return f.faults.status("list", "", 0, err)
		}
		list = slices.Clone(list)
		slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
		dots := Entry{Inode: rootID}
		list = slices.Concat([]Entry{dots, dots}, list)
		list[0].Name, list[1].Name = ".", ".."
		f.mu.Lock()
		f.dirs[in.Fh] = list
		f.mu.Unlock()
	}
	for i := in.Offset; i < uint64(len(list)); i++ {
		mode := uint32(fuse.S_IFREG)
		if list[i].Inode == rootID {
			mode = fuse.S_IFDIR
		}
		if !out.AddDirEntry(fuse.DirEntry{Name: list[i].Name, Ino: list[i].Inode, Mode: mode, Off: i + 1}) {
			break
		}
	}
	return fuse.OK
}

// ReleaseDir drops the picture.
func (f *filesystem) ReleaseDir(in *fuse.ReleaseIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.dirs, in.Fh)
}

// StatFs is what df shows: the space of the store, less its reserve.
func (f *filesystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	total, free, err := f.lib.Space(f.ctx)
	if err != nil {
		return f.faults.status("statfs", "", 0, err)
	}
	*out = fuse.StatfsOut{
		Bsize: sectorSize, Frsize: sectorSize, NameLen: 255,
		Blocks: uint64(total) / sectorSize,
		Bfree:  uint64(free) / sectorSize,
		Bavail: uint64(free) / sectorSize,
	}
	return fuse.OK
}
