package imagetest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
)

// ModelOptions say what [Model] and [Parallel] do.
type ModelOptions struct {
	Seed    uint64
	Ops     int   // operations, in all
	MaxSize int64 // the target grows no further; 0: it does not grow
	MaxIO   int   // bytes of the largest operation; 0: 256 KiB
	Reopens int   // expected number of times that the target is opened again
	Workers int   // of Parallel; 0: 4
}

// Ops is how many operations a test does: n, or SEALDISK_MODEL_OPS for a long run.
func Ops(n int) int {
	if v, err := strconv.Atoi(os.Getenv("SEALDISK_MODEL_OPS")); err == nil && v > 0 {
		return v
	}
	return n
}

func (o ModelOptions) maxIO() int {
	if o.MaxIO == 0 {
		return 256 << 10
	}
	return o.MaxIO
}

// op is one line of the log.
type op struct {
	number int
	kind   string
	path   int
	off, n int64
}

func (o op) String() string {
	return fmt.Sprintf("%7d %-8s path %d [%d, +%d)", o.number, o.kind, o.path, o.off, o.n)
}

// model is a byte slice beside a target. Where a target may still be all zeros
// the slice is too, so its pages cost nothing until they are written.
type model struct {
	t       Target
	o       ModelOptions
	rng     *rand.Rand
	want    []byte // the whole target; a worker uses [lo, hi)
	lo, hi  int64
	log     []op
	scratch []byte
}

// Model does o.Ops random operations on t, which must hold zeros, and on a byte
// slice. It returns the first difference, with the last operations that touched
// the place.
func Model(t Target, o ModelOptions) error {
	size, err := t.Size()
	if err != nil {
		return err
	}
	m := newModel(t, o, o.Seed, make([]byte, size), 0, size)
	for i := range o.Ops {
		if err := m.step(i); err != nil {
			return m.explain(err)
		}
	}
	if err := m.finish(); err != nil {
		return m.explain(err)
	}
	return nil
}

func newModel(t Target, o ModelOptions, seed uint64, want []byte, lo, hi int64) *model {
	return &model{t: t, o: o, rng: rand.New(rand.NewPCG(seed, 0x5ea1)), want: want, lo: lo, hi: hi, scratch: make([]byte, o.maxIO())}
}

// finish checks everything, durably and opened again.
func (m *model) finish() error {
	if err := m.t.Sync(); err != nil {
		return fmt.Errorf("Sync: %w", err)
	}
	if err := checkAll(m.t, m.want); err != nil {
		return err
	}
	if err := m.t.Reopen(); err != nil {
		return fmt.Errorf("Reopen: %w", err)
	}
	if err := checkAll(m.t, m.want); err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	return checkHoles(m.t, 0, m.want)
}

// step does one operation that concerns the whole target, or one of a worker's.
func (m *model) step(i int) error {
	switch r := m.rng.IntN(1000); {
	case m.o.Reopens > 0 && m.rng.IntN(m.o.Ops/m.o.Reopens+1) == 0:
		m.note(i, "reopen", 0, 0, m.hi)
		if err := m.t.Reopen(); err != nil {
			return fmt.Errorf("Reopen: %w", err)
		}
		return checkAll(m.t, m.want)
	case r < 10:
		m.note(i, "sync", 0, 0, m.hi)
		return m.t.Sync()
	case r < 12:
		return m.grow(i)
	case r < 40:
		return m.holes(i)
	case r < 60:
		return m.zeroing(i, "discard", m.t.Discard)
	case r < 80:
		return m.zeroing(i, "zero", m.t.Zero)
	default:
		return m.io(i)
	}
}

// io reads or writes.
func (m *model) io(i int) error {
	path := m.rng.IntN(len(m.t.Paths()))
	off, n := m.pick()
	if n == 0 {
		return nil
	}
	if m.rng.IntN(2) == 0 {
		m.note(i, "read", path, off, n)
		return m.read(path, off, n)
	}
	m.note(i, "write", path, off, n)
	p := m.scratch[:n]
	m.content(p)
	if got, err := m.t.Paths()[path].WriteAt(p, off); int64(got) != n || err != nil {
		return fmt.Errorf("path %d: WriteAt(%d bytes, %d) = %d, %v", path, n, off, got, err)
	}
	copy(m.want[off:], p)
	return nil
}

func (m *model) read(path int, off, n int64) error {
	p := m.scratch[:n]
	got, err := m.t.Paths()[path].ReadAt(p, off)
	if int64(got) != n || (err != nil && !errors.Is(err, io.EOF)) {
		return fmt.Errorf("path %d: ReadAt(%d bytes, %d) = %d, %v", path, n, off, got, err)
	}
	return differ(path, off, p, m.want[off:off+n])
}

// differ is checkRead's comparison with the place kept for the log.
func differ(path int, off int64, got, want []byte) error {
	d := firstDifference(got, want)
	if d < 0 {
		return nil
	}
	return &difference{path: path, off: off + int64(d), got: got[d], want: want[d]}
}

type difference struct {
	path      int
	off       int64
	got, want byte
}

func (d *difference) Error() string {
	return fmt.Sprintf("path %d: byte %d is %#02x, want %#02x", d.path, d.off, d.got, d.want)
}

// zeroing discards or zeroes a range.
func (m *model) zeroing(i int, kind string, f func(off, n int64) error) error {
	off, n := m.pick()
	if n == 0 {
		return nil
	}
	m.note(i, kind, 0, off, n)
	if err := f(off, n); err != nil {
		return fmt.Errorf("%s [%d, +%d): %w", kind, off, n, err)
	}
	clear(m.want[off : off+n])
	return nil
}

