package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// ZeroObject in place of an object's index says that sectors read as zeros
// whatever the base holds. It occurs in patches only.
const ZeroObject = 0xFFFF

const (
	nodeVersion  = 1
	noBase       = 0xFFFF
	positionSize = 24
	objectSize   = 1 + 1 + 2 + 32 + positionSize
	extentSize   = 8
)

// LeafObject is a segment that a leaf refers to, or the base leaf of a patch.
type LeafObject struct {
	Ref      blockstore.Ref
	Epoch    crypto.EpochID
	FrameLog uint8  // its frames hold 2^FrameLog bytes; 0 for a base
	Sectors  uint16 // of data, 1 to 256; 0 for a base
	Salt     crypto.Salt
	Birth    blockstore.Position
}

// Extent maps Count sectors of the region from First on to those of an object from
// Offset on.
type Extent struct {
	First  uint16
	Count  uint16 // 1 to 4096
	Object uint16 // index in Objects, or ZeroObject
	Offset uint16 // in the segment's data, in sectors
}

// Leaf maps the sectors of one region (docs/format.md §5). What no extent covers
// reads as zeros, or as the base has it.
type Leaf struct {
	Region  uint64
	Base    int          // index in Objects of the base leaf; -1 unless this is a patch
	Objects []LeafObject // ascending by id after opening; in any order for sealing
	Extents []Extent     // ascending, disjoint
}

// Find returns the index of the first extent that ends after sector, or
// len(l.Extents). That extent covers sector if it does not begin after it.
func (l *Leaf) Find(sector uint16) int {
	return sort.Search(len(l.Extents), func(i int) bool {
		return int(l.Extents[i].First)+int(l.Extents[i].Count) > int(sector)
	})
}

// check is what docs/format.md §5 asks of a leaf, whoever made it.
func (l *Leaf) check() error {
	if l.Region >= maxNodes(0) {
		return fmt.Errorf("region %d", l.Region)
	}
	if len(l.Objects) > RegionSectors+1 || l.Base < -1 || l.Base >= len(l.Objects) {
		return fmt.Errorf("%d objects, base %d", len(l.Objects), l.Base)
	}
	for i := range l.Objects {
		if err := l.checkObject(i); err != nil {
			return err
		}
	}
	used := make([]bool, len(l.Objects))
	end := 0
	for i := range l.Extents {
		x := &l.Extents[i]
		if int(x.First) < end || x.Count == 0 || int(x.First)+int(x.Count) > RegionSectors {
			return fmt.Errorf("extent of %d sectors at %d after one that ends at %d", x.Count, x.First, end)
		}
		end = int(x.First) + int(x.Count)
		switch {
		case x.Object == ZeroObject:
			if l.Base < 0 || x.Offset != 0 {
				return fmt.Errorf("extent of zeros at %d", x.First)
			}
		case int(x.Object) >= len(l.Objects) || int(x.Object) == l.Base:
			return fmt.Errorf("extent at %d in object %d of %d", x.First, x.Object, len(l.Objects))
		case int(x.Offset)+int(x.Count) > int(l.Objects[x.Object].Sectors):
			return fmt.Errorf("extent at %d leaves its segment", x.First)
		default:
			used[x.Object] = true
		}
	}
	for i, u := range used {
		if !u && i != l.Base {
			return fmt.Errorf("object %v has no extent", l.Objects[i].Ref.ID)
		}
	}
	return nil
}

