package plan

import (
	"encoding/binary"
	"errors"
	"math"
)

// The on-disk format is that of the kernel's Documentation/filesystems/ext4.
const (
	superOffset = 1024
	superLength = 1024
	superMagic  = 0xef53

	compatSparseSuper2 = 0x0200

	incompatMetaBG = 0x0010
	incompat64Bit  = 0x0080
	incompatKnown  = 0x3f7d6 // all that leave tables and trees as they are here; no journal device

	roSparseSuper  = 0x0001
	roGDTChecksum  = 0x0010
	roMetaChecksum = 0x0400

	groupInodeUninit = 0x0001

	resizeInode = 7

	tableChunk = 1 << 20 // bytes of inode table read at once
)

// volume is one ext2, ext3 or ext4 file system.
type volume struct {
	s   *source
	out *spanner

	off        int64 // of the file system in the image
	block      int64 // bytes
	blocks     int64
	first      int64 // first data block
	perGroup   int64 // blocks
	groups     int64
	inodes     int64 // per group
	inode      int64 // bytes
	descriptor int64 // bytes of a group descriptor
	metaFrom   int64 // descriptor blocks from here on lie in their own groups
	unused     bool  // descriptors say which inodes were never used
	sparse     bool  // few groups have a copy of the superblock…
	sparse2    bool  // …or only these two
	backups    [2]int64

	table []byte    // one chunk of inode table
	nodes [6][]byte // a block for each level of a tree
}

// scanExt4 adds the extents of all files of the file system at the start of
// the given range. It returns errInvalid if there is none.
func scanExt4(s *source, in Extent, out *spanner) error {
	if in.Len < superOffset+superLength {
		return errInvalid
	}
	super := make([]byte, superLength)
	if err := s.read(super, in.Off+superOffset); err != nil {
		return err
	}
	v := &volume{s: s, out: out, off: in.Off}
	if err := v.parse(super, in.Len); err != nil {
		return err
	}
	perBlock := v.block / v.descriptor
	descriptors := make([]byte, v.block)
	for i := int64(0); i*perBlock < v.groups; i++ {
		if err := v.read(descriptors, v.descriptorBlock(i)); err != nil {
			return err
		}
		for j := range min(perBlock, v.groups-i*perBlock) {
			d := descriptors[j*v.descriptor:][:v.descriptor]
			if err := v.group(i*perBlock+j, d); err != nil && !errors.Is(err, errInvalid) {
				return err
			}
		}
	}
	return nil
}

// parse takes the superblock of a file system that has size bytes of room.
func (v *volume) parse(b []byte, size int64) error {
	le := binary.LittleEndian
	u32 := func(at int) int64 { return int64(le.Uint32(b[at:])) }
	compat, incompat, ro := le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	dynamic := u32(0x4c) > 0 // revision 0 has fixed inodes and no features
	if !dynamic {
		compat, incompat, ro = 0, 0, 0
	}
	if le.Uint16(b[0x38:]) != superMagic || u32(0x18) > 6 ||
		incompat&^incompatKnown != 0 {
		return errInvalid
	}
	v.block = 1024 << u32(0x18)
	v.blocks, v.first = u32(0x04), u32(0x14)
	v.perGroup, v.inodes = u32(0x20), u32(0x28)
	v.inode, v.descriptor = 128, 32
	if dynamic {
		v.inode = int64(le.Uint16(b[0x58:]))
	}
	if incompat&incompat64Bit != 0 {
		v.blocks |= u32(0x150) << 32
		v.descriptor = int64(le.Uint16(b[0xfe:]))
	}
	v.metaFrom = math.MaxInt64
	if incompat&incompatMetaBG != 0 {
		v.metaFrom = u32(0x104)
	}
	v.unused = ro&(roGDTChecksum|roMetaChecksum) != 0
	v.sparse = ro&roSparseSuper != 0
	v.sparse2 = compat&compatSparseSuper2 != 0
	v.backups = [2]int64{u32(0x24c), u32(0x250)}

	powerOfTwo := func(n, low int64) bool { return n >= low && n <= v.block && n&(n-1) == 0 }
	// The high half of a block count may have made it negative.
	if v.blocks <= v.first || v.blocks > size/v.block || v.perGroup == 0 ||
		v.inodes == 0 || v.inodes > 8*v.block || !powerOfTwo(v.inode, 128) || !powerOfTwo(v.descriptor, 32) ||
		(incompat&incompat64Bit != 0 && v.descriptor < 64) {
		return errInvalid
	}
	v.groups = (v.blocks - v.first + v.perGroup - 1) / v.perGroup
	if v.groups > math.MaxUint32 || v.groups*v.inodes != u32(0) {
		return errInvalid
	}
	return nil
}

// descriptorBlock is where block i of the group descriptors lies.
func (v *volume) descriptorBlock(i int64) int64 {
	if i < v.metaFrom {
		first := v.first
		if first == 0 && v.block == 1024 { // the superblock is block 1
			first = 1
		}
		return first + 1 + i
	}
	group := i * (v.block / v.descriptor)
	at := v.first + group*v.perGroup
	if group == 0 && v.first == 0 && v.block == 1024 {
		at = 1
	}
	if v.hasSuper(group) {
		at++
	}
	return at
}

// hasSuper says whether a group begins with a copy of the superblock.
func (v *volume) hasSuper(group int64) bool {
	switch {
	case group == 0:
		return true
	case v.sparse2:
		return group == v.backups[0] || group == v.backups[1]
	case !v.sparse || group == 1:
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// read fills p from the start of a block on; p must not leave the file system.
func (v *volume) read(p []byte, block int64) error {
	count := (int64(len(p)) + v.block - 1) / v.block
	if !v.holds(block, count) {
		return errInvalid
	}
	return v.s.read(p, v.off+block*v.block)
}

// holds says whether the blocks are data blocks of the file system.
func (v *volume) holds(block, count int64) bool {
	return block >= v.first && count <= v.blocks && block <= v.blocks-count
}

// group reads the used part of the inode table that a group's descriptor names.
func (v *volume) group(number int64, d []byte) error {
	le := binary.LittleEndian
	table := int64(le.Uint32(d[0x08:]))
	free, unused := int64(le.Uint16(d[0x0e:])), int64(le.Uint16(d[0x1c:]))
	if v.descriptor >= 64 {
		table |= int64(le.Uint32(d[0x28:])) << 32
		free |= int64(le.Uint16(d[0x2e:])) << 16
		unused |= int64(le.Uint16(d[0x32:])) << 16
	}
	if v.unused {
		if le.Uint16(d[0x12:])&groupInodeUninit != 0 {
			return nil
		}
	} else {
		unused = 0
	}
	used := (v.inodes - unused) * v.inode
	if free == v.inodes || used <= 0 {
		return nil
	}
	if !v.holds(table, (used+v.block-1)/v.block) {
		return errInvalid
	}
	if v.table == nil {
		v.table = make([]byte, min(tableChunk, v.inodes*v.inode))
	}
	at := v.off + table*v.block
	ino := number*v.inodes + 1
	for used > 0 {
		chunk := v.table[:min(used, int64(len(v.table)))]
		if err := v.s.read(chunk, at); err != nil {
			return err
		}
		for i := int64(0); i < int64(len(chunk)); i += v.inode {
			// The resize inode holds copies of descriptors in all groups.
			if ino != resizeInode {
				if err := v.file(chunk[i:][:v.inode]); err != nil {
					return err
				}
			}
			ino++
		}
		at += int64(len(chunk))
		used -= int64(len(chunk))
	}
	return nil
}
