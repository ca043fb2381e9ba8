package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// jobs are what the tests' child processes do on a mount.
var jobs = map[string]func(args []string) error{
	"refusals":  jobRefusals,
	"listing":   jobListing,
	"fallocate": jobFallocate,
	"truncate":  jobTruncate,
	"fill":      jobFill,
	"expect":    jobExpect,
	"read":      jobRead,
	"fail":      jobFail,
	"sync":      jobSync,
	"race":      jobRace,
	"locks":     jobLocks,
}

// want compares an error with an errno; nil is 0.
func want(what string, err error, errno syscall.Errno) error {
	if (err == nil && errno == 0) || errors.Is(err, errno) && err != nil {
		return nil
	}
	return fmt.Errorf("%s: got %v, want %v", what, err, errno)
}

func jobRefusals(args []string) error {
	dir := args[0]
	disk, snap := filepath.Join(dir, "disk"), filepath.Join(dir, "disk@one")
	open := func(name string, flags int) error {
		f, err := os.OpenFile(name, flags, 0o600)
		if err == nil {
			return f.Close()
		}
		return err
	}
	return errors.Join(
		want("create", open(filepath.Join(dir, "new"), os.O_CREATE|os.O_RDWR), syscall.EPERM),
		want("exclusive create", open(disk, os.O_CREATE|os.O_EXCL|os.O_RDWR), syscall.EEXIST),
		want("create of what is there", open(disk, os.O_CREATE|os.O_RDWR), 0),
		want("open of nothing", open(filepath.Join(dir, "none"), os.O_RDONLY), syscall.ENOENT),
		want("open with O_TRUNC", open(disk, os.O_RDWR|os.O_TRUNC), syscall.EPERM),
		want("write-open of a snapshot", open(snap, os.O_RDWR), syscall.EROFS),
		want("read-open of a snapshot", open(snap, os.O_RDONLY), 0),
		want("truncate of a snapshot", os.Truncate(snap, 1<<20), syscall.EROFS),
		want("unlink", os.Remove(disk), syscall.EPERM),
		want("rename", os.Rename(disk, filepath.Join(dir, "other")), syscall.EPERM),
		want("link", os.Link(disk, filepath.Join(dir, "other")), syscall.EPERM),
		want("symlink", os.Symlink("disk", filepath.Join(dir, "other")), syscall.EPERM),
		want("mkdir", os.Mkdir(filepath.Join(dir, "other"), 0o700), syscall.EPERM),
		want("mknod", syscall.Mknod(filepath.Join(dir, "other"), syscall.S_IFIFO|0o600, 0), syscall.EPERM),
		want("chmod", os.Chmod(disk, 0o644), syscall.EPERM),
		want("chown", os.Chown(disk, 1, 1), syscall.EPERM),
		want("touch", os.Chtimes(disk, unixTime, unixTime), 0),
		want("setxattr", unix.Setxattr(disk, "user.x", []byte("y"), 0), syscall.EOPNOTSUPP),
	)
}

// jobListing prints nothing; it compares what is listed and stated.
func jobListing(args []string) error {
	dir := args[0]
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, args[1:]) {
		return fmt.Errorf("listed %q, want %q", names, args[1:])
	}
	for _, name := range names {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		mode := os.FileMode(0o600)
		if strings.Contains(name, "@") {
			mode = 0o400
		}
		sys := st.Sys().(*syscall.Stat_t)
		if st.Mode() != mode || sys.Uid != 12 || sys.Gid != 34 || st.Size() != 1<<20 || sys.Blocks != 8 || st.ModTime().Unix() < 1_700_000_000 {
			return fmt.Errorf("%s: mode %v, owner %d:%d, size %d, blocks %d, time %v", name, st.Mode(), sys.Uid, sys.Gid, st.Size(), sys.Blocks, st.ModTime())
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if total, free := fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize); total != 1<<40 || free != 1<<38 {
		return fmt.Errorf("statfs: %d bytes, %d free", total, free)
	}
	return nil
}

func openDisk(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "disk"), os.O_RDWR, 0)
}

