package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/fs"
)

// persistent opens a new store as a mount command does, with an image vm.
func persistent(t *testing.T) *Conn {
	t.Helper()
	o := newStore(t)
	o.Persistent = true
	c := connect(t, o)
	importStream(t, c, "vm", make([]byte, 1<<20))
	return c
}

func mountRequest(dir string) MountRequest { return MountRequest{Dir: dir, UID: -1, GID: -1} }

// mountPoint is an empty folder from which all mounts are taken in the end.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	return dir
}

// guest is another process that has a file open: this one must not wait for its
// own mount.
type guest struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func openGuest(t *testing.T, path string) *guest {
	t.Helper()
	g := &guest{cmd: exec.Command("/bin/sh", "-c", `exec 3<>"$0"; echo open; while read line; do echo works >&3; sync /proc/self/fd/3; echo $?; done`, path)}
	g.cmd.Stderr = os.Stderr
	var err error
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.in.Close(); _ = g.cmd.Wait() })
	g.out = bufio.NewScanner(out)
	if g.out.Scan(); g.out.Text() != "open" {
		t.Fatalf("the guest says %q", g.out.Text())
	}
	return g
}

// write makes the guest write and flush, and gives what it has to say.
func (g *guest) write() string {
	fmt.Fprintln(g.in, "write")
	g.out.Scan()
	return strings.TrimSpace(g.out.Text())
}

// TestDetachedIsServed: a daemon lives for a guest whose mount was detached, also
// when another mount has come and gone at the same folder.
func TestDetachedIsServed(t *testing.T) {
	c := persistent(t)
	dir := mountPoint(t)
	must[Nothing](t, c, OpMount, mountRequest(dir))
	g := openGuest(t, filepath.Join(dir, "vm"))
	refused(t, c, OpUnmount, UnmountRequest{Dir: dir}, CodeInUse)
	must[Nothing](t, c, OpUnmount, UnmountRequest{Dir: dir, Force: true})
	refused(t, c, OpUnmount, UnmountRequest{Dir: dir, Force: true}, CodeNotFound)
	must[Nothing](t, c, OpMount, mountRequest(dir))
	must[Nothing](t, c, OpUnmount, UnmountRequest{Dir: dir})

	done, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Wait(done, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("the end of the daemon: got %v, want %v", err, context.Canceled)
	}
	if got := g.write(); got != "0" {
		t.Errorf("the guest's flush gave %q, want 0", got)
	}
	g.in.Close()
	if err := c.Wait(context.Background(), dir); err != nil {
		t.Error(err)
	}
}

// TestMountsInTurn: of all who mount at one folder at once one succeeds.
func TestMountsInTurn(t *testing.T) {
	c := persistent(t)
	dir := mountPoint(t)
	other := dir + "-link"
	if err := os.Symlink(dir, other); err != nil {
		t.Fatal(err)
	}
	errs := make([]error, 6)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			at := dir
			if i%2 == 1 {
				at = other
			}
			errs[i] = c.local.mounts.mount(context.Background(), mountRequest(at))
		})
	}
	all.Wait()
	mounted := 0
	for _, err := range errs {
		switch {
		case err == nil:
			mounted++
		case !errors.Is(err, fs.ErrMounted):
			t.Errorf("got %v, want %v", err, fs.ErrMounted)
		}
	}
	if mounted != 1 {
		t.Errorf("%d mounts of one folder, want 1", mounted)
	}
	dirs, _ := c.local.mounts.dirs()
	for _, d := range dirs {
		must[Nothing](t, c, OpUnmount, UnmountRequest{Dir: d})
	}
}

// TestEndingMounts: a daemon does not end while a mount is being made, and when
// it ends it makes none: who asks is sent to the next daemon.
func TestEndingMounts(t *testing.T) {
	ctx := context.Background()
	c := persistent(t)
	m, dir := c.local.mounts, mountPoint(t)
	made, err := m.begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithCancel(ctx)
	cancel()
	if err := m.wait(late); !errors.Is(err, context.Canceled) {
		t.Errorf("while one is made: got %v, want %v", err, context.Canceled)
	}
	if err := m.mount(late, mountRequest(dir)); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has gone: got %v, want %v", err, context.Canceled)
	}
	m.end()
	srv, err := fs.Mount(ctx, &library{d: c.local}, fs.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.add(ctx, dir, srv); !errors.Is(err, errEnding) {
		t.Errorf("at the end: got %v, want %v", err, errEnding)
	}
	if err := srv.Unmount(ctx); err != nil {
		t.Error(err)
	}
	made()
	if err := m.wait(ctx); err != nil {
		t.Error(err)
	}
	if err := c.Client.Call(ctx, OpMount, mountRequest(dir), nil, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after the end: got %v, want %v", err, ErrUnreachable)
	}
	if _, err := connectOnce(ctx, c.opts); !errors.Is(err, errPassing) {
		t.Errorf("the next daemon: got %v, want %v", err, errPassing)
	}
}
