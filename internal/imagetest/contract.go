package imagetest

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// Case is one clause of the contract.
type Case struct {
	Name string
	Size int64 // of the target that Check gets, all zeros; an image has at least one byte
	// Fixed: a plain file differs here, since writes past its end extend it and
	// it can shrink.
	Fixed bool
	Check func(Target) error
}

const sector = 4096

// Cases gives the contract.
func Cases() []Case {
	return []Case{
		{"fresh", 1 << 20, false, checkFresh},
		{"one byte", 1, false, checkOneByte},
		{"sizes and places", 5<<20 + 777, false, checkSizes},
		{"512-byte writes", 256<<10 + 512, false, checkSmallWrites},
		{"last sector", 3*sector + 100, false, checkLastSector},
		{"grow", 1000, false, checkGrow},
		{"past the end", 2*sector + 9, true, checkPastEnd},
		{"shrink", 2 * sector, true, checkShrink},
		{"discard", 1<<20 + 5, false, func(t Target) error { return checkZeroing(t, t.Discard) }},
		{"zero", 1<<20 + 5, false, func(t Target) error { return checkZeroing(t, t.Zero) }},
		{"holes", 36 << 20, false, checkSparse},
		{"paths agree", 16 * sector, false, checkPaths},
		{"reopen", 3<<20 + 1, false, checkReopen},
	}
}

// Run holds what open makes to every case.
func Run(t *testing.T, open func(t *testing.T, size int64) Target) {
	t.Helper()
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			target := open(t, c.Size)
			if err := c.Check(target); err != nil {
				t.Error(err)
			}
			if err := target.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

// mirror is a target and what it must hold.
type mirror struct {
	Target
	want []byte
}

func newMirror(t Target) (*mirror, error) {
	size, err := t.Size()
	return &mirror{t, make([]byte, size)}, err
}

// write puts a pattern at off by path i, into the mirror too.
func (m *mirror) write(i int, off int64, n int, seed byte) error {
	p := m.want[off : off+int64(n)]
	for k := range p {
		p[k] = seed + byte(k*7>>3) | 1
	}
	if got, err := m.Paths()[i].WriteAt(p, off); got != n || err != nil {
		return fmt.Errorf("path %d: WriteAt(%d bytes, %d) = %d, %v", i, n, off, got, err)
	}
	return nil
}

func (m *mirror) check() error {
	if err := checkAll(m, m.want); err != nil {
		return err
	}
	return checkHoles(m, 0, m.want)
}

func checkFresh(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	return checkReadEnds(m)
}

// checkReadEnds reads across, at and beyond the end.
func checkReadEnds(m *mirror) error {
	size := int64(len(m.want))
	for i, p := range m.Paths() {
		for _, c := range []struct {
			off  int64
			n    int
			want int
		}{{size, 1, 0}, {size + 1, 1, 0}, {size + 1<<30, 4096, 0}, {size - min(size, 10), 100, int(min(size, 10))}} {
			got, err := p.ReadAt(make([]byte, c.n), c.off)
			if got != c.want || !errors.Is(err, io.EOF) {
				return fmt.Errorf("path %d: ReadAt(%d bytes, %d) at size %d = %d, %v, want %d, EOF", i, c.n, c.off, size, got, err, c.want)
			}
		}
	}
	for _, off := range []int64{size, size + 1} {
		if at, err := m.SeekData(off); !errors.Is(err, io.EOF) {
			return fmt.Errorf("SeekData(%d) at size %d = %d, %v, want EOF", off, size, at, err)
		}
		if at, err := m.SeekHole(off); !errors.Is(err, io.EOF) {
			return fmt.Errorf("SeekHole(%d) at size %d = %d, %v, want EOF", off, size, at, err)
		}
	}
	return nil
}

func checkOneByte(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	for i := range t.Paths() {
		if err := m.write(i, 0, 1, byte(3*i)); err != nil {
			return err
		}
		if err := m.check(); err != nil {
			return err
		}
	}
	return checkReadEnds(m)
}

func checkSizes(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	size := int64(len(m.want))
	seed := byte(1)
	for _, n := range []int{1, 511, 512, 513, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3 << 20} {
		for _, off := range []int64{0, 1, 511, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, size - int64(n)} {
			for i := range t.Paths() {
				seed += 5
				if err := m.write(i, off, n, seed); err != nil {
					return err
				}
				from, to := max(off-100, 0), min(off+int64(n)+100, size)
				for j := range t.Paths() {
					if err := checkRead(t, j, from, m.want[from:to]); err != nil {
						return err
					}
				}
			}
		}
	}
	return m.check()
}

func checkSmallWrites(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	for off := 0; off+512 <= len(m.want); off += 512 {
		if err := m.write(off/512%len(t.Paths()), int64(off), 512, byte(off>>9)); err != nil {
			return err
		}
	}
	if err := t.Sync(); err != nil {
		return err
	}
	return m.check()
}

func checkLastSector(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	size := int64(len(m.want))
	for i := range t.Paths() {
		for _, n := range []int{1, 99, 100, 101, sector, sector + 100} {
			if err := m.write(i, size-int64(n), n, byte(n)); err != nil {
				return err
			}
			if err := m.check(); err != nil {
				return err
			}
		}
	}
	return checkReadEnds(m)
}

func (m *mirror) grow(size int64) error {
	if err := m.Grow(size); err != nil {
		return fmt.Errorf("Grow(%d): %w", size, err)
	}
	m.want = append(m.want, make([]byte, size-int64(len(m.want)))...)
	return nil
}

// checkGrow fills and grows; nothing of the old last sector may show in the new one.
func checkGrow(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	for i, size := range []int64{1000, 1001, 4095, 4096, 4097, 12345, 65536, 1<<20 + 1, 5<<20 + 3} {
		if err := m.grow(size); err != nil {
			return err
		}
		if err := m.check(); err != nil {
			return fmt.Errorf("grown to %d: %w", size, err)
		}
		n := min(len(m.want), 5000)
		if err := m.write(i%len(t.Paths()), size-int64(n), n, byte(size)); err != nil {
			return err
		}
		if err := m.check(); err != nil {
			return fmt.Errorf("written at %d: %w", size, err)
		}
	}
	if err := t.Reopen(); err != nil {
		return err
	}
	return m.check()
}

func checkPastEnd(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	size := int64(len(m.want))
	if err := m.write(0, 0, len(m.want), 9); err != nil {
		return err
	}
	for i, p := range t.Paths() {
		for _, off := range []int64{size - 1, size, size + 1, size + 1<<30} {
			if n, err := p.WriteAt([]byte("no"), off); err == nil {
				return fmt.Errorf("path %d: WriteAt(2 bytes, %d) at size %d = %d, nil, want an error", i, off, size, n)
			}
			if err := m.check(); err != nil {
				return fmt.Errorf("after a write past the end by path %d at %d: %w", i, off, err)
			}
		}
	}
	return nil
}

func checkShrink(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	if err := m.write(0, 0, len(m.want), 9); err != nil {
		return err
	}
	for _, size := range []int64{0, 1, sector, int64(len(m.want)) - 1} {
		if err := t.Grow(size); err == nil {
			return fmt.Errorf("Grow(%d) at size %d worked", size, len(m.want))
		}
	}
	return m.check()
}

func checkZeroing(t Target, zero func(off, n int64) error) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	size := int64(len(m.want))
	for _, c := range []struct{ off, n int64 }{
		{0, sector}, {0, 1}, {1, 1}, {sector - 1, 2}, {sector, sector}, {sector + 1, sector}, {100, 3 * sector},
		{5*sector - 512, 512}, {64 << 10, 64 << 10}, {64<<10 - 1, 64<<10 + 2}, {size - 1, 1}, {size - 5, 5}, {size - sector, sector}, {0, size},
	} {
		if err := m.write(int(c.n)%len(t.Paths()), 0, len(m.want), byte(c.off)); err != nil {
			return err
		}
		if err := zero(c.off, c.n); err != nil {
			return fmt.Errorf("zeroing [%d, +%d): %w", c.off, c.n, err)
		}
		clear(m.want[c.off : c.off+c.n])
		if err := m.check(); err != nil {
			return fmt.Errorf("zeroed [%d, +%d): %w", c.off, c.n, err)
		}
	}
	if err := t.Reopen(); err != nil {
		return err
	}
	return m.check()
}

