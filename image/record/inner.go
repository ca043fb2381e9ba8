package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

const childSize = 1 + positionSize + 8

// Child is a child of an inner node.
type Child struct {
	Ref     blockstore.Ref
	Slot    uint8
	Birth   blockstore.Position
	Sectors uint64 // data sectors mapped below
}

// Inner is a node of the map above the leaves (docs/format.md §5). Child s of node i
// is node 256·i + s of the level below; one that is missing reads as zeros.
type Inner struct {
	Level    uint8   // 1 to 4
	Index    uint64  // among the nodes of its level
	Children []Child // ascending by slot after opening; in any order for sealing
}

// Find returns the index of the child in slot.
func (n *Inner) Find(slot uint8) (int, bool) {
	return slices.BinarySearchFunc(n.Children, slot, func(c Child, slot uint8) int { return int(c.Slot) - int(slot) })
}

// maxNodes is how many nodes of a level the largest image has.
func maxNodes(level uint8) uint64 {
	n := uint64(MaxImageSize / RegionSize)
	for ; level > 0; level-- {
		n = (n + Fanout - 1) / Fanout
	}
	return n
}

// maxSectors is how many sectors a node of a level covers.
func maxSectors(level uint8) uint64 { return RegionSectors << (8 * level) }

func (n *Inner) check() error {
	if n.Level < 1 || n.Level > MaxLevel || n.Index >= maxNodes(n.Level) {
		return fmt.Errorf("node %d of level %d", n.Index, n.Level)
	}
	if len(n.Children) < 1 || len(n.Children) > Fanout {
		return fmt.Errorf("%d children", len(n.Children))
	}
	var slots [Fanout]bool
	for i := range n.Children {
		c := &n.Children[i]
		if slots[c.Slot] || n.Index*Fanout+uint64(c.Slot) >= maxNodes(n.Level-1) {
			return fmt.Errorf("child in slot %d", c.Slot)
		}
		slots[c.Slot] = true
		if c.Ref.Length == 0 || c.Ref.Length > blockstore.MaxNode || c.Ref.Subtree < uint64(c.Ref.Length) ||
			c.Sectors > maxSectors(n.Level-1) {
			return fmt.Errorf("child %v of %d bytes, subtree %d, %d sectors", c.Ref.ID, c.Ref.Length, c.Ref.Subtree, c.Sectors)
		}
	}
	return nil
}

// Inner seals an inner node. It does not change n.
func (s Seal) Inner(n *Inner) ([]byte, error) {
	public, body, err := n.encode()
	if err != nil {
		return nil, fmt.Errorf("record: seal inner node: %w", err)
	}
	return s.record(blockstore.KindInner, crypto.NoRegion, crypto.NewSalt(), public, body)
}

// encode returns the public part and the body of a node that is fit to be sealed.
func (n *Inner) encode() (public, body []byte, err error) {
	if err := n.check(); err != nil {
		return nil, nil, err
	}
	order, err := ascending(len(n.Children), func(i int) *blockstore.Ref { return &n.Children[i].Ref })
	if err != nil {
		return nil, nil, err
	}
	refs := make([]blockstore.Ref, len(order))
	b := make([]byte, 0, 10+len(order)*childSize)
	b = append(b, nodeVersion, n.Level)
	b = binary.BigEndian.AppendUint64(b, n.Index)
	for at, i := range order {
		c := &n.Children[i]
		refs[at] = c.Ref
		b = append(b, c.Slot)
		b = appendPosition(b, c.Birth)
		b = binary.BigEndian.AppendUint64(b, c.Sectors)
	}
	return blockstore.AppendNodePublic(nil, blockstore.NodePublic{Level: n.Level, Children: refs}), b, nil
}

// OpenInner opens the inner node of a place in the map and checks all that
// docs/format.md §5 says, its id apart. It keeps nothing of b.
func OpenInner(k *crypto.Keyring, b []byte, level uint8, index uint64) (*Inner, error) {
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	h, body, err := open(sc.buf[:0], k, b, blockstore.KindInner, crypto.NoRegion)
	if err != nil {
		return nil, err
	}
	sc.buf = body
	return decodeInner(h.Public, body, level, index)
}

func decodeInner(publicPart, body []byte, level uint8, index uint64) (*Inner, error) {
	const what = "inner node"
	public, err := blockstore.ParseNodePublic(publicPart)
	if err != nil {
		return nil, err
	}
	if len(body) != 10+len(public.Children)*childSize {
		return nil, corrupt(what, "%d bytes for %d children", len(body), len(public.Children))
	}
	r := reader{b: body}
	if v := r.u8(); v != nodeVersion {
		return nil, corrupt(what, "version %d", v)
	}
	n := &Inner{Level: r.u8(), Index: r.u64(), Children: make([]Child, len(public.Children))}
	if public.Level != level || n.Level != level || n.Index != index {
		return nil, corrupt(what, "node %d of level %d in the place of %d of level %d", n.Index, n.Level, index, level)
	}
	for i := range n.Children {
		n.Children[i] = Child{Ref: public.Children[i], Slot: r.u8(), Birth: positionAt(r.bytes(positionSize)), Sectors: r.u64()}
	}
	if err := n.check(); err != nil {
		return nil, &blockstore.CorruptError{What: what, Cause: err}
	}
	slices.SortFunc(n.Children, func(a, b Child) int { return int(a.Slot) - int(b.Slot) })
	return n, nil
}

// ascending returns the order in which n references ascend by id, or an error if
// two are the same.
func ascending(n int, ref func(i int) *blockstore.Ref) ([]uint16, error) {
	order := make([]uint16, n)
	for i := range order {
		order[i] = uint16(i)
	}
	slices.SortFunc(order, func(a, b uint16) int {
		return bytes.Compare(ref(int(a)).ID[:], ref(int(b)).ID[:])
	})
	for i := 1; i < n; i++ {
		if id := ref(int(order[i])).ID; id == ref(int(order[i-1])).ID {
			return nil, fmt.Errorf("object %v twice", id)
		}
	}
	return order, nil
}
