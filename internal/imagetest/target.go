package imagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ReadWriterAt is one way to reach the bytes of a target.
type ReadWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// Target is something that behaves as an image. ReadAt, WriteAt and Sync may be
// called concurrently, the rest one at a time. What was just made reads as zeros.
type Target interface {
	// Paths gives every way to the same bytes, such as buffered and O_DIRECT; at
	// least one. They must agree at all times. They are replaced by Reopen.
	Paths() []ReadWriterAt
	// Discard makes a range read as zeros and may give its space back.
	Discard(off, n int64) error
	// Zero makes a range within the size read as zeros.
	Zero(off, n int64) error
	// Sync makes all that was done durable.
	Sync() error
	// Grow sets a larger size; new bytes read as zeros.
	Grow(size int64) error
	// SeekData and SeekHole are lseek(2): io.EOF stands for ENXIO.
	SeekData(off int64) (int64, error)
	SeekHole(off int64) (int64, error)
	Size() (int64, error)
	// Reopen closes and opens again: the whole mount, if there is one.
	Reopen() error
	Close() error
}

// checkRead reads [off, off+len(want)) by path i and compares.
func checkRead(t Target, i int, off int64, want []byte) error {
	got := make([]byte, len(want))
	n, err := t.Paths()[i].ReadAt(got, off)
	if n != len(want) || (err != nil && !errors.Is(err, io.EOF)) {
		return fmt.Errorf("path %d: ReadAt(%d bytes, %d) = %d, %v", i, len(want), off, n, err)
	}
	if d := firstDifference(got, want); d >= 0 {
		return fmt.Errorf("path %d: read %d bytes at %d: byte %d is %#02x, want %#02x", i, len(want), off, off+int64(d), got[d], want[d])
	}
	return nil
}

// checkAll reads everything by every path.
func checkAll(t Target, want []byte) error {
	size, err := t.Size()
	if err != nil {
		return err
	}
	if size != int64(len(want)) {
		return fmt.Errorf("size is %d, want %d", size, len(want))
	}
	const step = 1 << 20
	for i := range t.Paths() {
		for off := 0; off < len(want); off += step {
			if err := checkRead(t, i, int64(off), want[off:min(off+step, len(want))]); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkHoles walks the target from off with SeekData and SeekHole. A hole must
// read as zeros in want; data may do so too.
func checkHoles(t Target, from int64, want []byte) error {
	size := int64(len(want))
	for off := from; off < size; {
		data, err := t.SeekData(off)
		if errors.Is(err, io.EOF) {
			data = size
		} else if err != nil {
			return fmt.Errorf("SeekData(%d): %w", off, err)
		}
		if data < off || data > size {
			return fmt.Errorf("SeekData(%d) = %d of %d", off, data, size)
		}
		if at := firstSet(want[off:data]); at >= 0 {
			return fmt.Errorf("SeekData(%d) = %d passes over data at %d", off, data, off+int64(at))
		}
		if data == size {
			return nil
		}
		if off, err = t.SeekHole(data); err != nil {
			return fmt.Errorf("SeekHole(%d): %w", data, err)
		}
		if off <= data || off > size {
			return fmt.Errorf("SeekHole(%d) = %d of %d, and data is there", data, off, size)
		}
	}
	return nil
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func firstSet(b []byte) int {
	for from := 0; from < len(b); from += len(zeros) {
		part := b[from:min(from+len(zeros), len(b))]
		if bytes.Equal(part, zeros[:len(part)]) {
			continue
		}
		return from + bytes.IndexFunc(part, func(r rune) bool { return r != 0 })
	}
	return -1
}

var zeros [64 << 10]byte
