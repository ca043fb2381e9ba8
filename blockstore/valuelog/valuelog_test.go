package valuelog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const fileSize = 4 << 20

// mapped makes a value log as Badger does, filled with c up to size bytes and longer
// than that, and gives its mapping.
func mapped(t *testing.T, dir, name string, c byte, size int) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(fileSize); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, fileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	copy(b, bytes.Repeat([]byte{c}, size))
	return b
}

func TestParseMapping(t *testing.T) {
	for _, tt := range []struct {
		line string
		want mapping
		ok   bool
	}{
		{"7f00000000-7f00010000 rw-s 00000000 fe:00 99 /a b/000001.vlog", mapping{0x7f00000000, 0x7f00010000, "/a b/000001.vlog"}, true},
		{"7f00000000-7f00010000 rw-s 00000000 fe:00 99 /a/000001.vlog (deleted)", mapping{}, false},
		{"7f00000000-7f00010000 rw-s 00000000 fe:00 99 /a/000001.sst", mapping{}, false},
		{"7f00000000-7f00010000 rw-p 00000000 00:00 0", mapping{}, false},
		{"7f00010000-7f00000000 rw-s 00000000 fe:00 99 /a/000001.vlog", mapping{}, false},
		{"x-y rw-s 00000000 fe:00 99 /a/000001.vlog", mapping{}, false},
		{".vlog", mapping{}, false},
	} {
		got, ok := parseMapping(tt.line)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q: %v, %v, want %v, %v", tt.line, got, ok, tt.want, tt.ok)
		}
	}
}

// Names have six digits until there are too many of them.
func TestNewest(t *testing.T) {
	dir := t.TempDir()
	if got, err := Newest(dir); got != "" || err != nil {
		t.Errorf("an empty folder: %q, %v", got, err)
	}
	for _, name := range []string{"1000000.vlog", "999999.vlog", "000002.vlog", "2000000.sst"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Newest(dir); got != "1000000.vlog" || err != nil {
		t.Errorf("newest: %q, %v", got, err)
	}
}

// residentPages counts the pages of b that this process has in memory.
func residentPages(t *testing.T, b []byte) int {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := os.Getpagesize()
	entries := make([]byte, 8*len(b)/page)
	if _, err := f.ReadAt(entries, int64(uintptr(unsafe.Pointer(&b[0])))/int64(page)*8); err != nil {
		t.Fatal(err)
	}
	n := 0
	for e := range slices.Chunk(entries, 8) {
		if e[7]&0x80 != 0 {
			n++
		}
	}
	return n
}

// Finished value logs leave this process's memory, the newest does not, and what they
// hold does not change.
func TestUnmap(t *testing.T) {
	dir := t.TempDir()
	old := mapped(t, dir, "000001.vlog", 'a', fileSize)
	newest := mapped(t, dir, "000002.vlog", 'b', fileSize)
	before := residentPages(t, newest)
	if n := residentPages(t, old); n == 0 || before == 0 {
		t.Fatalf("%d and %d pages in memory after writing all", n, before)
	}
	if err := Unmap(dir); err != nil {
		t.Fatal(err)
	}
	if n := residentPages(t, old); n != 0 {
		t.Errorf("%d pages of a finished value log are left", n)
	}
	if n := residentPages(t, newest); n != before {
		t.Errorf("%d pages of the newest value log, had %d", n, before)
	}
	if !bytes.Equal(old, bytes.Repeat([]byte{'a'}, fileSize)) || !bytes.Equal(newest, bytes.Repeat([]byte{'b'}, fileSize)) {
		t.Error("content changed")
	}
}

func TestAllocate(t *testing.T) {
	dir := t.TempDir()
	const written = 1 << 20
	path := filepath.Join(dir, "000001.vlog")
	// Not through a mapping: there a page as large as the file might count as written.
	if err := os.WriteFile(path, bytes.Repeat([]byte{'a'}, written), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, fileSize); err != nil {
		t.Fatal(err)
	}
	a := Ahead{Dir: dir, Limit: 64 << 20}
	if err := a.Allocate(1<<20, 1<<20); !errors.Is(err, ErrBudget) {
		t.Errorf("with too small a budget: %v", err)
	}
	if err := a.Allocate(1<<20, 1<<30); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	// The file of the test is shorter than Badger's would be: what is beyond it is given back.
	if got := st.Blocks * 512; got < fileSize {
		t.Errorf("%d bytes are backed, want %d", got, fileSize)
	}
	if st.Size != fileSize {
		t.Errorf("size %d, was %d", st.Size, fileSize)
	}
	if n, err := Written(dir); n != written || err != nil {
		t.Errorf("written: %d, %v, want %d", n, err, written)
	}
}

// Evict goes on where it ended and leaves the newest alone.
func TestEvict(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"000001.vlog", "000002.vlog", "000003.vlog"} {
		mapped(t, dir, name, 'x', fileSize)
	}
	last, err := Evict(dir, "000001.vlog")
	if last != "000002.vlog" || err != nil {
		t.Errorf("evicted up to %q, %v", last, err)
	}
	if last, err = Evict(dir, last); last != "000002.vlog" || err != nil {
		t.Errorf("again: up to %q, %v", last, err)
	}
}
