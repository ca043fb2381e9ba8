package tree

import (
	"context"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
)

// Change is the new leaf of a region, sealed and put by the caller (see [Tree.SealLeaf]);
// nil says that the region has no data left.
type Change struct {
	Region uint64
	Leaf   *record.Child
}

// Dead is an object that the new version does not use any more.
type Dead struct {
	ID    blockstore.ObjectID
	Birth blockstore.Position
}

// Update is the outcome of [Tree.Update]: the next version, the new nodes, sealed and
// not stored yet, and the nodes that it replaces.
type Update struct {
	Tree  Tree
	Nodes []blockstore.Object
	Dead  []Dead
}

// updater carries what the recursion shares.
type updater struct {
	ctx   context.Context
	t     Tree
	seal  record.Seal
	birth blockstore.Position
	out   *Update
}

// Update makes the next version of the map with new leaves, ascending by region and
// distinct, under a root of at least the given level. birth is the position of the
// commit that will name it.
func (t Tree) Update(ctx context.Context, seal record.Seal, birth blockstore.Position, level uint8, changes []Change) (*Update, error) {
	u := updater{ctx: ctx, t: t, seal: seal, birth: birth, out: &Update{Tree: t}}
	var old *record.Child
	if t.Root != nil {
		level = max(level, t.Root.Level)
		old = &record.Child{Ref: blockstore.Ref{ID: t.Root.ID, Length: t.Root.Length, Subtree: t.Root.Subtree}, Birth: t.Birth}
		if level > t.Root.Level {
			n, err := t.Sectors(ctx)
			if err != nil {
				return nil, err
			}
			old.Sectors = n
		}
	}
	if len(changes) == 0 && (t.Root == nil || level == t.Root.Level) {
		return u.out, nil
	}
	root, err := u.node(level, 0, old, changes)
	if err != nil {
		return nil, err
	}
	u.out.Tree.Root, u.out.Tree.Birth, u.out.Tree.Latest = nil, birth, birth
	if root != nil {
		u.out.Tree.Root = &blockstore.RootRef{Level: level, ID: root.Ref.ID, Length: root.Ref.Length, Subtree: root.Ref.Subtree}
	}
	return u.out, nil
}

// node gives the entry of a node with the changes below it, nil if nothing is left there.
// old is its entry so far; for a place above the old root it is the old root's.
func (u *updater) node(level uint8, index uint64, old *record.Child, changes []Change) (*record.Child, error) {
	above := old != nil && level > u.t.Root.Level
	if len(changes) == 0 && !above {
		return old, nil
	}
	if old != nil && !above {
		u.out.Dead = append(u.out.Dead, Dead{old.Ref.ID, old.Birth})
	}
	if level == 0 {
		return changes[len(changes)-1].Leaf, nil
	}
	children, err := u.children(level, index, old, above)
	if err != nil {
		return nil, err
	}
	var list []record.Child
	below := Span(level - 1)
	for slot := range uint64(record.Fanout) {
		first := (index*record.Fanout + slot) * below
		n, _ := slices.BinarySearchFunc(changes, first+below, func(c Change, r uint64) int {
			if c.Region < r {
				return -1
			}
			return 1
		})
		child, err := u.node(level-1, index*record.Fanout+slot, children[slot], changes[:n])
		if err != nil {
			return nil, err
		}
		changes = changes[n:]
		if child != nil {
			child.Slot = uint8(slot)
			list = append(list, *child)
		}
	}
	return u.inner(&record.Inner{Level: level, Index: index, Children: list})
}

// children gives the entries below a node as they are so far, by slot.
func (u *updater) children(level uint8, index uint64, old *record.Child, above bool) (*[record.Fanout]*record.Child, error) {
	var list [record.Fanout]*record.Child
	if above {
		list[0] = old
		return &list, nil
	}
	if old == nil {
		return &list, nil
	}
	in, err := u.t.inner(u.ctx, small(old.Ref), level, index)
	if err != nil {
		return nil, err
	}
	for _, c := range in.Children {
		c.Birth = u.t.bound(old.Birth, c.Birth)
		list[c.Slot] = &c
	}
	return &list, nil
}

// SealLeaf seals a leaf for [Tree.Update]. The caller puts the object; the leaf is kept
// in memory from here on and must not change.
func (t Tree) SealLeaf(seal record.Seal, birth blockstore.Position, l *record.Leaf) (blockstore.Object, *record.Child, error) {
	b, err := seal.Leaf(l)
	if err != nil {
		return blockstore.Object{}, nil, err
	}
	subtree := uint64(len(b))
	for _, o := range l.Objects {
		subtree += o.Ref.Subtree
	}
	object, child := t.entry(b, l, seal.Epoch, birth)
	child.Ref.Subtree, child.Sectors = subtree, mapped(l)
	return object, child, nil
}

func (u *updater) inner(n *record.Inner) (*record.Child, error) {
	if len(n.Children) == 0 {
		return nil, nil
	}
	b, err := u.seal.Inner(n)
	if err != nil {
		return nil, err
	}
	object, child := u.t.entry(b, n, u.seal.Epoch, u.birth)
	child.Ref.Subtree = uint64(len(b))
	for _, c := range n.Children {
		child.Ref.Subtree += c.Ref.Subtree
		child.Sectors += c.Sectors
	}
	u.out.Nodes = append(u.out.Nodes, object)
	return child, nil
}

// entry keeps a new node in memory and describes it to the store and to its parent.
func (t Tree) entry(b []byte, n node, e *crypto.Epoch, birth blockstore.Position) (blockstore.Object, *record.Child) {
	id := blockstore.IDOf(b)
	t.Loader.keep(id, n, e)
	return blockstore.Object{ID: id, Bytes: b},
		&record.Child{Ref: blockstore.Ref{ID: id, Length: uint32(len(b))}, Birth: birth}
}