// holes looks for data from a random place on.
func (m *model) holes(i int) error {
	off, _ := m.pick()
	m.note(i, "holes", 0, off, m.hi-off)
	if m.rng.IntN(20) == 0 {
		return checkHoles(m.t, off, m.want)
	}
	data, err := m.t.SeekData(off)
	if errors.Is(err, io.EOF) {
		data, err = m.hi, nil
	}
	if err != nil || data < off || data > m.hi {
		return fmt.Errorf("SeekData(%d) = %d, %v", off, data, err)
	}
	if at := firstSet(m.want[off:data]); at >= 0 {
		return fmt.Errorf("SeekData(%d) = %d passes over data at %d", off, data, off+int64(at))
	}
	return nil
}

func (m *model) grow(i int) error {
	if m.hi >= m.o.MaxSize {
		return nil
	}
	size := m.hi + 1 + m.rng.Int64N(min(m.o.MaxSize-m.hi, 1+m.o.MaxSize/16))
	m.note(i, "grow", 0, m.hi, size-m.hi)
	if err := m.t.Grow(size); err != nil {
		return fmt.Errorf("Grow(%d): %w", size, err)
	}
	m.want = append(m.want, make([]byte, size-m.hi)...)
	m.hi = size
	return nil
}

// pick chooses a range: of any alignment, of sectors, or of 512-byte blocks;
// mostly short, often in one hot part so that operations meet; at times at an end.
func (m *model) pick() (off, n int64) {
	span := m.hi - m.lo
	if span == 0 {
		return m.lo, 0
	}
	most := int64(m.o.maxIO())
	switch m.rng.IntN(10) {
	case 0:
	case 1, 2, 3:
		most = min(most, 3)
	default:
		most = min(most, 32<<10)
	}
	n = 1 + m.rng.Int64N(min(most, span))
	if m.rng.IntN(3) == 0 {
		n = min(n, 1+m.rng.Int64N(600))
	}
	where := span
	if m.rng.IntN(2) == 0 {
		where = min(span, 1<<20)
	}
	off = m.rng.Int64N(where)
	switch m.rng.IntN(20) {
	case 0:
		off = 0
	case 1:
		off = span - n
	}
	if unit := []int64{1, 1, 512, sector, sector}[m.rng.IntN(5)]; unit > 1 {
		off, n = off/unit*unit, (n+unit-1)/unit*unit
	}
	off = min(max(off, 0), span-1)
	n = min(n, span-off, int64(len(m.scratch)))
	return m.lo + off, n
}

// content fills p: random bytes, one byte repeated, or zeros.
func (m *model) content(p []byte) {
	switch m.rng.IntN(8) {
	case 0:
		clear(p)
	case 1:
		v := byte(m.rng.Uint32())
		for i := range p {
			p[i] = v
		}
	default:
		for i := 0; i < len(p); {
			v := m.rng.Uint64()
			for k := 0; k < 8 && i < len(p); k++ {
				p[i] = byte(v >> (8 * k))
				i++
			}
		}
	}
}

func (m *model) note(i int, kind string, path int, off, n int64) {
	m.log = append(m.log, op{i, kind, path, off, n})
}

// explain adds the last operations, and those that touched the place, to an error.
func (m *model) explain(err error) error {
	var b strings.Builder
	if d := (*difference)(nil); errors.As(err, &d) {
		b.WriteString("\noperations on that byte, newest last:")
		var touched []op
		for _, o := range m.log {
			if o.kind != "sync" && o.off <= d.off && d.off < o.off+o.n {
				touched = append(touched, o)
			}
		}
		list(&b, touched, 12)
	}
	b.WriteString("\nlast operations:")
	list(&b, m.log, 12)
	return fmt.Errorf("imagetest: seed %d, [%d, %d): %w%s", m.o.Seed, m.lo, m.hi, err, b.String())
}

func list(b *strings.Builder, ops []op, n int) {
	for _, o := range ops[max(0, len(ops)-n):] {
		b.WriteString("\n\t")
		b.WriteString(o.String())
	}
}

// Parallel does the same from o.Workers goroutines. Each has a range of its own
// that begins and ends within a sector, so neighbours share one.
func Parallel(t Target, o ModelOptions) error {
	if o.Workers == 0 {
		o.Workers = 4
	}
	size, err := t.Size()
	if err != nil {
		return err
	}
	want := make([]byte, size)
	errs := make([]error, o.Workers)
	var wg sync.WaitGroup
	for w := range o.Workers {
		wg.Go(func() {
			m := newModel(t, o, o.Seed+uint64(w), want, cut(size, w, o.Workers), cut(size, w+1, o.Workers))
			errs[w] = m.work(o.Ops / o.Workers)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m := newModel(t, o, o.Seed, want, 0, size)
	if err := m.finish(); err != nil {
		return m.explain(err)
	}
	return nil
}

// cut is where part w of n begins: off the grid but for the two ends.
func cut(size int64, w, n int) int64 {
	at := size / int64(n) * int64(w)
	switch {
	case w == 0:
		return 0
	case w == n:
		return size
	}
	return at/sector*sector + 1000
}

// work reads, writes and zeroes in the worker's range alone.
func (m *model) work(ops int) error {
	for i := range ops {
		var err error
		switch r := m.rng.IntN(1000); {
		case r < 5:
			m.note(i, "sync", 0, m.lo, m.hi-m.lo)
			err = m.t.Sync()
		case r < 25:
			err = m.zeroing(i, "discard", m.t.Discard)
		case r < 45:
			err = m.zeroing(i, "zero", m.t.Zero)
		default:
			err = m.io(i)
		}
		if err != nil {
			return m.explain(err)
		}
	}
	return nil
}
