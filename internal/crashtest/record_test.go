package crashtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

const (
	sectorSize  = 4096
	recordMagic = "crashrec"
)

var zeroSector [sectorSize]byte

// putRecord fills a sector with what its place and generation decide. It does not compress.
func putRecord(b []byte, sector int, gen uint64) {
	r := rand.New(rand.NewPCG(uint64(sector), gen))
	for i := 0; i < sectorSize; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	copy(b, recordMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(sector))
	binary.LittleEndian.PutUint64(b[16:], gen)
	binary.LittleEndian.PutUint32(b[sectorSize-4:], crc32.ChecksumIEEE(b[:sectorSize-4]))
}

// found is what a sector was read as.
type found struct {
	kind byte // 'z' zeros, 'r' a whole record of this sector, 'x' anything else
	gen  uint64
}

func (f found) String() string { return fmt.Sprintf("{%c %d}", f.kind, f.gen) }

func (f found) is(v version) bool {
	return f.kind == 'z' && v.zero || f.kind == 'r' && !v.zero && f.gen == v.gen
}

const foundSize = 9

func look(b []byte, sector int) found {
	if bytes.Equal(b, zeroSector[:]) {
		return found{kind: 'z'}
	}
	gen := binary.LittleEndian.Uint64(b[16:])
	whole := string(b[:8]) == recordMagic && binary.LittleEndian.Uint64(b[8:]) == uint64(sector) &&
		binary.LittleEndian.Uint32(b[sectorSize-4:]) == crc32.ChecksumIEEE(b[:sectorSize-4])
	if !whole {
		return found{'x', gen}
	}
	return found{'r', gen}
}

func (f found) append(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(append(b, f.kind), f.gen)
}

func parseFound(b []byte) ([]found, error) {
	if len(b)%foundSize != 0 {
		return nil, fmt.Errorf("the reader gave %d bytes", len(b))
	}
	var list []found
	for ; len(b) > 0; b = b[foundSize:] {
		list = append(list, found{b[0], binary.LittleEndian.Uint64(b[1:])})
	}
	return list, nil
}
