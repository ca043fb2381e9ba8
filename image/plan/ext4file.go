package plan

import (
	"encoding/binary"
	"errors"
)

const (
	modeMask      = 0xf000
	modeRegular   = 0x8000
	modeDirectory = 0x4000
	modeSymlink   = 0xa000

	inodeExtents    = 0x00080000
	inodeInlineData = 0x10000000

	extentMagic    = 0xf30a
	maxExtentDepth = 5
	maxInitialised = 1 << 15 // a longer extent is one of length − 32768, preallocated
)

// file adds the extents of one inode. A tree that is not valid counts as far
// as it was read; errors are those that end the whole scan.
func (v *volume) file(inode []byte) error {
	le := binary.LittleEndian
	mode, links, flags := le.Uint16(inode)&modeMask, le.Uint16(inode[0x1a:]), le.Uint32(inode[0x20:])
	if links == 0 || flags&inodeInlineData != 0 {
		return nil
	}
	root := inode[0x28:][:60]
	var err error
	switch {
	case flags&inodeExtents != 0 && (mode == modeRegular || mode == modeDirectory || mode == modeSymlink):
		err = v.tree(root, -1)
	case flags&inodeExtents == 0 && (mode == modeRegular || mode == modeDirectory):
		err = v.blockMap(root)
	}
	// Not joined with the next file, which may begin where this one ends.
	v.out.flush()
	if errors.Is(err, errInvalid) {
		return nil
	}
	return err
}

// add takes the next blocks of the file.
func (v *volume) add(block, count int64) error {
	if !v.holds(block, count) {
		return errInvalid
	}
	if !v.out.add(Extent{v.off + block*v.block, count * v.block}) {
		return errSpent
	}
	return nil
}

// node is the buffer for a tree's block at a level.
func (v *volume) node(level int) []byte {
	if v.nodes[level] == nil {
		v.nodes[level] = make([]byte, v.block)
	}
	return v.nodes[level]
}

// tree walks a node of an extent tree, whose depth must be as wanted; −1 takes
// any. Depth falls by one with each level, so that the walk ends.
func (v *volume) tree(node []byte, want int) error {
	le := binary.LittleEndian
	entries, most, depth := int(le.Uint16(node[2:])), int(le.Uint16(node[4:])), int(le.Uint16(node[6:]))
	if le.Uint16(node) != extentMagic || entries > most || most > len(node)/12-1 ||
		depth > maxExtentDepth || (want >= 0 && depth != want) {
		return errInvalid
	}
	for i := range entries {
		e := node[12*(i+1):][:12]
		if depth > 0 {
			child := v.node(depth - 1)
			if err := v.read(child, int64(le.Uint32(e[4:]))|int64(le.Uint16(e[8:]))<<32); err != nil {
				return err
			}
			if err := v.tree(child, depth-1); err != nil {
				return err
			}
			continue
		}
		count := int64(le.Uint16(e[4:]))
		if count > maxInitialised {
			count -= maxInitialised
		}
		if count == 0 {
			return errInvalid
		}
		if err := v.add(int64(le.Uint32(e[8:]))|int64(le.Uint16(e[6:]))<<32, count); err != nil {
			return err
		}
	}
	return nil
}

// blockMap walks the map of ext2 and ext3: twelve blocks, then one singly, one
// doubly and one triply indirect. Blocks that lie one after the other count as
// an extent. The blocks of the map lie among those that they point to and are
// read with them, so they are part of it.
func (v *volume) blockMap(root []byte) error {
	for i := range 15 {
		block := binary.LittleEndian.Uint32(root[4*i:])
		if err := v.indirect(int64(block), max(0, i-11)); err != nil {
			return err
		}
	}
	return nil
}

// indirect adds a block and what it points to; level 0 is data.
func (v *volume) indirect(block int64, level int) error {
	if block == 0 { // a hole
		return nil
	}
	if err := v.add(block, 1); err != nil || level == 0 {
		return err
	}
	node := v.node(level)
	if err := v.read(node, block); err != nil {
		return err
	}
	for at := 0; at < len(node); at += 4 {
		if err := v.indirect(int64(binary.LittleEndian.Uint32(node[at:])), level-1); err != nil {
			return err
		}
	}
	return nil
}
