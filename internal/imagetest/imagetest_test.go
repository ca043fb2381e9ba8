package imagetest

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m, nil)) }

// plainFile makes a sparse file.
func plainFile(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return name
}

func openPlain(t *testing.T, size int64) Target {
	t.Helper()
	target, err := OpenFile(plainFile(t, size), sector, nil)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// TestPlainFile shows that a plain file keeps the contract: what it demands is what a file does.
func TestPlainFile(t *testing.T) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			target := openPlain(t, c.Size)
			defer target.Close()
			if err := c.Check(target); (err != nil) != c.Fixed {
				t.Errorf("Check = %v, where Fixed is %v", err, c.Fixed)
			}
		})
	}
}

// TestModelPlainFile shows that the model and a plain file do not differ.
func TestModelPlainFile(t *testing.T) {
	for _, size := range []int64{1, 5000, 24<<20 + 321} {
		target := openPlain(t, size)
		if err := Model(target, ModelOptions{Seed: uint64(size), Ops: 3000, MaxSize: size + 8<<20, Reopens: 5}); err != nil {
			t.Error(err)
		}
		target.Close()
	}
	target := openPlain(t, 8<<20+5)
	defer target.Close()
	if err := Parallel(target, ModelOptions{Seed: 7, Ops: 3000}); err != nil {
		t.Error(err)
	}
}

// memory is a Target in memory that can be told to fail in one way.
type memory struct {
	b     []byte
	fault string
	count int
}

func (m *memory) hit(fault string) bool {
	if m.fault == fault {
		m.count++
	}
	return m.fault == fault && m.count > 5
}

func (m *memory) Paths() []ReadWriterAt { return []ReadWriterAt{m} }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if m.hit("flipped bit") && n > 0 {
		p[n-1] ^= 1
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.hit("short write") {
		p = p[:len(p)-1]
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Discard(off, n int64) error {
	if m.hit("discard of more") && off > 0 {
		off--
	}
	clear(m.b[off : off+n])
	return nil
}

func (m *memory) Zero(off, n int64) error {
	if !m.hit("zero of nothing") {
		clear(m.b[off : off+n])
	}
	return nil
}

func (m *memory) Sync() error { return nil }

func (m *memory) Grow(size int64) error {
	fill := make([]byte, size-int64(len(m.b)))
	if m.fault == "grow with garbage" {
		fill[0] = 1
	}
	m.b = append(m.b, fill...)
	return nil
}

func (m *memory) SeekData(off int64) (int64, error) {
	for i := off; i < int64(len(m.b)); i++ {
		if m.b[i] != 0 && !m.hit("data taken for a hole") {
			return i, nil
		}
	}
	return 0, io.EOF
}

func (m *memory) SeekHole(off int64) (int64, error) {
	for i := off; i < int64(len(m.b)); i++ {
		if m.b[i] == 0 {
			return i, nil
		}
	}
	if off < int64(len(m.b)) {
		return int64(len(m.b)), nil
	}
	return 0, io.EOF
}

func (m *memory) Size() (int64, error) { return int64(len(m.b)), nil }
func (m *memory) Close() error         { return nil }

func (m *memory) Reopen() error {
	if m.fault == "loss on reopen" {
		clear(m.b[:len(m.b)/2])
	}
	return nil
}

// TestFaultsAreFound shows that the model sees each kind of fault and tells the seed and the operations.
func TestFaultsAreFound(t *testing.T) {
	o := ModelOptions{Seed: 3, Ops: 2000, MaxSize: 40 << 10, MaxIO: 8 << 10}
	if err := Model(&memory{b: make([]byte, 30<<10)}, o); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	for _, fault := range []string{"flipped bit", "short write", "discard of more", "zero of nothing",
		"grow with garbage", "data taken for a hole", "loss on reopen"} {
		err := Model(&memory{b: make([]byte, 30<<10), fault: fault}, o)
		if err == nil {
			t.Errorf("%s: not found", fault)
		} else if !strings.Contains(err.Error(), "seed 3") || !strings.Contains(err.Error(), "last operations:\n") {
			t.Errorf("%s: the report lacks the seed or the operations: %v", fault, err)
		}
	}
}

// TestParallelFindsSharedSectors shows that neighbours are told apart within a sector.
func TestParallelFindsSharedSectors(t *testing.T) {
	if err := Parallel(&memory{b: make([]byte, 1<<20), fault: "discard of more"}, ModelOptions{Seed: 1, Ops: 20000, Workers: 1}); err == nil {
		t.Error("a discard of one byte more was not found")
	}
}
