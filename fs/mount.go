package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxRequest is the largest read or write that the kernel may send, in bytes.
const maxRequest = 1 << 20

// Options say how a mount looks.
type Options struct {
	Dir        string // an empty folder
	Source     string // what mount(8) and df(1) show as the device; "" is "sealdisk"
	ReadOnly   bool
	AllowOther bool   // users other than the mounting one may pass; the modes still hold
	UID, GID   uint32 // owner of the files
	Logger     *slog.Logger
}

// Server is one mount. Its methods may be called concurrently.
type Server struct {
	dir  string
	fsys *filesystem
	stop context.CancelFunc
	done chan struct{} // closed when every handle has been released

	unmounting sync.Mutex
}

// Mount shows the library at o.Dir and returns when it is usable. ctx bounds the
// mounting, not the mount. What a user can put right comes as a [*MountError].
func Mount(ctx context.Context, lib Library, o Options) (*Server, error) {
	dir, err := checkMountPoint(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("fs: mount %s: %w", dir, err)
	}
	if o.Source == "" {
		o.Source = "sealdisk"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{dir: dir, fsys: newFilesystem(life, lib, o), stop: stop, done: make(chan struct{})}
	server, err := s.attach(o)
	if err != nil {
		stop()
		return nil, err
	}
	go func() {
		server.Serve()
		s.fsys.dropAll()
		stop()
		close(s.done)
	}()
	return s, nil
}

// attach makes the kernel's side. Root calls mount(2) itself, so that the device
// is never open across an exec (a child that held it would keep a dead mount
// alive) and errors keep their number; others go through fusermount3.
func (s *Server) attach(o Options) (*fuse.Server, error) {
	target := s.dir
	if os.Geteuid() == 0 {
		fd, err := mountDirect(s.dir, o)
		if err != nil {
			return nil, err
		}
		target = fmt.Sprintf("/dev/fd/%d", fd) // go-fuse's name for "mounted already"; it owns fd now
	} else if err := checkHelper(s.dir, o); err != nil {
		return nil, err
	}
	server, err := fuse.NewServer(s.fsys, target, s.fuseOptions(o))
	if err != nil {
		if os.Geteuid() == 0 {
			unix.Unmount(s.dir, unix.MNT_DETACH)
		}
		return nil, fmt.Errorf("fs: mount %s: %s", s.dir, strings.TrimSpace(err.Error()))
	}
	return server, nil
}

// fuseOptions is what was measured to serve best: without CAP_ASYNC_DIO deep
// queues run like depth 1, splice costs more than a vector of slices, and
// without DisableXAttrs a GETXATTR goes before each write. No write-back cache:
// with it the kernel keeps its own idea of the size and a grown image would not show.
func (s *Server) fuseOptions(o Options) *fuse.MountOptions {
	m := &fuse.MountOptions{
		FsName:                   o.Source,
		Name:                     "sealdisk",
		AllowOther:               o.AllowOther,
		Options:                  []string{"default_permissions", "noexec"},
		MaxWrite:                 maxRequest,
		MaxBackground:            64,
		DisableXAttrs:            true,
		DisableSplice:            true,
		DisableReadDirPlus:       true,
		ExplicitDataCacheControl: true, // else each change of mtime drops all pages
		ExtraCapabilities:        fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		Logger:                   slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
	}
	if o.ReadOnly {
		m.Options = append(m.Options, "ro")
	}
	return m
}

// Wait returns when the mount is gone and every handle is released.
func (s *Server) Wait() { <-s.done }

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount ends the mount and waits for its last handle. While files are open it
// fails with a [*BusyError] and the mount works on. If the mount is gone already
// it returns nil.
func (s *Server) Unmount(ctx context.Context) error {
	return s.unmount(ctx, 0)
}

// Detach takes the mount out of the folder tree at once. Files that are open go
// on working until they are closed; Wait tells when they are.
func (s *Server) Detach(ctx context.Context) error {
	return s.unmount(ctx, unix.MNT_DETACH)
}

func (s *Server) unmount(ctx context.Context, flags int) error {
	s.unmounting.Lock()
	defer s.unmounting.Unlock()
	if s.ended() {
		return nil
	}
	if err := unmount(ctx, s.dir, flags); err != nil {
		if s.ended() {
			return nil
		}
		if errors.Is(err, unix.EBUSY) {
			return &BusyError{Dir: s.dir, Users: users(s.dir)}
		}
		return fmt.Errorf("fs: unmount %s: %w", s.dir, err)
	}
	if flags&unix.MNT_DETACH != 0 {
		return nil
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fs: unmount %s: requests are still running: %w", s.dir, ctx.Err())
	}
}

func (s *Server) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// unmount gives EBUSY if the mount is in use.
func unmount(ctx context.Context, dir string, flags int) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	}
	helper, err := helperPath()
	if err != nil {
		return err
	}
	args := []string{"-u", "-q", dir}
	if flags&unix.MNT_DETACH != 0 {
		args = []string{"-u", "-q", "-z", dir}
	}
	err = exec.CommandContext(ctx, helper, args...).Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && mounted(dir) && len(users(dir)) > 0 {
		return unix.EBUSY // the helper tells its reasons only in words
	}
	return err
}

// Invalidate makes the kernel forget a name: its pages, its attributes and that
// the name exists. It is for changes that do not come through the mount: an
// image that grew, was renamed, removed or updated, or that another host wrote.
// The content must have changed before the call. The caller must hold no lock
// that a request on the image needs: pages being read or written are waited for.
func (s *Server) Invalidate(name string) {
	f := s.fsys
	f.mu.Lock()
	var ids []uint64
	for id, n := range f.nodes {
		if n.entry.Name == name {
			n.stale.Store(true)
			ids = append(ids, id)
		}
	}
	f.mu.Unlock()
	for _, id := range ids {
		f.server.InodeNotify(id, 0, 0)
	}
	f.server.EntryNotify(rootID, name)
}

// helperPath finds fusermount3.
func helperPath() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
		if p, err := exec.LookPath(filepath.Join("/bin", name)); err == nil {
			return p, nil
		}
	}
	return "", ErrNoHelper
}
