package format

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const testSize = 9<<20 + 512 // a last cluster that is short in every format

// qemuImg runs qemu-img, which these tests need.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// testContent is a disk with random data, repeated data, zeros and an end
// that is not on a cluster.
func testContent(size int, seed byte) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{seed})
	fill := func(off, n int) {
		if off < size {
			_, _ = r.Read(b[off:min(size, off+n)]) // never fails
		}
	}
	fill(0, 4096)
	fill(64<<10, 128<<10)
	fill(1<<20+512, 512)
	fill(3<<20+100, 70000)
	fill(size-700, 700)
	copy(b[min(size, 5<<20):min(size, 6<<20)], bytes.Repeat([]byte("sealdisk"), 1<<17))
	return b
}

// writeSparse writes content with holes where it is zero.
func writeSparse(t *testing.T, path string, content []byte) {
	t.Helper()
	w, err := CreateRaw(path, int64(len(content)), true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string, opt Options) Source {
	t.Helper()
	src, err := Open(t.Context(), path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return src
}

// checkSource compares all that a Source answers with the disk's content.
func checkSource(t *testing.T, src Source, want []byte) {
	t.Helper()
	if src.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", src.Size(), len(want))
	}
	checkReads(t, src, want)
	checkExtents(t, src, want)
}

func checkReads(t *testing.T, src Source, want []byte) {
	t.Helper()
	size := len(want)
	check := func(off, n int) {
		off = min(off, size)
		got := bytes.Repeat([]byte{0xa5}, n)
		k, err := src.ReadAt(got, int64(off))
		wantN := max(0, min(n, size-off))
		if k != wantN || (err != nil) != (wantN < n) || (err != nil && err != io.EOF) {
			t.Errorf("ReadAt(%d bytes at %d): got %d, %v, want %d", n, off, k, err, wantN)
		} else if !bytes.Equal(got[:k], want[off:off+k]) {
			t.Errorf("ReadAt(%d bytes at %d): wrong content", n, off)
		}
	}
	check(0, size)
	for _, n := range []int{0, 1, 511, 512, 513, 65535, 65536, 65537, 200000} {
		for _, off := range []int{0, 1, 65535, 65536, 3 << 20, 5<<20 - 1, size - 1} {
			check(off, n)
		}
	}
	if k, err := src.ReadAt(make([]byte, 1), int64(size)); k != 0 || err != io.EOF {
		t.Errorf("ReadAt the end: got %d, %v, want io.EOF", k, err)
	}
	if _, err := src.ReadAt(make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("ReadAt(-1): got %v, want an error", err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 50 {
				off := r.IntN(size)
				check(off, 1+r.IntN(min(150000, size-off)))
			}
		})
	}
	wg.Wait()
}

