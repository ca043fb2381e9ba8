package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// What would make, remove or rename an image gets EPERM: go-fuse's default is
// ENOSYS, at which the kernel would try the next best request or say that the
// function does not exist.

func (f *filesystem) refuse() fuse.Status { return f.faults.status("", "", 0, errNotPermitted) }

func (f *filesystem) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return f.refuse()
}

func (f *filesystem) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return f.faults.status("", "", 0, errUnsupported)
}

func (f *filesystem) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return f.refuse()
}

func (f *filesystem) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return f.refuse()
}

func (f *filesystem) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return f.refuse() }
func (f *filesystem) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status  { return f.refuse() }

func (f *filesystem) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return f.refuse()
}

func (f *filesystem) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return f.refuse()
}

func (f *filesystem) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return f.refuse()
}

// Ioctl is what QEMU probes an image with (BLKSSZGET, XFS_IOC_DIOINFO).
func (f *filesystem) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return f.faults.status("", "", 0, errNoIoctl)
}
