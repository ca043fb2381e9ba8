package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path"
	"strings"
)

// openVHD does not own in: closing it is left to the caller.
func openVHD(in *input) (layer, error) {
	h, err := readVHDHeader(in, in.size)
	if err != nil {
		return nil, err
	}
	if h.footer.diskType == vhdFixed {
		return vhdFixedLayer{in: in, bytes: h.footer.size()}, nil
	}
	l := &vhdLayer{in: in, h: h, bytes: h.footer.size(), table: make([]uint32, h.entries)}
	l.bitmapSize = (h.blockSize/vhdSector/8 + vhdSector - 1) &^ (vhdSector - 1)
	raw := make([]byte, 4*len(l.table))
	if err := readFull(in, raw, h.tableAt); err != nil {
		return nil, fmt.Errorf("vhd table: %w", err)
	}
	for i := range l.table {
		l.table[i] = binary.BigEndian.Uint32(raw[4*i:])
	}
	return l, nil
}

// vhdFixedLayer is the disk, followed by a footer.
type vhdFixedLayer struct {
	in    *input
	bytes int64
}

func (l vhdFixedLayer) size() int64 { return l.bytes }

// span finds holes in the file: a fixed vhd on a file system is often sparse.
func (l vhdFixedLayer) span(off, n int64) (held, int64, error) {
	raw := rawSource{in: l.in}
	at, err := raw.seek(off, off+n, seekData)
	if err != nil {
		return absent, 0, err
	}
	if at > off {
		return zeros, at - off, nil
	}
	at, err = raw.seek(off, off+n, seekHole)
	if err != nil || at <= off {
		at = off + n
	}
	return data, at - off, err
}

func (l vhdFixedLayer) readOwn(p []byte, off int64) error { return readFull(l.in, p, off) }

// vhdLayer is a dynamic or differencing vhd without its parent.
type vhdLayer struct {
	in         *input
	h          *vhdHeader
	bytes      int64
	bitmapSize int64
	table      []uint32 // the sector of each block's bitmap, which its data follow
}

func (l *vhdLayer) size() int64 { return l.bytes }

func (l *vhdLayer) span(off, n int64) (held, int64, error) {
	i := off / l.h.blockSize
	n = min(n, l.bytes-off)
	if l.table[i] == vhdUnused {
		length := l.h.blockSize - off%l.h.blockSize
		for length < n && l.table[(off+length)/l.h.blockSize] == vhdUnused {
			length += l.h.blockSize
		}
		return absent, min(n, length), nil
	}
	n = min(n, l.h.blockSize-off%l.h.blockSize)
	if l.h.footer.diskType == vhdDynamic {
		// The bitmap of a dynamic disk adds nothing: sectors that were
		// never written are zeros in the file too. QEMU ignores it.
		return data, n, nil
	}
	return l.spanBitmap(i, off%l.h.blockSize, n)
}

// spanBitmap looks in the bitmap of block i: one bit for each sector, the
// highest bit of a byte first; set if the sector is in this file.
func (l *vhdLayer) spanBitmap(i, within, n int64) (held, int64, error) {
	first, last := within/vhdSector, (within+n-1)/vhdSector
	b := make([]byte, last/8-first/8+1)
	if err := readFull(l.in, b, int64(l.table[i])*vhdSector+first/8); err != nil {
		return absent, 0, fmt.Errorf("vhd bitmap of block %d: %w", i, err)
	}
	run := bitRun(b, int(first%8), int(last-first+1))
	length := min(n, int64(run)*vhdSector-within%vhdSector)
	if b[0]<<(first%8)&0x80 == 0 {
		return absent, length, nil
	}
	return data, length, nil
}

// bitRun counts how many of the n bits from bit start on are like the first.
func bitRun(b []byte, start, n int) int {
	var flip byte
	if b[0]<<start&0x80 != 0 {
		flip = 0xff
	}
	run := bits.LeadingZeros8((b[0] ^ flip) << start)
	if run < 8-start {
		return min(run, n)
	}
	run = 8 - start
	for _, c := range b[1:] {
		k := bits.LeadingZeros8(c ^ flip)
		run += k
		if k < 8 {
			break
		}
	}
	return min(run, n)
}

func (l *vhdLayer) readOwn(p []byte, off int64) error {
	i := off / l.h.blockSize
	at := int64(l.table[i])*vhdSector + l.bitmapSize + off%l.h.blockSize
	if err := readFull(l.in, p, at); err != nil {
		return fmt.Errorf("vhd block %d: %w", i, err)
	}
	return nil
}

// findVHDParent gives the path of the parent of the differencing vhd at p,
// whose metadata is h. A file of another identity than the one that the child
// was made from would give wrong data silently, so it is refused.
func findVHDParent(p string, h *vhdHeader) (string, error) {
	var missing error
	for _, name := range h.parents {
		for _, candidate := range vhdParentPaths(p, name) {
			switch err := checkVHDParent(candidate, h.parentUUID); {
			case err == nil:
				return candidate, nil
			case errors.Is(err, fs.ErrNotExist):
				missing = err
			default:
				return "", fmt.Errorf("parent of vhd: %w", err)
			}
		}
	}
	return "", fmt.Errorf("parent of vhd: none of %q is there: %w", h.parents, missing)
}

// vhdParentPaths are the places of a parent that has a Windows or a Unix
// name: as it stands, and beside the child.
func vhdParentPaths(child, name string) []string {
	name = strings.ReplaceAll(strings.TrimPrefix(name, "file://"), `\`, "/")
	if len(name) >= 2 && name[1] == ':' { // a drive: there are none here
		name = name[2:]
	}
	as, by := beside(child, name), beside(child, path.Base(name))
	if as == by {
		return []string{as}
	}
	return []string{as, by}
}

func checkVHDParent(p string, uuid [16]byte) error {
	if fi, err := os.Stat(p); err != nil {
		return err
	} else if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: %w", p, fs.ErrNotExist)
	}
	in, err := openInput(p)
	if err != nil {
		return err
	}
	defer in.Close()
	h, err := readVHDHeader(in, in.size)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if h.footer.uuid != uuid {
		return fmt.Errorf("%s is not the parent: its identity is %x, not %x: %w", p, h.footer.uuid, uuid, ErrCorrupt)
	}
	return nil
}