func checkExtents(t *testing.T, src Source, want []byte) {
	t.Helper()
	for _, r := range [][2]int64{{0, src.Size()}, {1, src.Size() - 1}, {65537, src.Size() / 2}, {src.Size() / 3, 1}, {src.Size(), 0}} {
		off, n := r[0], r[1]
		list, err := src.Extents(t.Context(), off, n)
		if err != nil {
			t.Fatalf("Extents(%d, %d): %v", off, n, err)
		}
		next := off
		for _, e := range list {
			if e.Offset != next || e.Length <= 0 {
				t.Fatalf("Extents(%d, %d): extent of %d at %d, want it at %d", off, n, e.Length, e.Offset, next)
			}
			next += e.Length
			if e.Zero && next <= src.Size() && !allZero(want[e.Offset:next]) {
				t.Errorf("Extents(%d, %d): %d bytes at %d called zero, but are not", off, n, e.Length, e.Offset)
			}
		}
		if next != off+n {
			t.Errorf("Extents(%d, %d) end at %d", off, n, next)
		}
	}
	if _, err := src.Extents(t.Context(), 1, src.Size()); err == nil {
		t.Error("Extents beyond the end: no error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := src.Extents(ctx, 0, src.Size()); src.Kind() != Linked && !errors.Is(err, context.Canceled) {
		t.Errorf("Extents with a context that has ended: got %v", err)
	}
}

// dataBytes is the sum of what a Source does not call zero.
func dataBytes(t *testing.T, src Source) (n int64) {
	t.Helper()
	list, err := src.Extents(t.Context(), 0, src.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if !e.Zero {
			n += e.Length
		}
	}
	return n
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		name, format, qemu, options string
		kind                        Kind
		dense                       bool // QEMU tells no holes
		compress                    bool
	}{
		{name: "qcow2", format: Qcow2, qemu: "qcow2", kind: Dynamic},
		{name: "qcow2-v2", format: Qcow2, qemu: "qcow2", options: "compat=0.10", kind: Dynamic},
		{name: "qcow2-512", format: Qcow2, qemu: "qcow2", options: "cluster_size=512", kind: Dynamic},
		{name: "qcow2-2M", format: Qcow2, qemu: "qcow2", options: "cluster_size=2M", kind: Dynamic},
		{name: "qcow2-zlib", format: Qcow2, qemu: "qcow2", kind: Dynamic, compress: true},
		{name: "qcow2-zstd", format: Qcow2, qemu: "qcow2", options: "compression_type=zstd", kind: Dynamic, compress: true},
		{name: "qcow2-zstd-2M", format: Qcow2, qemu: "qcow2", options: "compression_type=zstd,cluster_size=2M", kind: Dynamic, compress: true},
		{name: "qcow2-extended", format: Qcow2, qemu: "qcow2", options: "extended_l2=on", kind: Dynamic},
		{name: "qcow2-metadata", format: Qcow2, qemu: "qcow2", options: "preallocation=metadata", kind: Dynamic, dense: true},
		{name: "vmdk-sparse", format: VMDK, qemu: "vmdk", options: "subformat=monolithicSparse", kind: Dynamic},
		{name: "vmdk-stream", format: VMDK, qemu: "vmdk", options: "subformat=streamOptimized", kind: Dynamic},
		{name: "vmdk-flat", format: VMDK, qemu: "vmdk", options: "subformat=monolithicFlat", kind: Fixed, dense: true},
		{name: "vmdk-split", format: VMDK, qemu: "vmdk", options: "subformat=twoGbMaxExtentSparse", kind: Dynamic},
		{name: "vhd-fixed", format: VHD, qemu: "vpc", options: "subformat=fixed,force_size=on", kind: Fixed},
		{name: "vhd-dynamic", format: VHD, qemu: "vpc", options: "subformat=dynamic,force_size=on", kind: Dynamic},
		{name: "vhd-geometry", format: VHD, qemu: "vpc", options: "subformat=dynamic", kind: Dynamic},
		{name: "vhdx", format: VHDX, qemu: "vhdx", kind: Dynamic, dense: true},
		{name: "vdi", format: VDI, qemu: "vdi", kind: Dynamic},
		{name: "vdi-static", format: VDI, qemu: "vdi", options: "static=on", kind: Fixed, dense: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			raw, img, back := filepath.Join(dir, "raw"), filepath.Join(dir, "img,a=b"), filepath.Join(dir, "back")
			content := testContent(testSize, 1)
			writeSparse(t, raw, content)
			args := []string{"convert", "-f", "raw", "-O", c.qemu}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			if c.compress {
				args = append(args, "-c")
			}
			qemuImg(t, append(args, raw, img)...)
			// What qemu-img makes of it decides: some formats round the size.
			qemuImg(t, "convert", "-f", c.qemu, "-O", "raw", img, back)
			content, err := os.ReadFile(back)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Detect(img); got != c.format || err != nil {
				t.Errorf("Detect: got %q, %v, want %q", got, err, c.format)
			}
			src := open(t, img, Options{})
			checkSource(t, src, content)
			if src.Kind() != c.kind || src.Format() != c.format {
				t.Errorf("got a %v %s, want a %v %s", src.Kind(), src.Format(), c.kind, c.format)
			}
			if p, f := src.Backing(); p != "" || f != "" {
				t.Errorf("Backing: got %q, %q", p, f)
			}
			if n := dataBytes(t, src); !c.dense && n > 8<<20 {
				t.Errorf("%d bytes are to be read", n)
			}
			checkExports(t, src, img, c.qemu)
		})
	}
}

// export copies src as an import and an export would.
func export(t *testing.T, src Source, w Writer) {
	t.Helper()
	defer w.Abort()
	const piece = 1 << 20
	var wg sync.WaitGroup
	for off := int64(0); off < src.Size(); off += piece {
		wg.Go(func() {
			b := make([]byte, min(piece, src.Size()-off))
			if _, err := src.ReadAt(b, off); err != nil {
				t.Error(err)
			}
			if _, err := w.WriteAt(b, off); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
}

// checkExports exports src in both formats and lets QEMU compare.
func checkExports(t *testing.T, src Source, img, qemu string) {
	t.Helper()
	for _, f := range []string{Raw, Qcow2} {
		out := filepath.Join(t.TempDir(), "out."+f)
		w, err := Create(out, f, src.Size(), false)
		if err != nil {
			t.Fatal(err)
		}
		export(t, src, w)
		qemuImg(t, "compare", "-f", qemu, "-F", f, img, out)
		if f == Qcow2 {
			qemuImg(t, "check", "-f", f, out)
		}
	}
}
