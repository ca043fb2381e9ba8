package powercut

import (
	"io"
	"log"
	"maps"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	long     = time.Hour // nothing changes behind the kernel's back
	capacity = 1 << 40   // bytes that statfs tells of
	maxName  = 255
)

// handler answers the kernel for an FS.
type handler struct {
	fuse.RawFileSystem
	f *FS
}

// Mount is a mounted file system.
type Mount struct {
	server *fuse.Server
	dir    string
}

// Mount shows the file system at dir. It needs root.
func (f *FS) Mount(dir string) (*Mount, error) {
	h := &handler{RawFileSystem: fuse.NewDefaultRawFileSystem(), f: f}
	server, err := fuse.NewServer(h, dir, &fuse.MountOptions{
		FsName: "powercut", Name: "powercut", DirectMountStrict: true, MaxWrite: 1 << 20, MaxBackground: 64,
		DisableXAttrs: true, DisableSplice: true, DisableReadDirPlus: true, ExplicitDataCacheControl: true,
		Logger: log.New(io.Discard, "", 0),
	})
	if err != nil {
		return nil, err
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return nil, err
	}
	return &Mount{server: server, dir: dir}, nil
}

// Unmount ends the mount. Nobody may use it any more: it fails with EBUSY. Pages that the kernel still
// holds come as writes before it returns, so Cut comes first.
func (m *Mount) Unmount() error {
	if err := unix.Unmount(m.dir, 0); err != nil {
		return err
	}
	m.server.Wait()
	return nil
}

func (h *handler) String() string { return "powercut" }

// inode gives what the kernel knows by a number. FS.mu is held.
func (h *handler) inode(id uint64) *inode { return h.f.inodes[id] }

func (h *handler) child(id uint64, name string) (dir, n *inode, status fuse.Status) {
	dir = h.inode(id)
	if dir == nil || !dir.dir() {
		return nil, nil, fuse.ENOTDIR
	}
	if len(name) > maxName {
		return nil, nil, fuse.Status(unix.ENAMETOOLONG)
	}
	return dir, dir.entries[name], fuse.OK
}

// tell introduces an inode to the kernel.
func (h *handler) tell(n *inode, out *fuse.EntryOut) {
	n.lookups++
	h.f.inodes[n.id] = n
	out.NodeId = n.id
	out.SetEntryTimeout(long)
	if !n.dir() {
		out.SetAttrTimeout(long)
	}
	h.fill(n, &out.Attr)
}

func (h *handler) fill(n *inode, a *fuse.Attr) {
	a.Ino, a.Mode, a.Nlink, a.Blksize = n.id, n.mode, n.links, pageSize
	a.SetTimes(&n.mtime, &n.mtime, &n.mtime)
	if n.dir() {
		a.Nlink++
	}
	if n.content != nil {
		a.Size, a.Blocks = uint64(n.size), uint64(len(n.pages))*pageSize/512
	}
}

func (h *handler) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	_, n, status := h.child(in.NodeId, name)
	if status.Ok() && n == nil {
		status = fuse.ENOENT
	}
	if status.Ok() {
		h.tell(n, out)
	}
	return status
}

func (h *handler) Forget(id, lookups uint64) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(id)
	if n == nil || n == h.f.root {
		return
	}
	if n.lookups -= min(n.lookups, lookups); n.lookups == 0 {
		delete(h.f.inodes, id)
	}
}

func (h *handler) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if !n.dir() {
		out.SetTimeout(long)
	}
	h.fill(n, &out.Attr)
	return fuse.OK
}

func (h *handler) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	h.f.mu.Lock()
	n := h.inode(in.NodeId)
	if n != nil {
		if mode, ok := in.GetMode(); ok {
			n.mode = n.mode&unix.S_IFMT | mode&^unix.S_IFMT
		}
		if size, ok := in.GetSize(); ok && n.content != nil {
			n.truncate(int64(size), h.f.made)
			n.mtime = time.Now()
		}
	}
	h.f.mu.Unlock()
	return h.GetAttr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, out)
}

// make makes an inode under a name that is free.
func (h *handler) make(id uint64, name string, mode uint32, out *fuse.EntryOut) (*inode, fuse.Status) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	dir, n, status := h.child(id, name)
	if status.Ok() && n != nil {
		status = fuse.Status(unix.EEXIST)
	}
	if !status.Ok() {
		return nil, status
	}
	n = h.f.newInode(mode)
	h.f.change(namePut{dir, name, n})
	h.tell(n, out)
	return n, fuse.OK
}

func (h *handler) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	_, status := h.make(in.NodeId, name, in.Mode, out)
	return status
}

