package image

import (
	"context"
	"slices"
	"sync"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/dirty"
	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// Numbers of the adaptive planner (docs/architecture.md, Numbers).
const (
	planned      = 15 // log2 of a frame of segments that are read in sequence
	scattered    = 12 // log2 of a frame of segments that are not
	longRun      = 8  // sectors; runs of this length on average make planned frames
	maxExtents   = 1024
	maxMerges    = 4 // regions planned again in one commit for being in many extents
	maxReclaims  = 8 // for holding dead sectors
	mergeRoom    = 8 // a part of the disk in so many is room
	alignSectors = record.MaxSegmentSectors
	firstPiece   = 64 << 10                              // bytes that a piece has room for at first
	wholePiece   = record.MaxSegmentSectors * sectorSize // and then
)

// Piece is one segment to be sealed: ascending runs of a region and their joined data.
type Piece struct {
	Runs []record.Run
	Data []byte
}

func (p *Piece) frameLog() uint8 {
	if len(p.Data)/sectorSize >= longRun*len(p.Runs) {
		return planned
	}
	return scattered
}

// sealedMost is about what the piece needs at most once it is sealed.
func (p *Piece) sealedMost() int {
	frames := len(p.Data)>>min(p.frameLog(), record.RawFrameLog) + 1
	return len(p.Data) + 4*len(p.Runs) + frames*(4+crypto.Overhead) + firstPiece/16
}

// wholePieces are for the data of cutters.
var wholePieces = sync.Pool{New: func() any { return new([wholePiece]byte) }}

// giveBack lets the data's memory be used again if it is that of a whole piece.
func (p *Piece) giveBack() {
	if cap(p.Data) == wholePiece {
		wholePieces.Put((*[wholePiece]byte)(p.Data[:cap(p.Data)]))
	}
	p.Data = nil
}

// sealPiece seals a piece of a region into an object, in dst if it has the room, and
// describes it for the leaf.
func sealPiece(dst []byte, seal record.Seal, birth blockstore.Position, region uint64, p *Piece) (blockstore.Object, record.LeafObject, error) {
	b, salt, log, err := seal.Segment(dst, region, p.Runs, p.Data, p.frameLog())
	if err != nil {
		return blockstore.Object{}, record.LeafObject{}, err
	}
	o := blockstore.Object{ID: blockstore.IDOf(b), Bytes: b}
	return o, record.LeafObject{
		Ref:      blockstore.Ref{ID: o.ID, Length: uint32(len(b)), Subtree: uint64(len(b))},
		Epoch:    seal.Epoch.ID(),
		FrameLog: log,
		Sectors:  uint16(len(p.Data) / sectorSize),
		Salt:     salt,
		Birth:    birth,
	}, nil
}

// place is where the data of a sector is: an object's number plus one, 0 for a hole.
type place struct{ object, offset uint16 }

// regionMap is a leaf spread out, sector by sector, to be changed.
type regionMap struct {
	objects []record.LeafObject
	at      [record.RegionSectors]place
}

func spread(leaf *record.Leaf) *regionMap {
	m := new(regionMap)
	if leaf == nil {
		return m
	}
	m.objects = append(m.objects, leaf.Objects...)
	for _, x := range leaf.Extents {
		for i := range x.Count {
			m.at[x.First+i] = place{x.Object + 1, x.Offset + i}
		}
	}
	return m
}

// set points the sectors of runs to an object.
func (m *regionMap) set(o record.LeafObject, runs []record.Run) {
	m.objects = append(m.objects, o)
	at := place{object: uint16(len(m.objects))}
	for _, r := range runs {
		for i := range r.Count {
			m.at[r.First+i] = at
			at.offset++
		}
	}
}

// leaf packs the map again, nil if the region holds nothing; dead are the objects
// that no sector is in any more.
func (m *regionMap) leaf(region uint64) (leaf *record.Leaf, dead []tree.Dead) {
	used := make([]uint16, len(m.objects)) // place in the leaf plus one
	objects := make([]record.LeafObject, 0, len(m.objects))
	extents := make([]record.Extent, 0, record.RegionSectors)
	for i := 0; i < record.RegionSectors; {
		at := m.at[i]
		n := 1
		for i+n < record.RegionSectors && at.object != 0 && m.at[i+n] == (place{at.object, at.offset + uint16(n)}) {
			n++
		}
		if at.object != 0 {
			if used[at.object-1] == 0 {
				objects = append(objects, m.objects[at.object-1])
				used[at.object-1] = uint16(len(objects))
			}
			extents = append(extents, record.Extent{
				First: uint16(i), Count: uint16(n), Object: used[at.object-1] - 1, Offset: at.offset})
		}
		i += n
	}
	for i, o := range m.objects {
		if used[i] == 0 {
			dead = append(dead, tree.Dead{ID: o.Ref.ID, Birth: o.Birth})
		}
	}
	if len(extents) == 0 {
		return nil, dead
	}
	// The leaf is kept: in memory of its size.
	return &record.Leaf{Region: region, Base: -1, Objects: slices.Clone(objects), Extents: slices.Clone(extents)}, dead
}

// wear says how much a region needs to be planned again.
type wear uint8

const (
	sound    wear = iota
	ragged        // in many more extents than its holes make necessary: reads are slower
	wasteful      // more than half of what it stores is dead
)

func wearOf(leaf *record.Leaf) wear {
	if leaf == nil {
		return sound
	}
	var live, stored, runs, end int
	for i, x := range leaf.Extents {
		if i == 0 || int(x.First) != end {
			runs++
		}
		end = int(x.First) + int(x.Count)
		live += int(x.Count)
	}
	for _, o := range leaf.Objects {
		stored += int(o.Sectors)
	}
	switch n := len(leaf.Extents); {
	case stored > 2*live:
		return wasteful
	case n > maxExtents && n > 2*runs:
		return ragged
	}
	return sound
}

// cutter gathers sectors, ascending, into pieces.
type cutter struct {
	pieces []Piece
	cur    Piece
}

// add takes one sector. A piece ends when it is full, and a long one where the region's
// own grid has a line, so that a later pass over the same place replaces it whole.
func (c *cutter) add(sector int, data []byte) {
	n := len(c.cur.Data) / sectorSize
	if n == record.MaxSegmentSectors || sector%alignSectors == 0 && n >= alignSectors/4 {
		c.cut()
	}
	if k := len(c.cur.Runs); k > 0 && int(c.cur.Runs[k-1].First+c.cur.Runs[k-1].Count) == sector {
		c.cur.Runs[k-1].Count++
	} else {
		c.cur.Runs = append(c.cur.Runs, record.Run{First: uint16(sector), Count: 1})
	}
	if len(c.cur.Data) == cap(c.cur.Data) { // grown twice at most
		var room []byte
		if len(c.cur.Data) < firstPiece {
			room = make([]byte, 0, firstPiece)
		} else {
			room = wholePieces.Get().(*[wholePiece]byte)[:0]
		}
		c.cur.Data = append(room, c.cur.Data...)
	}
	c.cur.Data = append(c.cur.Data, data...)
}

func (c *cutter) cut() []Piece {
	if len(c.cur.Runs) > 0 {
		c.pieces = append(c.pieces, c.cur)
		c.cur = Piece{}
	}
	return c.pieces
}

// sealRegion makes the next leaf of a region: what the guest wrote goes into segments
// of its own, without reading what was there. A region to be merged is read whole and
// planned again.
func (b *batch) sealRegion(ctx context.Context, put *blockstore.Batch, base tree.Tree, region uint64, merge bool) error {
	old, birth, err := base.LeafBorn(ctx, region)
	if err != nil {
		return err
	}
	m := spread(old)
	for i := range m.objects { // whoever made the leaf cannot have known what came later
		if o := &m.objects[i]; birth != (blockstore.Position{}) && o.Birth.Compare(birth) > 0 {
			o.Birth = birth
		}
	}
	var c cutter
	b.frozen.Each(region, 0, record.RegionSectors, func(sector int, page *dirty.Page) {
		m.at[sector] = place{}
		if page != nil && !merge {
			c.add(sector, page[:])
		}
	})
	seal := b.seal
	pieces := c.cut()
	if merge {
		seal.Compression = b.d.head.commit.Compression
		if pieces, err = b.replan(ctx, base, region, m); err != nil {
			return err
		}
	}
	for _, p := range pieces {
		object, entry, err := sealPiece(put.Buffer(p.sealedMost()), seal, b.position, region, &p)
		if err != nil {
			return err
		}
		m.set(entry, p.Runs)
		p.giveBack()
		if err := put.AddBuffer(object); err != nil {
			return err
		}
	}
	return b.finish(put, base, region, m)
}

// finish seals the leaf of a region and notes it for the map.
func (b *batch) finish(put *blockstore.Batch, base tree.Tree, region uint64, m *regionMap) error {
	leaf, dead := m.leaf(region)
	change := tree.Change{Region: region}
	if leaf != nil {
		object, child, err := base.SealLeaf(b.seal, b.position, leaf)
		if err != nil {
			return err
		}
		if err := put.Add(object); err != nil {
			return err
		}
		change.Leaf = child
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, change)
	b.dead = append(b.dead, dead...)
	b.worn[region] = wearOf(leaf)
	return nil
}

// replan reads all of a region, as frozen and map have it, takes it out of the map's
// places and lets the planner cut it anew: runs of data belong together, and what a
// guest needs in the same burst of its start-up.
func (b *batch) replan(ctx context.Context, base tree.Tree, region uint64, m *regionMap) ([]Piece, error) {
	w := view{d: b.d, v: &version{tree: base}, frozen: b.frozen, once: true}
	leaf, err := base.Leaf(ctx, region)
	if err != nil {
		return nil, err
	}
	held := w.allocation(leaf, region)
	var runs []plan.Run
	var at [record.RegionSectors][]byte // the data of each sector
	for i := 0; i < record.RegionSectors; {
		n := 1
		for i+n < record.RegionSectors && held[i+n] == held[i] {
			n++
		}
		if held[i] {
			vec, err := w.read(ctx, region, i, n, nil)
			if err != nil {
				return nil, err
			}
			runs = append(runs, plan.Run{First: uint16(i), Count: uint16(n)})
			sector := i
			for _, s := range vec {
				for ; len(s) > 0; s, sector = s[sectorSize:], sector+1 {
					at[sector] = s[:sectorSize]
				}
			}
		}
		i += n
	}
	m.at = [record.RegionSectors]place{}
	return cutPieces(b.planner(region, runs).Region(int64(region), runs), &at), nil
}

// planner plans one region of the disk.
func (b *batch) planner(region uint64, runs []plan.Run) *plan.Planner {
	c := b.d.head.commit
	size := max(c.Size, b.frozen.Size())
	allocated := func(yield func(plan.Extent) bool) {
		for _, r := range runs {
			off := int64(region)*regionSize + int64(r.First)*sectorSize
			if !yield(plan.Extent{Off: off, Len: int64(r.Count) * sectorSize}) {
				return
			}
		}
	}
	// Room behind the end, so that a region that is full is not taken for a disk without holes.
	end := (size + regionSize - 1) / regionSize * regionSize
	return plan.New(plan.Input{Size: end, BlockSize: min(c.BlockSize, plan.MaxBlock), Analysers: []plan.Analyser{
		plan.Allocation(end+regionSize, allocated), plan.Trace(b.startup)}})
}

// cutPieces joins the data of planned segments.
func cutPieces(segments []plan.Segment, at *[record.RegionSectors][]byte) []Piece {
	pieces := make([]Piece, 0, len(segments))
	for _, s := range segments {
		p := Piece{Data: make([]byte, 0, s.Sectors()*sectorSize)}
		for _, r := range s {
			p.Runs = append(p.Runs, record.Run{First: r.First, Count: r.Count})
			for i := range r.Count {
				p.Data = append(p.Data, at[r.First+i]...)
			}
		}
		pieces = append(pieces, p)
	}
	return pieces
}

// takeMerges gives the regions that a commit plans again: a few, of those that are worn
// so much at least, and none when the room is needed for what writers wait with, or while
// the image is to stay unmerged and there is room.
func (d *Disk) takeMerges(least wear) map[uint64]wear {
	avail, total, err := d.s.Store.Free()
	if err != nil || avail < d.s.DirtyBytes+2*maxReclaims*regionSize || avail > total/mergeRoom && d.s.isUnmerged(d.id) {
		return nil
	}
	list := make(map[uint64]wear)
	for _, kind := range []struct {
		wear wear
		most int
	}{{wasteful, maxReclaims}, {ragged, maxMerges}} {
		for r, w := range d.merges {
			if len(list) >= kind.most || kind.wear < least {
				break
			}
			if w == kind.wear {
				list[r] = w
				delete(d.merges, r)
			}
		}
	}
	return list
}

func (d *Disk) merging() bool {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	return len(d.merges) > 0
}
