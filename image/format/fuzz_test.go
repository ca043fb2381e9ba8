package format

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fuzzInput shows bytes as an image's file. Each worker has one file.
func fuzzInput(f *testing.F) func(b []byte) *input {
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "image")
	f.Cleanup(func() { file.Close() })
	return func(b []byte) *input {
		if err := file.Truncate(0); err != nil {
			f.Fatal(err)
		}
		if _, err := file.WriteAt(b, 0); err != nil {
			f.Fatal(err)
		}
		return &input{f: file, size: int64(len(b))}
	}
}

// checkLayer reads the beginning and the end of a layer of hostile content:
// whatever it says, it must say the same in one piece and in many.
func checkLayer(t *testing.T, l layer) {
	const window = 256 << 10
	src := &overlay{layer: l}
	size := src.Size()
	for _, off := range []int64{0, max(0, size-window)} {
		n := min(window, size-off)
		whole := make([]byte, n)
		if _, err := src.ReadAt(whole, off); err != nil {
			continue
		}
		for at := int64(0); at < n; at += 3000 {
			p := make([]byte, min(3000, n-at))
			if _, err := src.ReadAt(p, off+at); err != nil || !bytes.Equal(p, whole[at:at+int64(len(p))]) {
				t.Fatalf("%d bytes at %d of %d: read differently, %v", len(p), off+at, size, err)
			}
		}
		list, err := src.Extents(t.Context(), off, n)
		if err != nil {
			t.Fatalf("extents of what can be read: %v", err)
		}
		next := off
		for _, e := range list {
			if e.Offset != next || e.Length <= 0 || e.Zero && !allZero(whole[e.Offset-off:e.Offset-off+e.Length]) {
				t.Fatalf("extent %+v at %d", e, next)
			}
			next += e.Length
		}
		if next != off+n {
			t.Fatalf("extents end at %d of %d", next, off+n)
		}
	}
}

func FuzzQcow2(f *testing.F) {
	in := fuzzInput(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := openQcow2(in(b)); err == nil {
			checkLayer(t, l)
		}
	})
}

func FuzzVHD(f *testing.F) {
	in := fuzzInput(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		i := in(b)
		h, err := readVHDHeader(i, i.size)
		if err != nil {
			return
		}
		for _, name := range h.parents {
			for _, p := range vhdParentPaths("/dir/child.vhd", name) {
				if !filepath.IsAbs(p) {
					t.Errorf("parent %q at %q", name, p)
				}
			}
		}
		if l, err := openVHD(i); err == nil {
			checkLayer(t, l)
		}
	})
}

func FuzzDetect(f *testing.F) {
	in := fuzzInput(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := detect(in(b)); err != nil {
			t.Errorf("no answer: %v", err)
		}
	})
}

func FuzzQEMUMap(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		const size = 1 << 20
		own, err := parseQEMUMap(bytes.NewReader(b), size)
		if err != nil {
			return
		}
		next := int64(0)
		for _, e := range own {
			if e.Offset < next || e.Length <= 0 || e.Length > size-e.Offset {
				t.Fatalf("extent %+v after %d", e, next)
			}
			next = e.Offset + e.Length
		}
	})
}

// TestCorpora fails if a fuzz target has lost its seeds.
func TestCorpora(t *testing.T) {
	for _, name := range []string{"FuzzQcow2", "FuzzVHD", "FuzzDetect", "FuzzQEMUMap"} {
		seeds, err := os.ReadDir(filepath.Join("testdata", "fuzz", name))
		if err != nil || len(seeds) == 0 {
			t.Errorf("%s: %d seeds, %v", name, len(seeds), err)
		}
	}
}
