package plan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
)

const (
	mbrSector      = 512
	maxLogical     = 256     // logical partitions that are followed
	maxGPTEntries  = 1 << 20 // bytes
	typeProtective = 0xee
)

// partitioned keeps blocks of different partitions apart. Blocks are equal, so
// a boundary that is not on the grid lies inside a block, which then holds both
// sides; such a block is merged with neither neighbour. So a segment of more
// than one block never holds bytes from both sides of a boundary.
type partitioned struct {
	cuts []int64 // ascending: each first byte of a partition and each first byte after one
}

func newPartitioned(parts []Extent, size int64) *partitioned {
	p := new(partitioned)
	for _, part := range parts {
		for _, cut := range []int64{part.Off, part.Off + part.Len} {
			if cut > 0 && cut < size {
				p.cuts = append(p.cuts, cut)
			}
		}
	}
	slices.Sort(p.cuts)
	p.cuts = slices.Compact(p.cuts)
	return p
}

func (p *partitioned) Name() string { return "partition" }

func (p *partitioned) Depends(next, blockSize int64) Verdict {
	i, _ := slices.BinarySearch(p.cuts, next-blockSize+1)
	if i < len(p.cuts) && p.cuts[i] < next+blockSize {
		return Never
	}
	return Independent
}

// partitions reads the GPT (UEFI 2.10 §5, sectors of 512 or 4096 bytes, the
// backup if the primary is damaged) or else the MBR with its logical
// partitions (sectors of 512 bytes). What starts beyond the image is left out,
// what ends beyond it is cut. No table is no error.
func partitions(s *source) ([]Extent, error) {
	entries, err := mbrEntries(s, 0)
	if errors.Is(err, errInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// A GPT counts only behind a protective entry: it may be left over from
	// an earlier use of the disk.
	if slices.ContainsFunc(entries[:], func(e mbrEntry) bool { return e.kind == typeProtective }) {
		for _, sector := range []int64{512, 4096} {
			for _, lba := range []int64{1, s.size/sector - 1} {
				parts, err := gpt(s, sector, lba)
				if err == nil {
					return parts, nil
				}
				if !errors.Is(err, errInvalid) {
					return nil, err
				}
			}
		}
	}
	return mbr(s, entries)
}

// clip cuts a range in units to the image; ok is false if nothing is left.
func clip(s *source, first, count uint64, unit int64) (e Extent, ok bool) {
	limit := uint64(s.size / unit)
	if first >= limit || count == 0 {
		return Extent{}, false
	}
	count = min(count, limit-first)
	return Extent{int64(first) * unit, int64(count) * unit}, true
}

type mbrEntry struct {
	kind         byte // 0: unused
	first, count uint32
}

func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// mbrEntries reads the four entries of the MBR or extended boot record at off.
// A boot sector of a FAT or NTFS file system has the same signature; its code,
// where entries would be, rarely passes as four of them.
func mbrEntries(s *source, off int64) (entries [4]mbrEntry, err error) {
	var b [mbrSector]byte
	if err := s.read(b[:], off); err != nil {
		return entries, err
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return entries, errInvalid
	}
	for i := range entries {
		e := b[446+16*i:]
		if e[0]&0x7f != 0 { // neither active nor inactive
			return entries, errInvalid
		}
		entries[i] = mbrEntry{e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])}
	}
	return entries, nil
}

func mbr(s *source, entries [4]mbrEntry) ([]Extent, error) {
	var parts []Extent
	for _, e := range entries {
		if e.kind == 0 || e.kind == typeProtective || e.first == 0 {
			continue
		}
		part, ok := clip(s, uint64(e.first), uint64(e.count), mbrSector)
		if !ok {
			continue
		}
		parts = append(parts, part)
		if !e.extended() {
			continue
		}
		logical, err := logicals(s, part)
		if err != nil {
			return nil, err
		}
		parts = append(parts, logical...)
	}
	return parts, nil
}

// logicals follows the chain of extended boot records in an extended
// partition, as far as it is valid.
func logicals(s *source, in Extent) ([]Extent, error) {
	var parts []Extent
	at := in.Off
	for range maxLogical {
		entries, err := mbrEntries(s, at)
		if errors.Is(err, errInvalid) {
			break
		}
		if err != nil {
			return nil, err
		}
		if e := entries[0]; e.kind != 0 && e.first != 0 {
			first := uint64(at/mbrSector) + uint64(e.first)
			if part, ok := clip(s, first, uint64(e.count), mbrSector); ok {
				parts = append(parts, part)
			}
		}
		link := entries[1]
		if !link.extended() || link.first == 0 || int64(link.first) >= in.Len/mbrSector {
			break
		}
		at = in.Off + int64(link.first)*mbrSector
	}
	return parts, nil
}

// gpt reads the table whose header is in the given sector.
func gpt(s *source, sector, lba int64) ([]Extent, error) {
	if lba < 1 {
		return nil, errInvalid
	}
	h := make([]byte, sector)
	if err := s.read(h, lba*sector); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	length := int64(le.Uint32(h[12:]))
	if !bytes.Equal(h[:8], []byte("EFI PART")) || length < 92 || length > sector {
		return nil, errInvalid
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:length]) != sum || le.Uint64(h[24:]) != uint64(lba) {
		return nil, errInvalid
	}
	start, count, width := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if width < 128 || width%8 != 0 || width > sector || count > maxGPTEntries/width || start >= uint64(s.size/sector) {
		return nil, errInvalid
	}
	table := make([]byte, count*width)
	if err := s.read(table, int64(start)*sector); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, errInvalid
	}
	var parts []Extent
	for e := range slices.Chunk(table, int(width)) {
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if bytes.Equal(e[:16], make([]byte, 16)) || first == 0 || last < first || last == ^uint64(0) {
			continue
		}
		if part, ok := clip(s, first, last-first+1, sector); ok {
			parts = append(parts, part)
		}
	}
	return parts, nil
}
