package powercut

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What uses a mount runs in another process of this binary.
const (
	envRole = "POWERCUT_TEST_ROLE"
	envDir  = "POWERCUT_TEST_DIR"
)

var roles = map[string]func(dir string) error{
	"unsynced":   roleUnsynced,
	"synced":     roleSynced,
	"rename":     roleRename,
	"rename2":    roleRename2,
	"mapped":     roleMapped,
	"mappedsync": roleMappedSync,
	"calls":      roleCalls,
}

func TestMain(m *testing.M) {
	role := os.Getenv(envRole)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](os.Getenv(envDir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// after is the file system on which a role has run.
func after(t *testing.T, f *FS, role string) *FS {
	t.Helper()
	dir := t.TempDir()
	m, err := f.Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Unmount(); err != nil {
			t.Fatal(err)
		}
	}()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envRole+"="+role, envDir+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", role, err, out)
	}
	return f.Cut(allKept)
}

// allKept is the seed of a fate that keeps everything.
var allKept = func() uint64 {
	for seed := uint64(0); ; seed++ {
		if f := newFate(seed); f.keep == 1 && f.names == 1 {
			return seed
		}
	}
}()

// files lists a file system, a line for each file.
func (f *FS) files() string {
	var b strings.Builder
	var walk func(n *inode, path string)
	walk = func(n *inode, path string) {
		for _, name := range slices.Sorted(maps.Keys(n.entries)) {
			child := n.entries[name]
			if child.dir() {
				walk(child, path+name+"/")
			} else if child.content != nil {
				fmt.Fprintf(&b, "%s%s=%.8q ", path, name, child.all())
			}
		}
	}
	walk(f.root, "")
	return strings.TrimSpace(b.String())
}

// wantOutcomes compares what cuts leave with what must come, and may.
func wantOutcomes(t *testing.T, f *FS, must ...string) {
	t.Helper()
	seen := make(map[string]int)
	for seed := range uint64(400) {
		seen[f.Cut(seed).files()]++
	}
	for _, want := range must {
		if seen[want] == 0 {
			t.Errorf("no cut leaves %q", want)
		}
		delete(seen, want)
	}
	for got := range seen {
		t.Errorf("a cut leaves %q", got)
	}
}

func write(path, text string, sync bool) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func roleUnsynced(dir string) error { return write(filepath.Join(dir, "a"), "new", false) }

func TestUnsynced(t *testing.T) {
	f := New()
	after(t, f, "unsynced")
	wantOutcomes(t, f, "", `a=""`, `a="new"`, `a="\x00\x00\x00"`)
}

func roleSynced(dir string) error {
	return errors.Join(write(filepath.Join(dir, "a"), "new", true), syncDir(dir), write(filepath.Join(dir, "b"), "x", true))
}

// A synced file whose name was synced stays; one whose name was not is there whole or not.
func TestSynced(t *testing.T) {
	f := New()
	after(t, f, "synced")
	want := f.files()
	if !strings.Contains(want, "b=") {
		t.Fatalf("got %q", want)
	}
	wantOutcomes(t, f, `a="new"`, want)
}

func roleRename(dir string) error {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	return errors.Join(write(a, "old", true), syncDir(dir), write(b, "new", true), os.Rename(b, a))
}

// A rename is all or nothing, and without a sync of the folder it may be undone.
func TestRename(t *testing.T) {
	f := New()
	after(t, f, "rename")
	seen := make(map[string]bool)
	for seed := range uint64(400) {
		seen[f.Cut(seed).files()] = true
	}
	if !seen[`a="old"`] || !seen[`a="new"`] {
		t.Errorf("got %v, want both the old and the new file", seen)
	}
	for got := range seen {
		if strings.Contains(got, "a=\"new\"") && strings.Contains(got, "b=") || !strings.Contains(got, "a=") {
			t.Errorf("half a rename: %q", got)
		}
	}
}

func roleRename2(dir string) error {
	x, y := filepath.Join(dir, "x"), filepath.Join(dir, "y")
	return errors.Join(os.Mkdir(x, 0o700), os.Mkdir(y, 0o700), syncDir(dir), write(filepath.Join(x, "a"), "new", true),
		os.Rename(filepath.Join(x, "a"), filepath.Join(y, "b")), syncDir(y))
}

// The sync of one folder makes all of a rename durable.
func TestRenameBetweenFolders(t *testing.T) {
	f := New()
	after(t, f, "rename2")
	wantOutcomes(t, f, `y/b="new"`)
}

func mapped(dir string, sync bool) error {
	f, err := os.OpenFile(filepath.Join(dir, "m"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(2*pageSize), f.Sync(), syncDir(dir)); err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(b, "mapped")
	if sync {
		err = unix.Msync(b, unix.MS_SYNC)
	}
	return errors.Join(err, unix.Munmap(b))
}

func roleMapped(dir string) error     { return mapped(dir, false) }
func roleMappedSync(dir string) error { return mapped(dir, true) }

func TestMapped(t *testing.T) {
	f := New()
	after(t, f, "mapped") // unmounting wrote the page back, which syncs nothing
	wantOutcomes(t, f, `m="\x00\x00\x00\x00\x00\x00\x00\x00"`, `m="mapped\x00\x00"`)
	f = New()
	after(t, f, "mappedsync")
	wantOutcomes(t, f, `m="mapped\x00\x00"`)
}

// roleCalls is the rest of what the store asks of a file system.
func roleCalls(dir string) error {
	path := filepath.Join(dir, "a")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := errors.Join(unix.Fallocate(fd, 0, 0, 1<<20), unix.Flock(fd, unix.LOCK_EX)); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("data"), 5*pageSize); err != nil {
		return err
	}
	for whence, want := range map[int]int64{unix.SEEK_DATA: 5 * pageSize, unix.SEEK_HOLE: 0} {
		if off, err := unix.Seek(fd, 0, whence); err != nil || off != want {
			return fmt.Errorf("seek %d: %d, %v, want %d", whence, off, err, want)
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(dir, "b")); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "b"), unix.AT_FDCWD, filepath.Join(dir, "socket"), unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("rename over a file: %v, want EEXIST", err)
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := f.ReadAt(b, 5*pageSize); err != nil || string(b) != "data" { // open and without a name
		return fmt.Errorf("an unlinked file reads %q, %v", b, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Type() != fs.ModeSocket {
		return fmt.Errorf("folder: %v, %v, want the socket alone", entries, err)
	}
	return nil
}

func TestCalls(t *testing.T) {
	f := New()
	after(t, f, "calls")
	if got := f.Synced().files(); got != "" {
		t.Errorf("left behind: %q", got)
	}
	if names, _ := f.Pending(); names == 0 {
		t.Error("nothing pends, and no folder was synced")
	}
}
