package marks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// BlockSize is that of a write, in bytes.
const BlockSize = 4096

const (
	headerSize = 16                 // number and generation
	step       = 0x9e3779b97f4a7c15 // of splitmix64
)

// Disk is what a guest writes to one of its disks.
type Disk struct {
	Seed   uint64 // no two guests have the same
	Blocks int64
}

// ErrLost: a block is not what was written.
var ErrLost = errors.New("not what was written")

// mix is splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Block is where a generation goes.
func (d Disk) Block(gen uint64) int64 { return int64(mix(d.Seed+gen*step) % uint64(d.Blocks)) }

// Fill makes the content of a block: no part of it is like a part of another.
func (d Disk) Fill(page []byte, n int64, gen uint64) {
	binary.BigEndian.PutUint64(page, uint64(n))
	binary.BigEndian.PutUint64(page[8:], gen)
	x := mix(d.Seed) ^ uint64(n)<<32 ^ gen
	for i := headerSize; i < len(page); i += 8 {
		x += step
		binary.BigEndian.PutUint64(page[i:], mix(x))
	}
}

// Check says whether a block is as it was written in generation least, or later; most is the
// newest generation that there may be.
func (d Disk) Check(page []byte, n int64, least, most uint64) error {
	gen := binary.BigEndian.Uint64(page[8:])
	if int64(binary.BigEndian.Uint64(page)) != n || gen == 0 || gen > most || d.Block(gen) != n {
		return fmt.Errorf("block %d, written in generation %d: %w: of nobody", n, least, ErrLost)
	}
	if gen < least {
		return fmt.Errorf("block %d, written in generation %d: %w: of generation %d", n, least, ErrLost, gen)
	}
	want := make([]byte, len(page))
	d.Fill(want, n, gen)
	if string(page) != string(want) {
		return fmt.Errorf("block %d of generation %d: %w: torn", n, gen, ErrLost)
	}
	return nil
}

// slack is how many generations more than were flushed may be on a disk: guests flush each 64.
const slack = 1 << 12

// Audit reads a disk of a guest that has gone: all that was flushed up to a generation must be
// there. It gives the number of blocks.
func (d Disk) Audit(r io.ReaderAt, flushed uint64) (blocks int, err error) {
	has := map[int64]uint64{}
	for gen := uint64(1); gen <= flushed; gen++ {
		has[d.Block(gen)] = gen
	}
	page := make([]byte, BlockSize)
	for n, gen := range has {
		if _, err := r.ReadAt(page, n*BlockSize); err != nil {
			return 0, fmt.Errorf("block %d: %w", n, err)
		}
		if err := d.Check(page, n, gen, flushed+slack); err != nil {
			return 0, err
		}
	}
	return len(has), nil
}
