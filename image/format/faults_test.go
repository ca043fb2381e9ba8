package format

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// childEnv makes the test's program open the image it names and wait.
const childEnv = "SEALDISK_FORMAT_TEST_OPEN"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		src, err := Open(context.Background(), path, Options{})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(src.(*qemuSource).daemon.cmd.Process.Pid)
		_, _ = io.Copy(io.Discard, os.Stdin) // until killed
	}
	os.Exit(m.Run())
}

// TestKill kills a process that reads through QEMU: nothing must stay behind.
func TestKill(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	img := filepath.Join(dir, "img")
	qemuImg(t, "create", "-f", "vdi", img, "4M")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+img, "TMPDIR="+tmp)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_ = cmd.Process.Kill() // what it answers shows below
	_ = cmd.Wait()         // "signal: killed"
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
		t.Errorf("qemu-storage-daemon runs on: %d, %v", n, err)
	}
	if left, err := os.ReadDir(tmp); len(left) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(tmp)) {
		t.Errorf("left mounted, %v", err)
	}
}

func TestDaemonDies(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	qemuImg(t, "create", "-f", "vdi", img, "4M")
	src, err := Open(t.Context(), img, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close() // the file that the daemon showed is gone: an error
	d := src.(*qemuSource).daemon
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.done
	if _, err := src.ReadAt(make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("got %v, want that it ended", err)
	}
}

func TestShrunk(t *testing.T) {
	for _, f := range []string{"raw", "qcow2", "vpc", "vdi", "vmdk"} {
		t.Run(f, func(t *testing.T) {
			dir := t.TempDir()
			raw, img := filepath.Join(dir, "raw"), filepath.Join(dir, "img")
			writeSparse(t, raw, testContent(testSize, 1))
			qemuImg(t, "convert", "-f", "raw", "-O", f, raw, img)
			src := open(t, img, Options{})
			fi, err := os.Stat(img)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(img, fi.Size()/3); err != nil {
				t.Fatal(err)
			}
			if _, err := src.ReadAt(make([]byte, src.Size()), 0); !errors.Is(err, ErrShrunk) {
				t.Errorf("ReadAt: got %v, want ErrShrunk", err)
			}
			if f != "raw" {
				return
			}
			if _, err := src.Extents(t.Context(), src.Size()/2, 512); !errors.Is(err, ErrShrunk) {
				t.Errorf("Extents: got %v, want ErrShrunk", err)
			}
		})
	}
}

// TestCutOff opens images that were cut off before.
func TestCutOff(t *testing.T) {
	dir := t.TempDir()
	raw, img := filepath.Join(dir, "raw"), filepath.Join(dir, "img")
	writeSparse(t, raw, testContent(testSize, 1))
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, img)
	fi, err := os.Stat(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, fi.Size()-65536); err != nil {
		t.Fatal(err)
	}
	src := open(t, img, Options{})
	if _, err := src.ReadAt(make([]byte, src.Size()), 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if err := os.Truncate(img, 100000); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), img, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no L1 table: got %v, want ErrCorrupt", err)
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	qemuImg(t, "create", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s", path("secret"), "1M")
	qemuImg(t, "create", "-f", "qcow2", "-o", "data_file="+path("data"), path("external"), "1M")
	if err := os.WriteFile(path("bad.vmdk"), []byte("KDMV and no more"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"secret": ErrEncrypted, "external": ErrUnsupported, "gone": fs.ErrNotExist, "fifo": ErrUnsupported, ".": unix.EISDIR} {
		if _, err := Open(t.Context(), path(name), Options{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	if _, err := Open(t.Context(), path("bad.vmdk"), Options{}); err == nil {
		t.Error("bad vmdk: no error")
	}
	if _, err := Open(t.Context(), path("secret"), Options{Format: "qed"}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown format: got %v, want ErrUnsupported", err)
	}
	src := open(t, path("secret"), Options{Format: Raw})
	if fi, err := os.Stat(path("secret")); err != nil || src.Size() != fi.Size() {
		t.Errorf("as raw: %d bytes, %v", src.Size(), err)
	}
}

// TestInUse takes the lock that QEMU takes on what it may write.
func TestInUse(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	qemuImg(t, "create", "-f", "qcow2", img, "1M")
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	lk := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), img, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, img, Options{})
}

func TestMissingTool(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	qemuImg(t, "create", "-f", "vdi", img, "1M")
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, tool := range []string{toolImg, toolStorage} {
		_, err := Open(t.Context(), img, Options{})
		var missing *MissingToolError
		if !errors.As(err, &missing) || missing.Tool != tool {
			t.Errorf("got %v, want that %s is missing", err, tool)
		}
		if err := os.Symlink("/usr/bin/"+tool, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenCancelled(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	qemuImg(t, "create", "-f", "vdi", img, "1M")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, img, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestStream(t *testing.T) {
	content := testContent(100_000, 9)
	s := OpenStream(iotest.OneByteReader(bytes.NewReader(content)))
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := s.Next(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, content) || s.Offset() != int64(len(content)) {
		t.Errorf("got %d bytes, offset %d, want %d", len(got), s.Offset(), len(content))
	}
	if n, err := s.Next(buf); n != 0 || err != io.EOF {
		t.Errorf("after the end: got %d, %v", n, err)
	}
	s = OpenStream(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)))
	if n, err := s.Next(buf); n != 3 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: got %d, %v, want io.ErrUnexpectedEOF", n, err)
	}
}
