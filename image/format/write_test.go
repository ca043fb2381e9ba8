package format

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestCreateNames(t *testing.T) {
	for _, f := range []string{Raw, Qcow2} {
		t.Run(f, func(t *testing.T) {
			dir := t.TempDir()
			path, link := filepath.Join(dir, "out"), filepath.Join(dir, "link")
			if err := errors.Join(os.WriteFile(path, []byte("old"), 0o600), os.Symlink("out", link)); err != nil {
				t.Fatal(err)
			}
			if _, err := Create(path, f, 100, false); !errors.Is(err, fs.ErrExist) {
				t.Errorf("name taken: got %v, want fs.ErrExist", err)
			}
			w, err := Create(link, f, 1<<20, true)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(path); string(b) != "old" || err != nil {
				t.Errorf("after abort: got %q, %v", b, err)
			}
			if w, err = Create(link, f, 1<<20, true); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
				t.Errorf("the link was replaced: %v, %v", fi, err)
			}
			checkSource(t, open(t, path, Options{Format: f}), make([]byte, 1<<20))

			// The name is taken only after the beginning.
			late := filepath.Join(dir, "late")
			if w, err = Create(late, f, 1, false); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(late, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(); !errors.Is(err, fs.ErrExist) {
				t.Errorf("name taken late: got %v, want fs.ErrExist", err)
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(dir); len(left) != 3 || err != nil {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestWriteRanges(t *testing.T) {
	dir := t.TempDir()
	w, err := CreateQcow2(filepath.Join(dir, "q"), 200000, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, r := range [][2]int64{{-1, 1}, {1, 65536}, {0, 100}, {65536, 200000}, {196608, 3391}} {
		if _, err := w.WriteAt(make([]byte, r[1]), r[0]); err == nil {
			t.Errorf("WriteAt(%d bytes at %d): no error", r[1], r[0])
		}
	}
	if _, err := w.WriteAt(make([]byte, 3392), 196608); err != nil {
		t.Error(err)
	}
	if _, err := Create(filepath.Join(dir, "x"), VDI, 1, false); !errors.Is(err, ErrUnsupported) {
		t.Errorf("vdi: got %v, want ErrUnsupported", err)
	}
	if _, err := CreateRaw(filepath.Join(dir, "x"), -1, false); err == nil {
		t.Error("negative size: no error")
	}
}

// TestRawSparse checks that zeros take no space.
func TestRawSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	content := make([]byte, 16<<20)
	content[5<<20] = 1
	writeSparse(t, path, content)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 64<<10 {
		t.Errorf("takes %d bytes, %v", st.Blocks*512, err)
	}
	src := open(t, path, Options{})
	checkSource(t, src, content)
	if src.Kind() != Dynamic {
		t.Errorf("got a %v image", src.Kind())
	}
}

// TestQcow2Large has many tables, few of them in use.
func TestQcow2Large(t *testing.T) {
	const size = 1 << 40
	path := filepath.Join(t.TempDir(), "out")
	w, err := CreateQcow2(path, size, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	b := testContent(1<<20, 1)
	for _, off := range []int64{0, size / 2, size - 1<<20} {
		if _, err := w.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "check", "-f", "qcow2", path)
	src := open(t, path, Options{})
	if n := dataBytes(t, src); n > 3<<20 {
		t.Errorf("%d bytes of data", n)
	}
	got := make([]byte, 1<<20)
	if _, err := src.ReadAt(got, size-1<<20); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the last MiB differs, %v", err)
	}
}

// TestQcow2Writer writes clusters in any order from several goroutines.
func TestQcow2Writer(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		size := rapid.Int64Range(0, 40*qcow2Cluster).Draw(r, "size")
		content := make([]byte, (size+511)&^511)
		path := filepath.Join(dir, "out")
		w, err := CreateQcow2(path, size, true)
		if err != nil {
			r.Fatal(err)
		}
		defer w.Abort()
		var wg sync.WaitGroup
		for _, c := range rapid.SliceOfDistinct(rapid.Int64Range(0, 39), rapid.ID).Draw(r, "clusters") {
			off := c * qcow2Cluster
			if off >= size {
				continue
			}
			p := content[off:min(off+qcow2Cluster, size)]
			p[len(p)-1] = byte(c % 3) // some stay zero
			wg.Go(func() {
				if _, err := w.WriteAt(p, off); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := w.Commit(); err != nil {
			r.Fatal(err)
		}
		src, err := Open(t.Context(), path, Options{})
		if err != nil {
			r.Fatal(err)
		}
		defer src.Close()
		got := make([]byte, len(content))
		if _, err := src.ReadAt(got, 0); err != nil || src.Size() != int64(len(content)) || !bytes.Equal(got, content) {
			r.Fatalf("reads differently: %d bytes, %v", src.Size(), err)
		}
	})
}

func TestAllZero(t *testing.T) {
	b := make([]byte, 3*4096+1)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 8192, len(b)} {
		if !allZero(b[:n]) {
			t.Errorf("%d zeros: not zero", n)
		}
		if n > 0 {
			b[n-1] = 1
			if allZero(b[:n]) {
				t.Errorf("%d bytes with one at the end: zero", n)
			}
			b[n-1] = 0
		}
	}
}
