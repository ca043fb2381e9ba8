package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"
)

// Virtual Hard Disk Image Format Specification 1.0. Numbers are big-endian.
const (
	vhdSector     = 512
	vhdCookie     = "conectix"
	vhdDynCookie  = "cxsparse"
	vhdHeaderSize = 1024
	vhdUnused     = 0xffffffff // block allocation table: not in this file
	vhdNoOffset   = 1<<64 - 1

	vhdMaxSize  = 0xff000000 * vhdSector // QEMU's limit: 2040 GiB
	vhdMaxBlock = 256 << 20
	vhdMaxTable = 16 << 20 // entries
	vhdMaxName  = 64 << 10 // bytes of a parent locator
)

const (
	vhdFixed        = 2
	vhdDynamic      = 3
	vhdDifferencing = 4
)

// vhdFooter is the sector that ends each vhd and, unless it is fixed, begins
// it too.
type vhdFooter struct {
	dataOffset  uint64
	currentSize int64 // of the disk by the size field, in bytes
	chsSize     int64 // of the disk by its geometry, in bytes
	creator     string
	diskType    uint32
	uuid        [16]byte
}

func parseVHDFooter(b []byte) (*vhdFooter, error) {
	if len(b) < vhdSector || string(b[:8]) != vhdCookie {
		return nil, fmt.Errorf("no vhd footer: %w", ErrCorrupt)
	}
	if !vhdChecksumOK(b[:vhdSector], 64) {
		return nil, fmt.Errorf("vhd footer checksum: %w", ErrCorrupt)
	}
	be := binary.BigEndian
	f := &vhdFooter{
		dataOffset: be.Uint64(b[16:]),
		creator:    string(b[28:32]),
		diskType:   be.Uint32(b[60:]),
		uuid:       [16]byte(b[68:84]),
	}
	size := be.Uint64(b[48:])
	if size > vhdMaxSize {
		return nil, fmt.Errorf("vhd of %d bytes: %w", size, ErrUnsupported)
	}
	f.currentSize = int64(size) &^ (vhdSector - 1)
	f.chsSize = int64(be.Uint16(b[56:])) * int64(b[58]) * int64(b[59]) * vhdSector
	if f.diskType < vhdFixed || f.diskType > vhdDifferencing {
		return nil, fmt.Errorf("vhd of type %d: %w", f.diskType, ErrUnsupported)
	}
	return f, nil
}

// size is what QEMU takes for the disk's size, so that an import equals what
// qemu-img would convert: programs which are known to mean the size field are
// believed, for all others the geometry counts unless it is at its maximum.
func (f *vhdFooter) size() int64 {
	const chsMax = 65535 * 16 * 255 * vhdSector
	switch f.creator {
	case "win ", "qem2", "d2v ", "tap\x00", "CTXS", "wa\x00\x00":
		return f.currentSize
	}
	if f.chsSize == chsMax {
		return f.currentSize
	}
	return f.chsSize
}

// vhdChecksumOK says whether the four bytes at pos are the ones' complement
// of the sum of all other bytes.
func vhdChecksumOK(b []byte, pos int) bool {
	return binary.BigEndian.Uint32(b[pos:]) == vhdChecksum(b, pos)
}