func jobFallocate(args []string) error {
	f, err := openDisk(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 1 << 20
	call := func(mode uint32, off, n int64) error {
		for {
			if err := unix.Fallocate(int(f.Fd()), mode, off, n); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	is := func(want int64) error {
		if st, err := f.Stat(); err != nil || st.Size() != want {
			return fmt.Errorf("size is %d (%v), want %d", st.Size(), err, want)
		}
		return nil
	}
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	return errors.Join(
		want("preallocate within", call(0, 0, size), 0),
		want("preallocate beyond, size kept", call(keep, 0, 2*size), 0), is(size),
		want("punch beyond", call(punch|keep, size+1, 5), 0), is(size),
		want("punch across the end", call(punch|keep, size-1, 50), 0), is(size),
		want("zero across the end, size kept", call(zero|keep, size-1, 50), 0), is(size),
		want("collapse", call(unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), syscall.EOPNOTSUPP),
		want("insert", call(unix.FALLOC_FL_INSERT_RANGE, 0, 4096), syscall.EOPNOTSUPP),
		want("zero across the end", call(zero, size-1, 51), 0), is(size+50),
		want("zero beyond", call(zero, size+100, 10), 0), is(size+110),
		want("preallocate beyond", call(0, size, 4096), 0), is(size+4096),
	)
}

func jobTruncate(args []string) error {
	f, err := openDisk(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(
		want("shrink", f.Truncate(1), syscall.EPERM),
		want("shrink by name", os.Truncate(f.Name(), 1), syscall.EPERM),
		want("the same", f.Truncate(1<<20), 0),
		want("grow", f.Truncate(1<<20+1), 0),
		want("grow by name", os.Truncate(f.Name(), 1<<20+9), 0),
	)
}

// jobFill writes a byte all over a file; jobExpect reads it back buffered.
func jobFill(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte(args[1]), int(st.Size())), 0)
	return errors.Join(err, f.Close())
}

func jobExpect(args []string) error {
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	if want := bytes.Repeat([]byte(args[1]), len(b)); !bytes.Equal(b, want) || len(b) == 0 {
		return fmt.Errorf("%s: %d bytes, not all %q; the first is %q", args[0], len(b), args[1], b[:min(1, len(b))])
	}
	return nil
}

func jobRead(args []string) error {
	_, err := os.ReadFile(args[0])
	return err
}

// jobFail does one request that must fail with EIO.
func jobFail(args []string) error {
	f, err := os.OpenFile(filepath.Join(args[0], "disk"), os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, 4096)
	_, readErr := f.ReadAt(p, 8192)
	_, writeErr := f.WriteAt(p, 12288)
	return errors.Join(want("read", readErr, syscall.EIO), want("write", writeErr, syscall.EIO), want("fsync", f.Sync(), syscall.EIO))
}

// jobSync does what must flush, five times.
func jobSync(args []string) error {
	f, err := openDisk(args[0])
	if err != nil {
		return err
	}
	err = errors.Join(f.Sync(), unix.Fdatasync(int(f.Fd())), f.Close())
	for _, flags := range []int{unix.O_DSYNC, unix.O_SYNC, unix.O_DSYNC | syscall.O_DIRECT} {
		g, openErr := os.OpenFile(f.Name(), os.O_WRONLY|flags, 0)
		if openErr != nil {
			return openErr
		}
		_, writeErr := g.WriteAt([]byte("durable"), 100)
		err = errors.Join(err, writeErr, g.Close())
	}
	return err
}

// jobRace reads a page buffered while a direct write to it is under way, as the
// file "begun" tells, so that old bytes come into the page cache behind the
// write; when it is over it must read new ones.
func jobRace(args []string) error {
	name := filepath.Join(args[0], "disk")
	cached, err := os.Open(name)
	if err != nil {
		return err
	}
	defer cached.Close()
	direct, err := os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer direct.Close()
	written := make(chan error, 1)
	go func() { written <- writeAsync(direct, bytes.Repeat([]byte("b"), 4096)) }()
	for begun := false; !begun; {
		_, err := os.Stat(filepath.Join(args[0], "begun"))
		begun = err == nil
	}
	p := make([]byte, 4096)
	if _, err := cached.ReadAt(p, 0); err != nil { // old or new: the write goes on once this is answered
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if _, err := cached.ReadAt(p, 0); err != nil || p[0] != 'b' {
		return fmt.Errorf("read %q (%v) after \"b\" was written", p[:1], err)
	}
	return nil
}

// writeAsync writes at offset 0 with io_submit(2), as QEMU with aio=native does.
func writeAsync(f *os.File, p []byte) error {
	var queue uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&queue)), 0); errno != 0 {
		return errno
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, queue, 0, 0)
	control := struct { // struct iocb of linux/aio_abi.h
		data           uint64
		key, rwFlags   uint32
		opcode         uint16
		priority       int16
		fd             uint32
		buf            *byte
		length         uint64
		offset         int64
		reserved       uint64
		flags, eventFD uint32
	}{opcode: 1, fd: uint32(f.Fd()), buf: &p[0], length: uint64(len(p))}
	list := &control
	if _, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, queue, 1, uintptr(unsafe.Pointer(&list))); errno != 0 {
		return errno
	}
	var event struct {
		data, object    uint64
		result, result2 int64
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, queue, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return errno
		case event.result != int64(len(p)):
			return fmt.Errorf("io_submit wrote %d", event.result)
		default:
			runtime.KeepAlive(p)
			return nil
		}
	}
}

// jobLocks takes OFD locks as QEMU does.
func jobLocks(args []string) error {
	f, err := openDisk(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := openDisk(args[0])
	if err != nil {
		return err
	}
	defer g.Close()
	lock := func(f *os.File, kind int16) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: 100, Len: 1})
	}
	return errors.Join(
		want("lock", lock(f, unix.F_WRLCK), 0),
		want("lock by another", lock(g, unix.F_RDLCK), syscall.EAGAIN),
		want("unlock", lock(f, unix.F_UNLCK), 0),
		want("lock after", lock(g, unix.F_RDLCK), 0),
	)
}
