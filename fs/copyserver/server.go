package copyserver

import (
	"fmt"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Name is the one file that the mount shows.
const Name = "disk"

const (
	rootID     = fuse.FUSE_ROOT_ID
	diskID     = 2
	maxRequest = 1 << 20
)

// disk answers the kernel from a slice. Requests are not ordered among each
// other, as on a real disk: reads and writes of one range may overlap.
type disk struct {
	fuse.RawFileSystem
	data []byte
}

// Serve mounts data as dir/disk and returns when it is unmounted. The mount
// writes into data. dir is an empty folder.
func Serve(dir string, data []byte) error {
	server, err := fuse.NewServer(newDisk(data), dir, &fuse.MountOptions{
		FsName:                   "copyserver",
		Name:                     "copyserver",
		DirectMount:              os.Geteuid() == 0,
		MaxWrite:                 maxRequest,
		MaxBackground:            64,
		DisableXAttrs:            true,
		DisableSplice:            true,
		DisableReadDirPlus:       true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
	})
	if err != nil {
		return fmt.Errorf("copyserver: mount %s: %w", dir, err)
	}
	server.Serve()
	return nil
}

func newDisk(data []byte) *disk {
	return &disk{RawFileSystem: fuse.NewDefaultRawFileSystem(), data: data}
}

func (d *disk) String() string { return "copyserver" }

func (d *disk) attr(id uint64, a *fuse.Attr) {
	if id == rootID {
		*a = fuse.Attr{Ino: rootID, Mode: fuse.S_IFDIR | 0o700, Nlink: 2}
		return
	}
	size := uint64(len(d.data))
	*a = fuse.Attr{Ino: diskID, Mode: fuse.S_IFREG | 0o600, Nlink: 1, Size: size, Blocks: size / 512, Blksize: 4096}
}

// Lookup knows one name.
func (d *disk) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != Name {
		return fuse.ENOENT
	}
	out.NodeId = diskID
	d.attr(diskID, &out.Attr)
	return fuse.OK
}

// GetAttr is stat(2).
func (d *disk) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	d.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// SetAttr takes any change and keeps none.
func (d *disk) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	d.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// Open lets an O_DIRECT handle pass the page cache, its writers in parallel.
func (d *disk) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&syscall.O_DIRECT != 0 {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return fuse.OK
}

// Read copies out of the slice.
func (d *disk) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	off := min(in.Offset, uint64(len(d.data)))
	n := copy(buf[:min(int(in.Size), len(buf))], d.data[off:])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write copies into the slice; the file does not grow.
func (d *disk) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if size := uint64(len(d.data)); in.Offset > size || uint64(len(data)) > size-in.Offset {
		return 0, fuse.Status(syscall.ENOSPC)
	}
	return uint32(copy(d.data[in.Offset:], data)), fuse.OK
}

// Fsync has nothing to do.
func (d *disk) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Flush has nothing to do.
func (d *disk) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// StatFs is what fio and df ask for.
func (d *disk) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255, Blocks: uint64(len(d.data)) / 4096}
	return fuse.OK
}
