package daemon

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/fs"
)

// mounts is the mounts of a daemon.
type mounts struct {
	d *Daemon

	mu    sync.Mutex
	byDir map[string]*fs.Server
	gone  chan struct{} // closed and replaced when a mount has gone
}

func newMounts(d *Daemon) *mounts {
	return &mounts{d: d, byDir: map[string]*fs.Server{}, gone: make(chan struct{})}
}

// dirs lists where something is mounted, sorted.
func (m *mounts) dirs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]string, 0, len(m.byDir))
	for dir := range m.byDir {
		list = append(list, dir)
	}
	slices.Sort(list)
	return list
}

// wait returns when there is no mount, or when ctx ends.
func (m *mounts) wait(ctx context.Context) error {
	return m.until(ctx, func() bool { return len(m.byDir) == 0 })
}

// waitFor returns when nothing is mounted at dir, or when ctx ends.
func (m *mounts) waitFor(ctx context.Context, dir string) error {
	return m.until(ctx, func() bool { return m.byDir[dir] == nil })
}

func (m *mounts) until(ctx context.Context, isLocked func() bool) error {
	for {
		m.mu.Lock()
		is, gone := isLocked(), m.gone
		m.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *mounts) mount(ctx context.Context, r MountRequest) error {
	if !m.d.opts.Persistent {
		return fail(CodeInUse, "try again when it is done", "the store is in use by %q (process %d)", m.d.opts.Command, os.Getpid())
	}
	lib := &library{d: m.d, only: r.Names, readOnly: r.ReadOnly}
	for _, name := range r.Names {
		if _, err := lib.key(name); err != nil {
			return fail(CodeNotFound, "sealdisk ls lists the images", "no image %q", name)
		}
	}
	servePages()
	srv, err := fs.Mount(ctx, lib, fs.Options{
		Dir: r.Dir, Source: m.d.opts.Store, ReadOnly: r.ReadOnly, AllowOther: r.AllowOther,
		UID: owner(r.UID, os.Getuid()), GID: owner(r.GID, os.Getgid()), Logger: m.d.log,
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.byDir[r.Dir] = srv
	m.mu.Unlock()
	m.d.log.Info("mounted", "dir", r.Dir)
	go m.watch(r.Dir, srv)
	return nil
}

func owner(asked, own int) uint32 {
	if asked < 0 {
		return uint32(own)
	}
	return uint32(asked)
}

// watch ends with the mount; wait and, through it, the daemon's end wait for it.
func (m *mounts) watch(dir string, srv *fs.Server) {
	srv.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byDir[dir] == srv {
		delete(m.byDir, dir)
	}
	close(m.gone)
	m.gone = make(chan struct{})
	m.d.log.Info("unmounted", "dir", dir)
}

// unmount ends a mount. With force files may be open: they work on until they
// are closed, and the daemon with them.
func (m *mounts) unmount(ctx context.Context, dir string, force bool) error {
	m.mu.Lock()
	srv := m.byDir[dir]
	m.mu.Unlock()
	if srv == nil {
		return fail(CodeNotFound, "sealdisk stats lists the mounts", "this store is not mounted at %s", dir)
	}
	err := srv.Unmount(ctx)
	if force && errors.Is(err, fs.ErrBusy) {
		err = srv.Detach(ctx)
	}
	return err
}

// invalidate makes the kernel forget what it knows of an image whose name or
// content was changed by an operation.
func (m *mounts) invalidate(name string) {
	m.mu.Lock()
	servers := make([]*fs.Server, 0, len(m.byDir))
	for _, s := range m.byDir {
		servers = append(servers, s)
	}
	m.mu.Unlock()
	for _, s := range servers {
		s.Invalidate(name)
	}
}

// Harden keeps what is in memory from core dumps and debuggers, and new files
// from everyone else. It is called once, by main, before anything is opened.
func Harden() {
	unix.Umask(0o077)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowth)
	}
	none := unix.Rlimit{}
	// Each may be refused in a container; the others still help.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &none)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// heapGrowth is how much the heap may grow before it is collected, in percent. Most of
// it is caches that hold no pointers, so collecting is cheap, and memory is not.
const heapGrowth = 30

// servePages asks the kernel not to write to our own mounts when it looks for
// memory on our behalf: that could wait for us for ever. Root alone may ask.
func servePages() { _ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) }