func (l *Leaf) checkObject(i int) error {
	o := &l.Objects[i]
	if i == l.Base {
		if o.FrameLog != 0 || o.Sectors != 0 || o.Ref.Length > blockstore.MaxNode || o.Ref.Subtree < uint64(o.Ref.Length) {
			return fmt.Errorf("base %v of %d bytes, subtree %d, %d sectors", o.Ref.ID, o.Ref.Length, o.Ref.Subtree, o.Sectors)
		}
		return nil
	}
	if o.FrameLog < MinFrameLog || o.FrameLog > MaxFrameLog {
		return fmt.Errorf("segment %v with frames of 2^%d bytes", o.Ref.ID, o.FrameLog)
	}
	if o.Sectors < 1 || o.Sectors > MaxSegmentSectors || o.Ref.Length == 0 ||
		o.Ref.Length > blockstore.MaxSegment || o.Ref.Subtree != uint64(o.Ref.Length) {
		return fmt.Errorf("segment %v of %d bytes, subtree %d, %d sectors", o.Ref.ID, o.Ref.Length, o.Ref.Subtree, o.Sectors)
	}
	return nil
}

// Leaf seals a leaf or a patch. It does not change l.
func (s Seal) Leaf(l *Leaf) ([]byte, error) {
	public, body, err := l.encode()
	if err != nil {
		return nil, fmt.Errorf("record: seal leaf: %w", err)
	}
	return s.record(blockstore.KindLeaf, crypto.Region(l.Region), crypto.NewSalt(), public, body)
}

// encode returns the public part and the body of a leaf that is fit to be sealed.
func (l *Leaf) encode() (public, body []byte, err error) {
	if err := l.check(); err != nil {
		return nil, nil, err
	}
	order, err := ascending(len(l.Objects), func(i int) *blockstore.Ref { return &l.Objects[i].Ref })
	if err != nil {
		return nil, nil, err
	}
	refs := make([]blockstore.Ref, len(order))
	place := make([]uint16, len(order)) // from an object's index in l to its place
	for at, i := range order {
		refs[at], place[i] = l.Objects[i].Ref, uint16(at)
	}
	public = blockstore.AppendNodePublic(nil, blockstore.NodePublic{Patch: l.Base >= 0, Children: refs})
	body, err = l.appendBody(order, place)
	return public, body, err
}

func (l *Leaf) appendBody(order, place []uint16) ([]byte, error) {
	b := make([]byte, 0, 64+16*4+len(order)*objectSize+len(l.Extents)*extentSize)
	b = append(b, nodeVersion)
	b = binary.BigEndian.AppendUint64(b, l.Region)
	epochs := l.epochs()
	if len(epochs) > 255 {
		return nil, fmt.Errorf("%d epochs, at most 255", len(epochs))
	}
	b = append(b, byte(len(epochs)))
	for i := range epochs {
		b = append(b, epochs[i][:]...)
	}
	base := uint16(noBase)
	if l.Base >= 0 {
		base = place[l.Base]
	}
	b = binary.BigEndian.AppendUint16(b, base)
	for _, i := range order {
		o := &l.Objects[i]
		e, _ := slices.BinarySearchFunc(epochs, o.Epoch, compareEpochs)
		b = append(b, byte(e), o.FrameLog)
		b = binary.BigEndian.AppendUint16(b, o.Sectors)
		b = append(b, o.Salt[:]...)
		b = appendPosition(b, o.Birth)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(l.Extents)))
	for _, x := range l.Extents {
		object := x.Object
		if object != ZeroObject {
			object = place[object]
		}
		b = binary.BigEndian.AppendUint16(b, x.First)
		b = binary.BigEndian.AppendUint16(b, x.Count-1)
		b = binary.BigEndian.AppendUint16(b, object)
		b = binary.BigEndian.AppendUint16(b, x.Offset)
	}
	return b, nil
}

func compareEpochs(a, b crypto.EpochID) int { return bytes.Compare(a[:], b[:]) }

// epochs lists the epochs of the objects, ascending and each once.
func (l *Leaf) epochs() []crypto.EpochID {
	var ids []crypto.EpochID
	for i := range l.Objects {
		id := l.Objects[i].Epoch
		if at, found := slices.BinarySearchFunc(ids, id, compareEpochs); !found {
			ids = slices.Insert(ids, at, id)
		}
	}
	return ids
}

