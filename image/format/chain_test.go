package format

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// checkOwn says whether Own and the backing file's content make the image.
func checkOwn(t *testing.T, src Source, want, base []byte) {
	t.Helper()
	list, done, err := src.Own(t.Context(), 0, src.Size())
	if err != nil || done != src.Size() {
		t.Fatalf("Own: done %d of %d, %v", done, src.Size(), err)
	}
	got := make([]byte, len(want))
	copy(got, base)
	last := int64(0)
	for _, e := range list {
		if e.Offset < last || e.Length <= 0 {
			t.Fatalf("Own: extent of %d at %d after %d", e.Length, e.Offset, last)
		}
		last = e.Offset + e.Length
		p := got[e.Offset:last]
		clear(p)
		if !e.Zero {
			if _, err := src.ReadAt(p, e.Offset); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("Own leaves out what differs from the backing file")
	}
}

func TestBackingFiles(t *testing.T) {
	for _, c := range []struct{ name, format, options string }{
		{"qcow2", Qcow2, ""},
		{"qcow2-small-clusters-below", Qcow2, "cluster_size=4k"},
		{"qcow2-extended", Qcow2, "extended_l2=on"},
		{"vmdk", VMDK, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			raw, base, top, want := filepath.Join(dir, "raw"), filepath.Join(dir, "base"), filepath.Join(dir, "top"), filepath.Join(dir, "want")
			below, above := testContent(testSize, 5), testContent(testSize, 5)
			copy(above[3<<20+50000:], testContent(300000, 6))
			copy(above[7<<20:], testContent(5000, 7))
			clear(above[64<<10 : 128<<10])
			writeSparse(t, raw, below)
			writeSparse(t, want, above)
			args := []string{"convert", "-f", "raw", "-O", c.format}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			qemuImg(t, append(args, raw, base)...)
			if c.format == VMDK {
				qemuImg(t, "create", "-f", "vmdk", "-b", "base", "-F", "vmdk", top)
			} else {
				qemuImg(t, "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", top)
			}

			writeDiff(t, top, c.format, below, above)

			src := open(t, top, Options{})
			checkSource(t, src, above)
			if p, f := src.Backing(); src.Kind() != Dependent || p != base || f != c.format {
				t.Errorf("got a %v on %q, %q", src.Kind(), p, f)
			}
			checkOwn(t, src, above, below)
			qemuImg(t, "compare", "-f", c.format, "-F", "raw", top, want)

			alone := open(t, top, Options{NoBacking: true})
			checkOwn(t, alone, above, below)
			if n := dataBytes(t, alone); n == 0 || n > 2<<20 {
				t.Errorf("alone: %d bytes of data", n)
			}
			chain, err := Chain(t.Context(), top, Options{})
			if err != nil || len(chain) != 2 || chain[0] != (Layer{base, c.format, testSize}) || chain[1] != (Layer{top, c.format, testSize}) {
				t.Errorf("Chain: got %v, %v", chain, err)
			}
		})
	}
}

// TestMixedChain has layers of several readers, sizes and cluster sizes.
func TestMixedChain(t *testing.T) {
	dir := t.TempDir()
	raw, vdi, a, b := filepath.Join(dir, "raw"), filepath.Join(dir, "vdi"), filepath.Join(dir, "a"), filepath.Join(dir, "b")
	content := testContent(4<<20, 8)
	writeSparse(t, raw, content)
	qemuImg(t, "convert", "-f", "raw", "-O", "vdi", raw, vdi)
	qemuImg(t, "create", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "vdi", "-F", "vdi", a, "3M")
	qemuImg(t, "create", "-f", "qcow2", "-b", "a", "-F", "qcow2", b, "9M")
	want := make([]byte, 9<<20)
	copy(want, content[:3<<20])
	checkSource(t, open(t, b, Options{}), want)
	if own, _, err := open(t, b, Options{}).Own(t.Context(), 0, 9<<20); len(own) != 0 || err != nil {
		t.Errorf("own: got %v, %v, want none", own, err)
	}
}

func TestChainErrors(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	qemuImg(t, "create", "-f", "qcow2", "-u", "-b", "loop2", "-F", "qcow2", path("loop1"), "1M")
	qemuImg(t, "create", "-f", "qcow2", "-u", "-b", "loop1", "-F", "qcow2", path("loop2"), "1M")
	qemuImg(t, "create", "-f", "qcow2", "-u", "-b", "gone", "-F", "qcow2", path("orphan"), "1M")
	qemuImg(t, "create", "-f", "qcow2", "-u", "-b", "nbd://localhost/", "-F", "raw", path("url"), "1M")
	for name, want := range map[string]error{"loop1": ErrChain, "orphan": fs.ErrNotExist, "url": ErrUnsupported} {
		if _, err := Open(t.Context(), path(name), Options{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	src := open(t, path("orphan"), Options{NoBacking: true})
	checkSource(t, src, make([]byte, 1<<20))
	if _, err := Open(t.Context(), "-", Options{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("standard input: got %v", err)
	}
}

// writeDiff writes through QEMU where the contents differ, by 4 KiB.
func writeDiff(t *testing.T, path, format string, below, above []byte) {
	t.Helper()
	const unit = 4096
	dir := t.TempDir()
	var args []string
	for off := 0; off < len(above); off += unit {
		end := min(len(above), off+unit)
		if bytes.Equal(below[off:end], above[off:end]) {
			continue
		}
		if allZero(above[off:end]) {
			args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, end-off))
			continue
		}
		piece := filepath.Join(dir, fmt.Sprint(off))
		if err := os.WriteFile(piece, above[off:end], 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-c", fmt.Sprintf("write -s %s %d %d", piece, off, end-off))
	}
	if out, err := exec.Command("qemu-io", append(append([]string{"-f", format}, args...), path)...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}