func checkSparse(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	size := int64(len(m.want))
	for i, off := range []int64{0, 1 << 20, 16<<20 - 1, 16<<20 + 4096, 33<<20 + 12345, size - 1} {
		n := int(min(size-off, int64(1+i*3000)))
		if err := m.write(i%len(t.Paths()), off, n, byte(i)); err != nil {
			return err
		}
	}
	if err := checkHoles(t, 0, m.want); err != nil {
		return err
	}
	if err := t.Reopen(); err != nil {
		return err
	}
	return m.check()
}

// checkPaths writes by one path and reads by all, again and again in the same
// place: a path that caches shows old bytes.
func checkPaths(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	for round := range 64 {
		for i := range t.Paths() {
			off := int64(round%7) * 1111
			if err := m.write(i, off, 1+round*97, byte(round*5+i)); err != nil {
				return err
			}
			if err := checkAll(t, m.want); err != nil {
				return fmt.Errorf("round %d, written by path %d: %w", round, i, err)
			}
		}
	}
	return nil
}

func checkReopen(t Target) error {
	m, err := newMirror(t)
	if err != nil {
		return err
	}
	for round := range 3 {
		for i := range t.Paths() {
			if err := m.write(i, int64(round*1_000_000+i*10_000), 70_000, byte(round)); err != nil {
				return err
			}
		}
		if round != 1 { // once without: closing alone must not lose anything
			if err := t.Sync(); err != nil {
				return err
			}
		}
		if err := t.Reopen(); err != nil {
			return err
		}
		if err := m.check(); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}
