package fs

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
	"testing"

	"github.com/sealdisk/sealdisk/internal/imagetest"
)

// childError runs a job and gives its error.
func childError(do string, args ...string) error {
	return imagetest.Child(context.Background(), imagetest.Job{Do: do, Args: args})
}

// holder is a shell that keeps a file open.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func hold(t *testing.T, path string) *holder {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `exec 3<"$0"; echo open; read line; head -c 1 <&3 | od -An -c; read line`, path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd, in, bufio.NewScanner(out)}
	if got := h.line(); got != "open" {
		t.Fatalf("the shell says %q", got)
	}
	return h
}

func (h *holder) line() string {
	h.out.Scan()
	return strings.TrimSpace(h.out.Text())
}

// read makes the shell read its first byte.
func (h *holder) read() string {
	fmt.Fprintln(h.in, "read")
	return h.line()
}

func (h *holder) end(t *testing.T) {
	t.Helper()
	h.in.Close()
	if err := h.cmd.Wait(); err != nil && !strings.Contains(err.Error(), "exit status 1") {
		t.Error(err)
	}
}

func TestMountPointErrors(t *testing.T) {
	r := newRig(t, nil)
	tmp := t.TempDir()
	file := filepath.Join(tmp, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(r.opts.Dir, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  string
		want error
	}{
		{filepath.Join(tmp, "none"), ErrNotExist},
		{file, ErrNotDirectory},
		{filepath.Join(file, "below"), ErrNotDirectory},
		{tmp, ErrNotEmpty},
		{r.opts.Dir, ErrMounted},
		{link, ErrMounted},
	} {
		s, err := Mount(t.Context(), newMemLibrary(), Options{Dir: c.dir})
		var m *MountError
		if !errors.Is(err, c.want) || !errors.As(err, &m) {
			t.Errorf("%s: got %v, want %v", c.dir, err, c.want)
		}
		if s != nil {
			s.Detach(t.Context())
		}
	}
}

// TestUnmountWhileOpen shows who is in the way, that the mount works on, and that it ends cleanly after.
func TestUnmountWhileOpen(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 1<<20)
	r.child("fill", r.path("disk"), "a")
	h := hold(t, r.path("disk"))
	err := r.s.Unmount(t.Context())
	var busy *BusyError
	if !errors.Is(err, ErrBusy) || !errors.As(err, &busy) {
		t.Fatalf("got %v, want ErrBusy", err)
	}
	if len(busy.Users) != 1 || busy.Users[0].PID != h.cmd.Process.Pid || busy.Users[0].Path != r.path("disk") || busy.Users[0].Command != "sh" {
		t.Errorf("users: %+v, want sh, %d", busy.Users, h.cmd.Process.Pid)
	}
	if got := h.read(); got != "a" {
		t.Errorf("read %q after the refused unmount", got)
	}
	h.end(t)
	if err := r.s.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
	if mounted(r.opts.Dir) {
		t.Error("still mounted")
	}
}

// TestDetach shows that open files outlive the name of the mount.
func TestDetach(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 1<<20)
	r.child("fill", r.path("disk"), "a")
	h := hold(t, r.path("disk"))
	if err := r.s.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mounted(r.opts.Dir) {
		t.Error("still mounted")
	}
	if got := h.read(); got != "a" {
		t.Errorf("read %q after the detach", got)
	}
	select {
	case <-r.s.Done():
		t.Error("done while a file is open")
	default:
	}
	h.end(t)
	r.s.Wait()
}

// TestCutOff aborts the connection while a file is open: every handle is released all the same.
func TestCutOff(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 1<<20)
	h := hold(t, r.path("disk"))
	minor := mountMinor(t, r.opts.Dir)
	if !mounted("/sys/fs/fuse/connections") {
		if out, err := exec.Command("mount", "-t", "fusectl", "fusectl", "/sys/fs/fuse/connections").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	r.s.Wait()
	if n := r.lib.handles(); n != 0 {
		t.Errorf("%d handles are open", n)
	}
	_, err := Mount(t.Context(), r.lib, r.opts)
	if !errors.Is(err, ErrDead) {
		t.Errorf("mount over it: %v, want ErrDead", err)
	}
	h.end(t)
	if out, err := exec.Command("umount", r.opts.Dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// mountMinor is the number that the kernel gives a connection.
func mountMinor(t *testing.T, dir string) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if m, ok := parseMount(line); ok && m.dir == dir {
			_, minor, _ := strings.Cut(strings.Fields(line)[2], ":")
			return minor
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

func TestUnmountTwice(t *testing.T) {
	r := newRig(t, nil)
	for range 2 {
		if err := r.s.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := r.s.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUnmountedByOthers(t *testing.T) {
	r := newRig(t, nil)
	if out, err := exec.Command("umount", r.opts.Dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.s.Wait()
	if err := r.s.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestMountTable(t *testing.T) {
	for _, c := range []struct {
		line string
		want mountEntry
		ok   bool
	}{
		{`36 35 98:0 / /mnt/a\040b rw,noatime master:1 - ext3 /dev/root rw`, mountEntry{"/mnt/a b", "ext3", "/dev/root"}, true},
		{`36 35 0:44 / /m\134n rw - fuse.sealdisk sealdisk rw`, mountEntry{`/m\n`, "fuse.sealdisk", "sealdisk"}, true},
		{`36 35 0:44 / /m rw master:1 shared:2 - tmpfs none`, mountEntry{"/m", "tmpfs", "none"}, true},
		{`36 35 0:44 / /m rw -`, mountEntry{}, false},
		{``, mountEntry{}, false},
		{`- - - -`, mountEntry{}, false},
	} {
		if got, ok := parseMount(c.line); got != c.want || ok != c.ok {
			t.Errorf("%q: got %+v, %v, want %+v, %v", c.line, got, ok, c.want, c.ok)
		}
	}
	if got := unescape(`a\1`); got != `a\1` {
		t.Errorf("unescape: %q", got)
	}
}
