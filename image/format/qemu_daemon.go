package format

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout is how long qemu-storage-daemon may take to stop by itself.
const stopTimeout = 5 * time.Second

// storageDaemon is a qemu-storage-daemon that shows one image as a raw file.
//
// The file is opened, and its mount then detached and its directory removed,
// before anyone reads: the file system lives as long as the descriptor, so
// that nothing is left mounted however this process ends. The daemon itself
// gets SIGTERM when this process dies.
type storageDaemon struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr lastWords
	done   chan struct{} // closed when the program has ended
	err    error         // how it ended; read after done
}

// startStorageDaemon starts the program and returns the opened file.
func startStorageDaemon(ctx context.Context, node map[string]any) (*storageDaemon, *os.File, error) {
	bin, err := findTool(toolStorage)
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "sealdisk-format-") // mode 0700
	if err != nil {
		return nil, nil, err
	}
	mnt := filepath.Join(dir, "disk")
	d, f, err := func() (*storageDaemon, *os.File, error) {
		if err := os.WriteFile(mnt, nil, 0o600); err != nil {
			return nil, nil, err
		}
		d, err := launch(ctx, bin, node, mnt)
		if err != nil {
			return nil, nil, err
		}
		f, err := openDetached(mnt)
		if err != nil {
			d.stop()
			return nil, nil, err
		}
		return d, f, nil
	}()
	if rmErr := os.RemoveAll(dir); rmErr != nil && err == nil {
		_ = f.Close() // read only
		d.stop()
		return nil, nil, rmErr
	}
	return d, f, err
}

// launch starts the program and waits until its export is there.
func launch(ctx context.Context, bin string, node map[string]any, mnt string) (*storageDaemon, error) {
	node["node-name"], node["read-only"] = "disk", true
	blockdev, err := json.Marshal(node)
	if err != nil {
		return nil, err
	}
	export, err := json.Marshal(map[string]any{"type": "fuse", "id": "export", "node-name": "disk", "mountpoint": mnt, "writable": false})
	if err != nil {
		return nil, err
	}
	// Options are obeyed in order: the monitor's greeting comes after the
	// export is mounted, and so says that it is.
	d := &storageDaemon{done: make(chan struct{})}
	d.cmd = exec.Command(bin, "--blockdev", string(blockdev), "--export", string(export),
		"--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor")
	d.cmd.Stderr = &d.stderr
	// It takes a buffer from malloc for each request. Left alone, glibc maps
	// and unmaps buffers of this size each time, and the page faults of that
	// are four fifths of all its CPU time.
	d.cmd.Env = append(os.Environ(), "MALLOC_MMAP_MAX_=0", "MALLOC_ARENA_MAX=1",
		"MALLOC_TRIM_THRESHOLD_=134217728", "MALLOC_TOP_PAD_=16777216")
	d.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGTERM, // on SIGKILL it would not unmount
		Setpgid:   true,            // an interrupt from the terminal is for us to handle
	}
	if d.stdin, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = d.cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if _, err := bufio.NewReader(io.LimitReader(out, 64<<10)).ReadSlice('\n'); err == nil {
		return d, nil
	}
	d.stop() // it has ended, or has been told to; how it ended is told below
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%s: cannot open the image: %v%s", toolStorage, d.err, d.stderr.suffix())
}

// start starts the program from a thread that lives as long as it does:
// Pdeathsig is sent when the parent's thread ends, not its process.
func (d *storageDaemon) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			d.err = d.cmd.Wait()
			close(d.done)
		}
	}()
	return <-started
}

// stop ends the program and waits for its end. It may be called twice.
func (d *storageDaemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-d.done:
	case <-timer.C:
		_ = d.cmd.Process.Kill() // fails if it has ended
		<-d.done
	}
	_ = d.stdin.Close() // closed already by Wait
}

// ended says how the program ended, if it has.
func (d *storageDaemon) ended() error {
	select {
	case <-d.done:
		return fmt.Errorf("%s ended: %v%s", toolStorage, d.err, d.stderr.suffix())
	default:
		return nil
	}
}

// openDetached opens the file mounted at mnt and detaches the mount.
func openDetached(mnt string) (*os.File, error) {
	// Without the page cache a read is one request, instead of one for each
	// 128 KiB of read-ahead, and nothing is cached that QEMU would not say
	// again. FUSE wants no alignment for it.
	f, err := os.OpenFile(mnt, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(f.Fd()), &st)
	if err == nil && st.Type != unix.FUSE_SUPER_MAGIC {
		err = fmt.Errorf("%s mounted nothing", toolStorage)
	}
	if err == nil {
		err = detach(mnt)
	}
	if err != nil {
		_ = f.Close() // read only
		return nil, err
	}
	return f, nil
}