// OpenLeaf opens the leaf of a region and checks all that docs/format.md §5 says,
// its id apart. It keeps nothing of b.
func OpenLeaf(k *crypto.Keyring, b []byte, region uint64) (*Leaf, error) {
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	h, body, err := open(sc.buf[:0], k, b, blockstore.KindLeaf, crypto.Region(region))
	if err != nil {
		return nil, err
	}
	sc.buf = body
	return decodeLeaf(h.Public, body, region)
}

func decodeLeaf(publicPart, body []byte, region uint64) (*Leaf, error) {
	const what = "leaf"
	public, err := blockstore.ParseNodePublic(publicPart)
	if err != nil {
		return nil, err
	}
	if public.Level != 0 {
		return nil, corrupt(what, "level %d", public.Level)
	}
	l, err := parseLeaf(body, public)
	if err != nil {
		return nil, err
	}
	if l.Region != region {
		return nil, corrupt(what, "region %d in the place of %d", l.Region, region)
	}
	if err := l.check(); err != nil {
		return nil, &blockstore.CorruptError{What: what, Cause: err}
	}
	return l, nil
}

// parseLeaf reads the body beside its public part; the values are not checked yet.
func parseLeaf(body []byte, public blockstore.NodePublic) (*Leaf, error) {
	const what = "leaf"
	r := reader{b: body}
	if v := r.u8(); v != nodeVersion {
		return nil, corrupt(what, "version %d", v)
	}
	l := &Leaf{Region: r.u64(), Base: -1}
	epochs, err := parseEpochs(&r)
	if err != nil {
		return nil, err
	}
	base := r.u16()
	if public.Patch != (base != noBase) || public.Patch && int(base) >= len(public.Children) {
		return nil, corrupt(what, "base %d, patch %v", base, public.Patch)
	}
	if public.Patch {
		l.Base = int(base)
	}
	if r.left() < len(public.Children)*objectSize {
		return nil, corrupt(what, "%d bytes for %d objects", r.left(), len(public.Children))
	}
	used := make([]bool, len(epochs))
	l.Objects = make([]LeafObject, len(public.Children))
	for i := range l.Objects {
		o, entry := &l.Objects[i], r.bytes(objectSize)
		o.Ref = public.Children[i]
		e := int(entry[0])
		if e >= len(epochs) {
			return nil, corrupt(what, "epoch %d of %d", e, len(epochs))
		}
		o.Epoch, used[e] = epochs[e], true
		o.FrameLog = entry[1]
		o.Sectors = binary.BigEndian.Uint16(entry[2:])
		copy(o.Salt[:], entry[4:36])
		o.Birth = positionAt(entry[36:])
	}
	if slices.Contains(used, false) {
		return nil, corrupt(what, "an epoch without an object")
	}
	x := int(r.u16())
	if r.left() != x*extentSize || r.short {
		return nil, corrupt(what, "%d bytes for %d extents", r.left(), x)
	}
	l.Extents = make([]Extent, x)
	for i := range l.Extents {
		x := r.bytes(extentSize)
		l.Extents[i] = Extent{
			First:  binary.BigEndian.Uint16(x),
			Count:  binary.BigEndian.Uint16(x[2:]) + 1, // 65,536 wraps to 0, which is refused as well
			Object: binary.BigEndian.Uint16(x[4:]),
			Offset: binary.BigEndian.Uint16(x[6:]),
		}
	}
	return l, nil
}

func parseEpochs(r *reader) ([]crypto.EpochID, error) {
	n := int(r.u8())
	if r.left() < 16*n {
		return nil, corrupt("leaf", "%d bytes for %d epochs", r.left(), n)
	}
	epochs := make([]crypto.EpochID, n)
	for i := range epochs {
		copy(epochs[i][:], r.bytes(16))
		if i > 0 && compareEpochs(epochs[i-1], epochs[i]) >= 0 {
			return nil, corrupt("leaf", "epochs out of order")
		}
	}
	return epochs, nil
}