func (h *handler) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	_, status := h.make(in.NodeId, name, unix.S_IFDIR|in.Mode, out)
	return status
}

func (h *handler) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	_, status := h.make(in.NodeId, name, unix.S_IFREG|in.Mode&^unix.S_IFMT, &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return status
}

func (h *handler) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return h.remove(in.NodeId, name)
}

func (h *handler) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return h.remove(in.NodeId, name)
}

func (h *handler) remove(id uint64, name string) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	dir, n, status := h.child(id, name)
	switch {
	case !status.Ok():
		return status
	case n == nil:
		return fuse.ENOENT
	case len(n.entries) > 0:
		return fuse.Status(unix.ENOTEMPTY)
	}
	h.f.change(namePut{dir, name, nil})
	return fuse.OK
}

func (h *handler) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	dir, there, status := h.child(in.NodeId, name)
	n := h.inode(in.Oldnodeid)
	switch {
	case !status.Ok():
		return status
	case n == nil:
		return fuse.ENOENT
	case there != nil:
		return fuse.Status(unix.EEXIST)
	}
	h.f.change(namePut{dir, name, n})
	h.tell(n, out)
	return fuse.OK
}

func (h *handler) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	from, n, status := h.child(in.NodeId, oldName)
	to, there, toStatus := h.child(in.Newdir, newName)
	switch {
	case !status.Ok():
		return status
	case !toStatus.Ok():
		return toStatus
	case n == nil:
		return fuse.ENOENT
	case in.Flags == unix.RENAME_NOREPLACE && there != nil:
		return fuse.Status(unix.EEXIST)
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	case there == n:
		return fuse.OK
	case there != nil && len(there.entries) > 0:
		return fuse.Status(unix.ENOTEMPTY)
	}
	h.f.change(namePut{from, oldName, nil}, namePut{to, newName, n})
	return fuse.OK
}

func (h *handler) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || n.content == nil {
		return fuse.EINVAL
	}
	if in.Flags&unix.O_TRUNC != 0 {
		n.truncate(0, h.f.made)
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Release and Flush need nothing: close(2) makes nothing durable.
func (h *handler) Release(<-chan struct{}, *fuse.ReleaseIn)           {}
func (h *handler) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status   { return fuse.OK }
func (h *handler) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

func (h *handler) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || n.content == nil {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n.read(buf, int64(in.Offset))]), fuse.OK
}

func (h *handler) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || n.content == nil {
		return 0, fuse.EIO
	}
	off := int64(in.Offset)
	if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		off = n.size
	}
	n.write(data, off)
	n.mtime = time.Now()
	return uint32(len(data)), fuse.OK
}

func (h *handler) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || n.content == nil {
		return fuse.EIO
	}
	n.sync()
	return fuse.OK
}

func (h *handler) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || !n.dir() {
		return fuse.EIO
	}
	h.f.syncDir(n)
	return fuse.OK
}

func (h *handler) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || n.content == nil {
		return fuse.EIO
	}
	off, length, grow := int64(in.Offset), int64(in.Length), in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
	case unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE:
		n.zero(off, length)
	default:
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if grow && off+length > n.size {
		n.truncate(off+length, h.f.made)
	}
	return fuse.OK
}

func (h *handler) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || n.content == nil {
		return fuse.EINVAL
	}
	off, ok := n.seek(int64(in.Offset), in.Whence == unix.SEEK_DATA)
	if !ok {
		return fuse.Status(unix.ENXIO)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (h *handler) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil || !n.dir() {
		return fuse.ENOTDIR
	}
	h.f.last++
	out.Fh = h.f.last
	h.f.lists[out.Fh] = slices.Sorted(maps.Keys(n.entries))
	return fuse.OK
}

func (h *handler) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	n := h.inode(in.NodeId)
	if n == nil {
		return fuse.EIO
	}
	names := h.f.lists[in.Fh]
	for i := int(in.Offset); i < len(names); i++ {
		child := n.entries[names[i]]
		if child == nil { // removed since
			child = &inode{id: ^uint64(0), mode: unix.S_IFREG}
		}
		if !out.AddDirEntry(fuse.DirEntry{Name: names[i], Mode: child.mode, Ino: child.id, Off: uint64(i + 1)}) {
			break
		}
	}
	return fuse.OK
}

func (h *handler) ReleaseDir(in *fuse.ReleaseIn) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	delete(h.f.lists, in.Fh)
}

func (h *handler) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Blocks, out.Bfree, out.Bavail = capacity/pageSize, capacity/pageSize, capacity/pageSize
	out.Bsize, out.Frsize, out.NameLen = pageSize, pageSize, maxName
	return fuse.OK
}
