package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
	"github.com/sealdisk/sealdisk/fs/copyserver"
)

// A target shows one disk as the file Path, between Start and Stop.
type target interface {
	Name() string
	// Create makes the disk anew: a copy of the raw file source, or empty if source is "".
	Create(ctx context.Context, source string, size int64) error
	Start(ctx context.Context) error
	// Stop returns when all that was written is in files; they may not be durable yet.
	Stop(ctx context.Context) error
	Path() string
	// Server is the process that serves, nil if there is none.
	Server() *daemon
}

// targets gives every target whose programs are there, in folders of their own below name. The
// others are noted as skipped.
func (b *bench) targets(name string) (list []target, err error) {
	for _, t := range []struct {
		needs  string
		target target
	}{
		{"", &plainTarget{file: b.path(name, "plain", "disk")}},
		{"", &memoryTarget{server: server{b: b, dir: b.path(name, "memory")}}},
		{"", b.sealdiskTarget(name)},
		{"gocryptfs", &gocryptfsTarget{server: server{b: b, dir: b.path(name, "gocryptfs")}}},
		{"qemu-storage-daemon", &qemuTarget{server: server{b: b, dir: b.path(name, "qcow2")}, format: "qcow2"}},
		{"qemu-storage-daemon", &qemuTarget{server: server{b: b, dir: b.path(name, "luks")}, format: "luks"}},
	} {
		if !b.have(t.needs, t.target.Name()) {
			continue
		}
		for _, sub := range []string{"", "mnt"} {
			if err := os.MkdirAll(b.path(name, folderOf(t.target), sub), 0o700); err != nil {
				return nil, err
			}
		}
		list = append(list, t.target)
	}
	return list, nil
}

func folderOf(t target) string {
	switch t := t.(type) {
	case *memoryTarget:
		return "memory"
	case *sealdiskTarget:
		return "sealdisk"
	case *gocryptfsTarget:
		return "gocryptfs"
	case *qemuTarget:
		return t.format
	}
	return "plain"
}

// have reports whether a program is installed, and notes its contender as skipped if not.
func (b *bench) have(program, contender string) bool {
	if program == "" {
		return true
	}
	if _, err := exec.LookPath(program); err != nil {
		b.results.Skip(contender, program+" is not installed and could not be")
		return false
	}
	return true
}

// A plainTarget is a file with nothing in between.
type plainTarget struct{ file string }

func (t *plainTarget) Name() string                { return report.Plain }
func (t *plainTarget) Path() string                { return t.file }
func (t *plainTarget) Server() *daemon             { return nil }
func (t *plainTarget) Start(context.Context) error { return nil }
func (t *plainTarget) Stop(context.Context) error  { return nil }

func (t *plainTarget) Create(_ context.Context, source string, size int64) error {
	return writeDisk(t.file, source, size)
}

// writeDisk makes file a copy of source, or empty.
func writeDisk(file, source string, size int64) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	if source != "" {
		in, err := os.Open(source)
		if err != nil {
			return err
		}
		defer in.Close()
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	return errors.Join(out.Truncate(size), out.Close())
}

// server is what all targets with a process share.
type server struct {
	b   *bench
	dir string // holds the stored disk and the folder mnt
	d   *daemon
}

func (s *server) Server() *daemon { return s.d }
func (s *server) mnt() string     { return s.dir + "/mnt" }

func (s *server) started(d *daemon, err error) error {
	s.d = d
	return err
}

// Stop unmounts and waits for the process.
func (s *server) Stop(context.Context) error {
	if s.d == nil {
		return nil
	}
	err := s.b.unmounted(s.d)
	if err == nil {
		s.d = nil
	}
	return err
}

// A memoryTarget is the server that only copies. Its disk is filled, so that no page is new to it.
type memoryTarget struct {
	server
	source string
	size   int64
}

func (t *memoryTarget) Name() string { return report.Memory }
func (t *memoryTarget) Path() string { return t.mnt() + "/" + copyserver.Name }

func (t *memoryTarget) Create(_ context.Context, source string, size int64) error {
	t.source, t.size = source, size
	return nil
}

func (t *memoryTarget) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return t.started(t.b.start(ctx, t.mnt(), nil, self, "copyserver", t.mnt(), strconv.FormatInt(t.size, 10), t.source))
}

// serveMemory is the process of a memoryTarget.
func serveMemory(dir, size, source string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("size %q", size)
	}
	data, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	content := io.Reader(noise(n))
	if source != "" {
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer f.Close()
		content = f
	}
	if _, err := io.ReadFull(content, data); err != nil {
		return err
	}
	return copyserver.Serve(dir, data)
}

// A sealdiskTarget is an image in a store of its own, mounted by a process of its own.
type sealdiskTarget struct {
	server
	env []string
}

// diskName is what the image is called.
const diskName = "disk"

func (b *bench) sealdiskTarget(name string) *sealdiskTarget {
	dir := b.path(name, "sealdisk")
	return &sealdiskTarget{server: server{b: b, dir: dir}, env: sealdiskEnv(dir)}
}

func sealdiskEnv(dir string) []string {
	return []string{"SEALDISK_STORE=" + dir + "/store", "SEALDISK_HOME=" + dir + "/home"}
}

func (t *sealdiskTarget) Name() string { return report.Sealdisk }
func (t *sealdiskTarget) Path() string { return t.mnt() + "/" + diskName }

// sealdiskCommand runs the binary on the target's store and gives its largest resident set in bytes.
func (t *sealdiskTarget) command(ctx context.Context, args ...string) (int64, error) {
	_, peak, err := t.b.runEnv(ctx, t.env, t.b.sealdisk, append([]string{"--quiet"}, args...)...)
	return peak, err
}

// Create makes a new store.
func (t *sealdiskTarget) Create(ctx context.Context, source string, size int64) error {
	if err := t.reset(ctx); err != nil {
		return err
	}
	if source == "" {
		source = t.dir + "/empty.raw"
		if err := writeDisk(source, "", size); err != nil {
			return err
		}
	}
	_, err := t.command(ctx, "import", "--format", "raw", source, diskName)
	return err
}

// reset makes an empty store.
func (t *sealdiskTarget) reset(ctx context.Context) error {
	for _, sub := range []string{"/store", "/home"} {
		if err := os.RemoveAll(t.dir + sub); err != nil {
			return err
		}
	}
	_, err := t.command(ctx, "init")
	return err
}

func (t *sealdiskTarget) Start(ctx context.Context) error {
	return t.started(t.b.start(ctx, t.mnt(), t.env, t.b.sealdisk, "mount", t.mnt()))
}

// Stop ends the mount by the command, which returns when everything is in the store.
func (t *sealdiskTarget) Stop(ctx context.Context) error {
	if t.d == nil {
		return nil
	}
	if _, err := t.command(ctx, "umount", t.mnt()); err != nil {
		return err
	}
	err := t.b.ended(t.d)
	if err == nil {
		t.d = nil
	}
	return err
}
