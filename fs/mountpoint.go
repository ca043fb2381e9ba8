package fs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Why a folder can not become or stop being a mount; told apart with errors.Is.
var (
	ErrNotExist     = errors.New("the mount point does not exist")
	ErrNotDirectory = errors.New("the mount point is not a folder")
	ErrNotEmpty     = errors.New("the mount point is not empty")
	ErrMounted      = errors.New("something is mounted there already")
	ErrDead         = errors.New("a mount whose server has died is there")
	ErrNoHelper     = errors.New("fusermount3 was not found")
	ErrNoFUSE       = errors.New("the kernel offers no FUSE here")
	ErrNotAllowed   = errors.New("mounting is not allowed")
	ErrAllowOther   = errors.New("allow_other is not allowed for users")
	ErrBusy         = errors.New("the mount is in use")
)

// kind is the file system type that the mount table shows.
const kind = "fuse.sealdisk"

// MountError says why a mount was refused and what the user can do.
type MountError struct {
	Dir  string
	Hint string // a sentence for the user, "" if there is none
	Err  error  // one of the errors above, or wraps one
}

func (e *MountError) Error() string { return fmt.Sprintf("fs: mount %s: %v", e.Dir, e.Err) }
func (e *MountError) Unwrap() error { return e.Err }

// User is a process that uses a mount.
type User struct {
	PID     int
	Command string // as in /proc/PID/comm
	Path    string // what it has open, or stands in
}

// BusyError says who keeps a mount from ending. It is an [ErrBusy].
type BusyError struct {
	Dir   string
	Users []User // those that this process may see
}

func (e *BusyError) Error() string {
	s := fmt.Sprintf("fs: unmount %s: %v", e.Dir, ErrBusy)
	for i, u := range e.Users {
		if i == 4 {
			return s + fmt.Sprintf(" and %d more", len(e.Users)-i)
		}
		s += fmt.Sprintf("; %s (pid %d) has %s", u.Command, u.PID, u.Path)
	}
	return s
}

func (e *BusyError) Unwrap() error { return ErrBusy }

// checkMountPoint gives the absolute path of an empty folder. It asks the mount
// table first: to touch a mount whose server hangs would hang us.
func checkMountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("fs: mount %s: %w", dir, err)
	}
	if err := checkFree(abs); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", statError(abs, err)
	}
	if err := checkFree(real); err != nil {
		return "", err
	}
	d, err := os.Open(real)
	if err != nil {
		return "", statError(abs, err)
	}
	defer d.Close()
	switch _, err := d.Readdirnames(1); {
	case err == nil:
		return "", &MountError{Dir: abs, Err: ErrNotEmpty, Hint: "choose an empty folder"}
	case !errors.Is(err, io.EOF):
		return "", statError(abs, err)
	}
	return real, nil
}

func checkFree(dir string) error {
	m, ok := mountAt(dir)
	if !ok {
		return nil
	}
	if m.kind == kind {
		var st unix.Statfs_t // stat(2) may be answered from what the kernel remembers
		if err := unix.Statfs(dir, &st); errors.Is(err, unix.ENOTCONN) {
			return &MountError{Dir: dir, Err: ErrDead, Hint: "run: fusermount3 -u " + dir}
		}
	}
	return &MountError{Dir: dir, Err: fmt.Errorf("%w (%s, %s)", ErrMounted, m.kind, m.source), Hint: "unmount it, or choose another folder"}
}

func statError(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &MountError{Dir: dir, Err: ErrNotExist, Hint: "create it first"}
	case errors.Is(err, syscall.ENOTDIR):
		return &MountError{Dir: dir, Err: ErrNotDirectory}
	}
	return fmt.Errorf("fs: mount %s: %w", dir, err)
}

// mountDirect is mount(2) with the options that fusermount3 would pass. The
// descriptor that it gives is the server's end.
func mountDirect(dir string, o Options) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &MountError{Dir: dir, Err: fmt.Errorf("%w: /dev/fuse: %w", ErrNoFUSE, err), Hint: "load the module fuse, or give the container /dev/fuse"}
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if o.AllowOther {
		data += ",allow_other"
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(o.Source, dir, kind, flags, data); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return -1, &MountError{Dir: dir, Err: fmt.Errorf("%w: %w", ErrNotAllowed, err), Hint: "mounting needs CAP_SYS_ADMIN in this namespace"}
		}
		return -1, fmt.Errorf("fs: mount %s: %w", dir, err)
	}
	return fd, nil
}

// checkHelper finds out beforehand what fusermount3 would only say on stderr.
func checkHelper(dir string, o Options) error {
	if _, err := helperPath(); err != nil {
		return &MountError{Dir: dir, Err: err, Hint: "install the package fuse3"}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return &MountError{Dir: dir, Err: fmt.Errorf("%w: %w", ErrNoFUSE, err), Hint: "load the module fuse, or give the container /dev/fuse"}
	}
	if !o.AllowOther {
		return nil
	}
	conf, err := os.ReadFile("/etc/fuse.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("fs: mount %s: %w", dir, err)
	}
	for line := range bytes.Lines(conf) {
		if string(bytes.TrimSpace(line)) == "user_allow_other" {
			return nil
		}
	}
	return &MountError{Dir: dir, Err: ErrAllowOther, Hint: "an administrator can allow it: a line user_allow_other in /etc/fuse.conf"}
}

// mountEntry is a line of the mount table.
type mountEntry struct{ dir, kind, source string }

// mountAt gives the topmost mount at exactly dir.
func mountAt(dir string) (m mountEntry, ok bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mountEntry{}, false
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if e, valid := parseMount(in.Text()); valid && e.dir == dir {
			m, ok = e, true
		}
	}
	return m, ok
}

func mounted(dir string) bool {
	_, ok := mountAt(dir)
	return ok
}

// parseMount reads a line of /proc/self/mountinfo (proc(5)): the fifth field is
// the folder; type and source follow the field "-".
func parseMount(line string) (mountEntry, bool) {
	fields := strings.Fields(line)
	dash := slices.Index(fields, "-")
	if dash < 6 || dash+2 >= len(fields) {
		return mountEntry{}, false
	}
	return mountEntry{unescape(fields[4]), fields[dash+1], unescape(fields[dash+2])}, true
}

// unescape resolves the \ooo that the kernel writes for blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// users finds the processes that use a mount by what /proc says they have open,
// mapped or stand in; it does not touch the mount.
func users(dir string) (found []User) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			continue
		}
		if path, ok := uses(p, dir); ok {
			comm, _ := os.ReadFile(filepath.Join(p, "comm"))
			found = append(found, User{PID: pid, Command: strings.TrimSpace(string(comm)), Path: path})
		}
	}
	return found
}

func uses(proc, dir string) (path string, ok bool) {
	links := []string{filepath.Join(proc, "cwd"), filepath.Join(proc, "root")}
	for _, sub := range []string{"fd", "map_files"} {
		more, _ := filepath.Glob(filepath.Join(proc, sub, "*"))
		links = append(links, more...)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && (to == dir || strings.HasPrefix(to, dir+"/")) {
			return to, true
		}
	}
	return "", false
}
