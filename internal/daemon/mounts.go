package daemon

import (
	"context"
	"errors"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/fs"
)

// mounts is the mounts of a daemon.
type mounts struct {
	d    *Daemon
	turn chan struct{} // held while a mount is made: the next one must see it

	mu      sync.Mutex
	byDir   map[string]*fs.Server   // what can be unmounted
	live    map[*fs.Server]struct{} // that, and what was detached with files open
	pending int                     // mounts that are being made
	over    bool                    // the daemon ends: there will be no other mount
	changed chan struct{}           // closed and replaced when live or pending shrinks
}

// errEnding: the daemon makes no mount any more, and another process is about to
// have the store. Its client looks for that one.
var errEnding = errors.New("daemon: ending")

func newMounts(d *Daemon) *mounts {
	return &mounts{
		d: d, turn: make(chan struct{}, 1), byDir: map[string]*fs.Server{}, live: map[*fs.Server]struct{}{},
		changed: make(chan struct{}),
	}
}

// dirs lists where something is mounted, sorted, and whether it is the last list.
func (m *mounts) dirs() (list []string, over bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list = make([]string, 0, len(m.byDir))
	for dir := range m.byDir {
		list = append(list, dir)
	}
	slices.Sort(list)
	return list, m.over
}

// end makes all further mounts fail, also those that are being made.
func (m *mounts) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
}

// serves says whether there are mounts, or will be.
func (m *mounts) serves() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.live) > 0 || m.pending > 0
}

// wait returns when there is no mount, also none that was detached, and there
// will be none; or when ctx ends.
func (m *mounts) wait(ctx context.Context) error {
	return m.until(ctx, func() bool {
		none := len(m.live) == 0 && m.pending == 0
		m.over = m.over || none
		return none
	})
}

// waitFor returns when what is mounted at dir has gone, or when ctx ends.
func (m *mounts) waitFor(ctx context.Context, dir string) error {
	m.mu.Lock()
	srv := m.byDir[dir]
	m.mu.Unlock()
	return m.until(ctx, func() bool {
		_, lives := m.live[srv]
		return !lives
	})
}

func (m *mounts) until(ctx context.Context, isLocked func() bool) error {
	for {
		m.mu.Lock()
		is, changed := isLocked(), m.changed
		m.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *mounts) wakeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
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
	done, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	servePages()
	largePages()
	srv, err := fs.Mount(ctx, lib, fs.Options{
		Dir: r.Dir, Source: m.d.opts.Store, ReadOnly: r.ReadOnly, AllowOther: r.AllowOther,
		UID: owner(r.UID, os.Getuid()), GID: owner(r.GID, os.Getgid()), Logger: m.d.log,
	})
	if err != nil {
		return err
	}
	if err := m.add(ctx, r.Dir, srv); err != nil {
		// Nobody has been told of it, so nobody would end it.
		return errors.Join(err, srv.Detach(context.WithoutCancel(ctx)))
	}
	m.d.log.Info("mounted", "dir", r.Dir)
	return nil
}

// begin keeps the daemon from ending, and other mounts from being made, until done.
func (m *mounts) begin(ctx context.Context) (done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return nil, errEnding
	}
	m.pending++
	m.mu.Unlock()
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.mu.Lock()
	if err != nil {
		m.pending--
		m.wakeLocked()
		return nil, err
	}
	return func() {
		<-m.turn
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pending--
		m.wakeLocked()
	}, nil
}

// add makes a mount known, unless it is not wanted any more.
func (m *mounts) add(ctx context.Context, dir string, srv *fs.Server) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[srv] = struct{}{}
	go m.watch(dir, srv)
	switch {
	case m.over:
		return errEnding
	case ctx.Err() != nil:
		return ctx.Err()
	}
	m.byDir[dir] = srv
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
	delete(m.live, srv)
	m.forgetLocked(dir, srv)
	m.wakeLocked()
	m.d.log.Info("unmounted", "dir", dir)
}

func (m *mounts) forgetLocked(dir string, srv *fs.Server) {
	if m.byDir[dir] == srv {
		delete(m.byDir, dir)
	}
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
	if !force || !errors.Is(err, fs.ErrBusy) {
		return err
	}
	if err := srv.Detach(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(dir, srv) // the folder is free; what comes there is another mount
	return nil
}

// invalidate makes the kernel forget what it knows of an image whose name or
// content was changed by an operation.
func (m *mounts) invalidate(name string) {
	m.mu.Lock()
	servers := slices.Collect(maps.Keys(m.live))
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

// largeHeap is what of the heap is backed by large pages, in bytes: about what caches and
// uncommitted writes take.
const largeHeap = 512 << 20

// largePages is useLargePages, once.
var largePages = sync.OnceFunc(useLargePages)

// useLargePages asks for large pages for the first part of the heap, which the runtime
// fills first. Caches of hundreds of MiB are touched all over: with small pages each
// first touch is a fault, and under a hypervisor that keeps shadow page tables a fault
// costs more than opening the page.
func useLargePages() {
	var space unix.Rlimit
	overcommit, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	if unix.Getrlimit(unix.RLIMIT_AS, &space) != nil || space.Cur != unix.RLIM_INFINITY || err != nil || overcommit[0] == '2' {
		return // address space is counted: none to spare
	}
	var b strings.Builder // what it grows by is not zeroed, so not touched
	b.Grow(largeHeap)
	b.WriteByte(0)
	const page = 2 << 20
	start := (uintptr(unsafe.Pointer(unsafe.StringData(b.String()))) + page - 1) &^ (page - 1)
	// Kernels without large pages refuse it.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, largeHeap-page, unix.MADV_HUGEPAGE)
	runtime.KeepAlive(&b)
	runtime.GC() // from here on the heap reuses the address space
}

// servePages asks the kernel not to write to our own mounts when it looks for
// memory on our behalf: that could wait for us for ever. Root alone may ask.
func servePages() { _ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) }