// detach takes the mount out of the file tree; without root's rights by the
// program that also mounted it.
func detach(mnt string) error {
	err := unix.Unmount(mnt, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	out, err := exec.Command("fusermount3", "-u", "-z", mnt).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, out)
	}
	return nil
}

// MissingToolError says that a program of QEMU's, without which a format
// cannot be read, is not installed.
type MissingToolError struct {
	Tool    string // the program
	Package string // the Debian package that has it
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.Tool, e.Package)
}

// The programs used, and the packages of Debian 12 that have them.
const (
	toolImg     = "qemu-img"
	toolStorage = "qemu-storage-daemon"
)

func findTool(tool string) (string, error) {
	p, err := exec.LookPath(tool)
	if err == nil {
		return p, nil
	}
	if !errors.Is(err, exec.ErrNotFound) {
		return "", err
	}
	pkg := "qemu-utils"
	if tool == toolStorage {
		pkg = "qemu-system-common"
	}
	return "", &MissingToolError{Tool: tool, Package: pkg}
}

// qemuNode describes the image at path for QEMU so that no part of the name is
// taken for a URL or an option. Without backing its backing file is left out.
func qemuNode(path, format string, backing bool) map[string]any {
	if format == VHD {
		format = "vpc"
	}
	node := map[string]any{
		"driver": format,
		"file":   map[string]any{"driver": "file", "filename": path},
	}
	if !backing {
		node["backing"] = nil
	}
	return node
}

// qemuName is qemuNode as a file name for qemu-img.
func qemuName(path, format string, backing bool) (string, error) {
	b, err := json.Marshal(qemuNode(path, format, backing))
	return "json:" + string(b), err
}

// info is what is used of the answer of qemu-img info.
type info struct {
	VirtualSize   int64  `json:"virtual-size"`
	BackingFile   string `json:"backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
	Specific      struct {
		Data struct {
			CreateType string `json:"create-type"`
			Extents    []struct {
				Filename string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// flat says whether a vmdk has a place for every byte.
func (i *info) flat() bool {
	return strings.HasSuffix(i.Specific.Data.CreateType, "Flat") || i.Specific.Data.CreateType == "vmfs"
}

// qemuInfo asks about one image file, without opening its backing file.
func qemuInfo(ctx context.Context, path, format string) (*info, error) {
	const maxAnswer = 1 << 20
	spec, err := qemuName(path, format, format != VMDK)
	if err != nil {
		return nil, err
	}
	var out info
	err = runTool(ctx, toolImg, []string{"info", "--output=json", spec}, func(r io.Reader) error {
		return json.NewDecoder(io.LimitReader(r, maxAnswer)).Decode(&out)
	})
	if err != nil {
		return nil, err
	}
	if out.VirtualSize < 0 {
		return nil, fmt.Errorf("disk of %d bytes: %w", out.VirtualSize, ErrCorrupt)
	}
	return &out, nil
}

// runTool runs a short-lived program and hands its output to read.
func runTool(caller context.Context, tool string, args []string, read func(io.Reader) error) error {
	path, err := findTool(tool)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stderr lastWords
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(out)
	cut := readErr != nil && !errors.Is(readErr, io.EOF)
	if cut {
		cancel() // it may be blocked on a pipe that nobody reads
	}
	waitErr := cmd.Wait()
	switch {
	case caller.Err() != nil:
		return caller.Err()
	case cut:
		return fmt.Errorf("%s: answer: %w", tool, readErr)
	case waitErr != nil:
		return fmt.Errorf("%s: %w%s", tool, waitErr, stderr.suffix())
	case readErr != nil:
		return fmt.Errorf("%s: answer: %w", tool, io.ErrUnexpectedEOF)
	}
	return nil
}

// lastWords keeps the beginning of what a program says on its standard error.
type lastWords struct{ b bytes.Buffer }

func (l *lastWords) Write(p []byte) (int, error) {
	const limit = 4 << 10
	l.b.Write(p[:min(len(p), limit-min(limit, l.b.Len()))])
	return len(p), nil
}

func (l *lastWords) suffix() string {
	if s := strings.TrimSpace(l.b.String()); s != "" {
		return ": " + s
	}
	return ""
}
