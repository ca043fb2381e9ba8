package format

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (needs root): %v\n%s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v\n%s", err, out)
		}
	})
	return dev
}

func TestDevice(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	content := testContent(testSize, 1)
	copy(content, qcow2Magic+"\x00\x00\x00\x03") // a guest can write that
	if err := os.WriteFile(img, content, 0o600); err != nil {
		t.Fatal(err)
	}
	dev := loopDevice(t, img)
	if f, err := Detect(dev); f != Raw || err != nil {
		t.Errorf("Detect: got %q, %v, want raw", f, err)
	}
	src := open(t, dev, Options{})
	checkSource(t, src, content)
	if src.Kind() != Linked {
		t.Errorf("got a %v device", src.Kind())
	}
	if _, err := CreateRaw(dev, testSize, true); !errors.Is(err, ErrInUse) {
		t.Errorf("write to what is read: got %v, want ErrInUse", err)
	}
}

func TestMountedDevice(t *testing.T) {
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 8<<20), os.Mkdir(mnt, 0o700)); err != nil {
		t.Fatal(err)
	}
	dev := loopDevice(t, img)
	if out, err := exec.Command("mkfs.ext4", "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	if err := unix.Mount(dev, mnt, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if _, err := Open(t.Context(), dev, Options{}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), mnt) {
		t.Errorf("mounted read-write: got %v, want ErrInUse at %s", err, mnt)
	}
	if _, err := CreateRaw(dev, 1<<20, true); !errors.Is(err, ErrInUse) {
		t.Errorf("write to a mounted device: got %v, want ErrInUse", err)
	}
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	open(t, dev, Options{})
}

func TestWriteDevice(t *testing.T) {
	dir := t.TempDir()
	img := filepath.Join(dir, "img")
	const devSize = 4 << 20
	old := bytes.Repeat([]byte{0xaa}, devSize)
	if err := os.WriteFile(img, old, 0o600); err != nil {
		t.Fatal(err)
	}
	dev := loopDevice(t, img)
	if _, err := CreateRaw(dev, 1<<20, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("without force: got %v, want fs.ErrExist", err)
	}
	if _, err := CreateRaw(dev, devSize+1, true); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("too small: got %v, want ENOSPC", err)
	}
	const size = 3<<20 + 100
	w, err := CreateRaw(dev, size, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	want := make([]byte, size)
	copy(want, testContent(1<<20+10, 1))
	if _, err := w.WriteAt(want[:1<<20+10], 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Error("commit of a device that was written in part: no error")
	}
	for _, r := range [][2]int64{{1<<20 + 10, 1<<20 - 10}, {2 << 20, 1 << 20}, {3 << 20, 100}} {
		if err := w.WriteZeros(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, devSize)
	src := open(t, dev, Options{})
	if _, err := src.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:size], want) || !bytes.Equal(got[size:], old[size:]) {
		t.Error("the device holds something else")
	}
}
