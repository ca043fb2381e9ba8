package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/image/plan"
)

// memory is an image in memory: a source, a target and a place to export to.
type memory struct {
	mu      sync.Mutex
	b       []byte
	extents []format.Extent // what is allocated; nil: all
	own     []format.Extent // of a dependent image
	broken  int64           // offset from which reads fail; 0: none
	written int64           // bytes written or discarded
	covered []bool          // sectors written as an export; a second time is an error
	onRead  func()
}

func (m *memory) Size() int64               { return int64(len(m.b)) }
func (m *memory) Kind() format.Kind         { return format.Dynamic }
func (m *memory) Format() string            { return "memory" }
func (m *memory) Backing() (string, string) { return "", "" }
func (m *memory) Close() error              { return nil }

var errBroken = errors.New("broken")

func (m *memory) read(p []byte, off int64) (int, error) {
	if m.onRead != nil {
		m.onRead()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken > 0 && off+int64(len(p)) > m.broken {
		return 0, errBroken
	}
	n := copy(p, m.b[min(off, int64(len(m.b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// source is memory as a format.Source.
type memorySource struct{ *memory }

func (m memorySource) ReadAt(p []byte, off int64) (int, error) { return m.read(p, off) }

func (m memorySource) Extents(_ context.Context, off, n int64) ([]format.Extent, error) {
	if m.extents == nil {
		return []format.Extent{{Offset: off, Length: n}}, nil
	}
	var out []format.Extent
	at := off
	for _, e := range m.extents {
		from, to := max(e.Offset, off), min(e.Offset+e.Length, off+n)
		if from >= to {
			continue
		}
		if from > at {
			out = append(out, format.Extent{Offset: at, Length: from - at, Zero: true})
		}
		out = append(out, format.Extent{Offset: from, Length: to - from})
		at = to
	}
	if at < off+n {
		out = append(out, format.Extent{Offset: at, Length: off + n - at, Zero: true})
	}
	// Answers may be partial.
	return out[:min(len(out), 3)], nil
}

func (m memorySource) Own(_ context.Context, off, n int64) ([]format.Extent, int64, error) {
	var out []format.Extent
	for _, e := range m.own {
		from, to := max(e.Offset, off), min(e.Offset+e.Length, off+n)
		if from < to {
			out = append(out, format.Extent{Offset: from, Length: to - from, Zero: e.Zero})
		}
	}
	return out, off + n, nil
}

// memoryDisk is memory as a disk.
type memoryDisk struct{ *memory }

func (m memoryDisk) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return m.read(p, off)
}
func (m memoryDisk) Commit(context.Context) error { return nil }

func (m memoryDisk) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written += int64(len(p))
	return copy(m.b[off:], p), nil
}

func (m memoryDisk) Discard(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written += n
	clear(m.b[off : off+n])
	return nil
}

func (m memoryDisk) Resize(_ context.Context, size int64) error {
	m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
	return nil
}

func (m memoryDisk) Next(_ context.Context, off int64) (image.Extent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= int64(len(m.b)) {
		return image.Extent{}, io.EOF
	}
	sector := off / plan.Sector * plan.Sector
	end := min(sector+plan.Sector, int64(len(m.b)))
	data := !bytes.Equal(m.b[sector:end], zeroSector[:end-sector])
	return image.Extent{Offset: sector, Length: end - sector, Data: data}, nil
}

// AddRegion makes memory a sink.
func (m memoryDisk) AddRegion(region uint64, pieces []image.Piece) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range pieces {
		data := p.Data
		for _, r := range p.Runs {
			n := int(r.Count) * plan.Sector
			off := int(region)*plan.Region + int(r.First)*plan.Sector
			if bytes.Equal(data[:plan.Sector], zeroSector[:]) {
				return fmt.Errorf("a zero sector at byte %d", off)
			}
			copy(m.b[off:], data[:n])
			data = data[n:]
		}
		if len(data) != 0 {
			return fmt.Errorf("%d bytes too many", len(data))
		}
	}
	return nil
}

// memoryWriter is memory as an export that checks what format.Writer asks for.
type memoryWriter struct{ *memory }

func (m memoryWriter) Commit() error { return nil }
func (m memoryWriter) Abort() error  { return nil }

func (m memoryWriter) WriteAt(p []byte, off int64) (int, error) {
	if off%exportGrid != 0 {
		return 0, fmt.Errorf("write at %d", off)
	}
	return len(p), m.cover(p, off, int64(len(p)))
}

func (m memoryWriter) WriteZeros(off, n int64) error { return m.cover(nil, off, n) }

func (m memoryWriter) cover(p []byte, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := off / plan.Sector; s < (off+n+plan.Sector-1)/plan.Sector; s++ {
		if m.covered[s] {
			return fmt.Errorf("sector %d twice", s)
		}
		m.covered[s] = true
	}
	copy(m.b[off:off+n], p)
	return nil
}

// scattered makes an image with some extents of random bytes, not all of them
// allocated on sector boundaries.
func scattered(seed uint64, size int) *memory {
	m := &memory{b: make([]byte, size), extents: []format.Extent{}}
	rng := rand.New(rand.NewPCG(seed, 1))
	at := 0
	for at < size {
		at += rng.IntN(min(3<<20, size))
		n := min(size-at, 1+rng.IntN(1<<rng.IntN(22)))
		if n <= 0 {
			break
		}
		m.extents = append(m.extents, format.Extent{Offset: int64(at), Length: int64(n)})
		if rng.IntN(4) > 0 { // else allocated zeros
			for i := at; i < at+n; i += 1 + rng.IntN(5000) {
				m.b[i] = byte(rng.Uint32())
			}
		}
		at += n
	}
	return m
}

// sizes are those at which something may go wrong.
var sizes = []int{1, plan.Sector - 1, plan.Sector, plan.Sector + 1, exportGrid + 1, plan.Region - 1, plan.Region, plan.Region + 1, 2*plan.Region + 12345}

// eachSize runs a test on scattered images of all sizes.
func eachSize(t *testing.T, run func(t *testing.T, size int, seed uint64)) {
	for _, size := range sizes {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%d/%d", size, seed), func(t *testing.T) { run(t, size, seed) })
		}
	}
}

// TestCopyIn: what arrives is what the source holds, by file and by stream, and a plan alone is the same plan.
func TestCopyIn(t *testing.T) {
	ctx := context.Background()
	eachSize(t, func(t *testing.T, size int, seed uint64) {
		m := scattered(seed, size)
		s, err := look(ctx, memorySource{m})
		if err != nil {
			t.Fatal(err)
		}
		whole := (size + plan.Sector - 1) / plan.Sector * plan.Sector
		got := memoryDisk{&memory{b: make([]byte, whole)}}
		p := plan.New(plan.Input{Size: int64(size), Analysers: s.analysers})
		if _, err := copyIn(ctx, memorySource{m}, s, p, got, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.b[:size], m.b) {
			t.Fatal("a file arrived changed")
		}
		if alone, err := Plan(ctx, memorySource{m}, ImportOptions{}); err != nil || alone != p.Report() {
			t.Fatalf("planned alone: %+v, %v, want %+v", alone, err, p.Report())
		}
		got = memoryDisk{&memory{b: make([]byte, whole)}}
		n, _, err := streamIn(ctx, iotest.DataErrReader(bytes.NewReader(m.b)), plan.MinBlock, got, nil)
		if err != nil || n != int64(size) {
			t.Fatalf("stream: %d bytes, %v, want %d", n, err, size)
		}
		if !bytes.Equal(got.b[:size], m.b) {
			t.Fatal("a stream arrived changed")
		}
	})
}

// TestExport: all is covered once, on the grid, and equal.
func TestExport(t *testing.T) {
	eachSize(t, func(t *testing.T, size int, seed uint64) {
		m := scattered(seed, size)
		got := &memory{b: make([]byte, size), covered: make([]bool, (size+plan.Sector-1)/plan.Sector)}
		if _, err := Export(context.Background(), memoryDisk{m}, memoryWriter{got}, nil); err != nil {
			t.Fatal(err)
		}
		if i := slices.Index(got.covered, false); i >= 0 {
			t.Fatalf("sector %d was not covered", i)
		}
		if !bytes.Equal(got.b, m.b) {
			t.Fatal("export differs")
		}
	})
}

// TestUpdate: an update makes equal, and doing it again writes nothing.
func TestUpdate(t *testing.T) {
	ctx := context.Background()
	eachSize(t, func(t *testing.T, size int, seed uint64) {
		src := scattered(seed, size)
		disk := memoryDisk{scattered(seed+7, size-int(seed)*size/3)}
		if _, err := Update(ctx, disk, memorySource{src}, UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(disk.b, src.b) {
			t.Fatal("the disk differs")
		}
		disk.written = 0
		done, err := Update(ctx, disk, memorySource{src}, UpdateOptions{})
		if err != nil || done.Changed != 0 || disk.written != 0 {
			t.Fatalf("again: %d changed, %d written, %v, want none", done.Changed, disk.written, err)
		}
	})
}

// TestOverlay: with OwnOnly only the top layer's ranges count, zeros included, and
// what stands beside them in a sector stays.
func TestOverlay(t *testing.T) {
	base := bytes.Repeat([]byte{1}, 3*plan.Region)
	top := slices.Clone(base)
	top[5000] = 2
	clear(top[20<<20 : 20<<20+8192])
	top[40<<20] = 9 // not its own: nobody looks
	src := &memory{b: top, own: []format.Extent{{Offset: 5000, Length: 1}, {Offset: 20 << 20, Length: 8192, Zero: true}}}
	disk := memoryDisk{&memory{b: slices.Clone(base)}}
	done, err := Update(context.Background(), disk, memorySource{src}, UpdateOptions{OwnOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(top)
	want[40<<20] = 1
	if !bytes.Equal(disk.b, want) {
		t.Error("the disk differs")
	}
	if done.Changed != 3*plan.Sector {
		t.Errorf("%d bytes changed, want %d", done.Changed, 3*plan.Sector)
	}
}

func TestUpdateShrink(t *testing.T) {
	src, disk := &memory{b: make([]byte, 4096)}, &memory{b: make([]byte, 4097)}
	if _, err := Update(context.Background(), memoryDisk{disk}, memorySource{src}, UpdateOptions{}); !errors.Is(err, image.ErrShrink) {
		t.Errorf("got %v, want %v", err, image.ErrShrink)
	}
}

// TestFaults: a source that fails or ends early fails the import, wherever that is.
func TestFaults(t *testing.T) {
	ctx := context.Background()
	for _, at := range []int64{1, plan.Region - 1, plan.Region, 40 << 20} {
		m := &memory{b: bytes.Repeat([]byte{1}, 41<<20), broken: at}
		s := survey{regions: []interval{{0, 2}}}
		p := plan.New(plan.Input{Size: m.Size()})
		sink := memoryDisk{&memory{b: make([]byte, 48<<20)}}
		if _, err := copyIn(ctx, memorySource{m}, s, p, sink, nil); !errors.Is(err, errBroken) {
			t.Errorf("file broken at %d: got %v, want %v", at, err, errBroken)
		}
		r := io.MultiReader(bytes.NewReader(m.b[:at]), iotest.ErrReader(errBroken))
		if _, _, err := streamIn(ctx, r, plan.MinBlock, sink, nil); !errors.Is(err, errBroken) {
			t.Errorf("stream broken at %d: got %v, want %v", at, err, errBroken)
		}
	}
}

// TestCancel: a cancelled import ends, with ctx's error, and leaves no goroutine.
func TestCancel(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	m := &memory{b: bytes.Repeat([]byte{1}, 8*plan.Region), onRead: cancel}
	s := survey{regions: []interval{{0, 7}}}
	p := plan.New(plan.Input{Size: m.Size()})
	_, err := copyIn(ctx, memorySource{m}, s, p, memoryDisk{&memory{b: make([]byte, 8*plan.Region)}}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	n := runtime.NumGoroutine()
	for end := time.Now().Add(10 * time.Second); n > before && time.Now().Before(end); n = runtime.NumGoroutine() {
		runtime.Gosched() // one that has said that it is done may not have ended yet
	}
	if n > before {
		t.Errorf("%d goroutines, want %d", n, before)
	}
}

// TestProgress: the last report says that all is done.
func TestProgress(t *testing.T) {
	m := &memory{b: bytes.Repeat([]byte{1}, plan.Region+5)}
	var mu sync.Mutex
	var last, total int64
	_, err := Export(context.Background(), memoryDisk{m}, memoryWriter{&memory{b: make([]byte, len(m.b)), covered: make([]bool, 4097)}}, func(d, n int64) {
		mu.Lock()
		defer mu.Unlock()
		last, total = max(last, d), n
	})
	if err != nil || last != total || total != m.Size() {
		t.Errorf("%d of %d, %v, want %d of it", last, total, err, m.Size())
	}
}