func vhdChecksum(b []byte, pos int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < pos || i >= pos+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// vhdHeader is all of a vhd's metadata but its block allocation table.
type vhdHeader struct {
	footer     *vhdFooter
	tableAt    int64
	entries    uint32
	blockSize  int64
	parentUUID [16]byte
	parents    []string // names of the parent's file, best first
}

// readVHDHeader reads the metadata of the vhd in a file of fileSize bytes.
func readVHDHeader(in io.ReaderAt, fileSize int64) (*vhdHeader, error) {
	if fileSize < vhdSector {
		return nil, fmt.Errorf("vhd of %d bytes: %w", fileSize, ErrCorrupt)
	}
	b := make([]byte, vhdSector)
	if err := readFull(in, b, 0); err != nil {
		return nil, err
	}
	f, err := parseVHDFooter(b)
	if err != nil { // fixed, or the copy at the beginning is damaged
		if err := readFull(in, b, fileSize-vhdSector); err != nil {
			return nil, err
		}
		if f, err = parseVHDFooter(b); err != nil {
			return nil, err
		}
	}
	h := &vhdHeader{footer: f}
	if f.diskType == vhdFixed {
		if f.size() > fileSize-vhdSector {
			return nil, fmt.Errorf("fixed vhd of %d bytes in a file of %d: %w", f.size(), fileSize, ErrCorrupt)
		}
		return h, nil
	}
	if f.dataOffset == vhdNoOffset || f.dataOffset > uint64(fileSize) {
		return nil, fmt.Errorf("vhd header at %d: %w", f.dataOffset, ErrCorrupt)
	}
	b = make([]byte, vhdHeaderSize)
	if err := readFull(in, b, int64(f.dataOffset)); err != nil {
		return nil, err
	}
	return h, h.parseDynamic(in, b, fileSize)
}

func (h *vhdHeader) parseDynamic(in io.ReaderAt, b []byte, fileSize int64) error {
	if string(b[:8]) != vhdDynCookie || !vhdChecksumOK(b, 36) {
		return fmt.Errorf("vhd dynamic header: %w", ErrCorrupt)
	}
	be := binary.BigEndian
	tableAt, blockSize := be.Uint64(b[16:]), int64(be.Uint32(b[32:]))
	if blockSize < vhdSector || blockSize > vhdMaxBlock || blockSize&(blockSize-1) != 0 {
		return fmt.Errorf("vhd block of %d bytes: %w", blockSize, ErrCorrupt)
	}
	size := h.footer.size()
	need := (size + blockSize - 1) / blockSize
	if int64(be.Uint32(b[28:])) < need {
		return fmt.Errorf("vhd table of %d entries for %d blocks: %w", be.Uint32(b[28:]), need, ErrCorrupt)
	}
	if need > vhdMaxTable {
		return fmt.Errorf("vhd of %d blocks: %w", need, ErrUnsupported)
	}
	if tableAt > uint64(fileSize) || need*4 > fileSize-int64(tableAt) {
		return fmt.Errorf("vhd table at %d in a file of %d bytes: %w", tableAt, fileSize, ErrCorrupt)
	}
	h.tableAt, h.blockSize, h.entries = int64(tableAt), blockSize, uint32(need)
	if h.footer.diskType != vhdDifferencing {
		return nil
	}
	h.parentUUID = [16]byte(b[40:56])
	return h.parseParents(in, b, fileSize)
}

// parseParents collects the parent's names: relative and absolute locators
// (UTF-16LE), then the plain name in the header (UTF-16BE).
func (h *vhdHeader) parseParents(in io.ReaderAt, b []byte, fileSize int64) error {
	names := map[string]string{}
	for i := range 8 {
		e := b[576+24*i:]
		code, n, at := string(e[:4]), binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint64(e[16:])
		if code != "W2ru" && code != "W2ku" {
			continue
		}
		if n > vhdMaxName || n%2 != 0 || at > uint64(fileSize) || int64(n) > fileSize-int64(at) {
			return fmt.Errorf("vhd parent locator of %d bytes at %d: %w", n, at, ErrCorrupt)
		}
		name := make([]byte, n)
		if err := readFull(in, name, int64(at)); err != nil {
			return err
		}
		names[code] = utf16Text(name, binary.LittleEndian)
	}
	for _, n := range []string{names["W2ru"], names["W2ku"], utf16Text(b[64:576], binary.BigEndian)} {
		if n != "" {
			h.parents = append(h.parents, n)
		}
	}
	if len(h.parents) == 0 {
		return fmt.Errorf("differencing vhd names no parent: %w", ErrCorrupt)
	}
	return nil
}

// utf16Text decodes UTF-16 up to the first NUL.
func utf16Text(b []byte, order binary.ByteOrder) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		u := order.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(bytes.ToValidUTF8([]byte(string(utf16.Decode(units))), nil))
}

// readFull fills p from off on, or says that the file is cut off.
func readFull(in io.ReaderAt, p []byte, off int64) error {
	n, err := in.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return fmt.Errorf("file ends at byte %d: %w", off+int64(n), ErrCorrupt)
	}
	return err
}
