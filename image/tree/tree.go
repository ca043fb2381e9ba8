package tree

import (
	"context"
	"errors"
	"fmt"

	"github.com/maypok86/otter/v2"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
)

// Loader reads the nodes of one store and keeps opened ones in bounded memory.
// It is safe for concurrent use.
type Loader struct {
	store *blockstore.Store
	cache *otter.Cache[blockstore.ObjectID, cached]
	fetch Fetch
}

// ErrMissing: an object of an image that is not whole here could not be brought. It may
// come later.
var ErrMissing = errors.New("tree: an object has not come from a peer")

// Fetch brings an object of an image that is not whole here, and returns once it is in
// the store. blockstore.ErrNotFound: it is to come from nowhere; [ErrMissing].
type Fetch func(ctx context.Context, image blockstore.ImageID, ref blockstore.SmallRef) error

// Get shows an object of an image, which may have to come from a peer first.
func (l *Loader) Get(ctx context.Context, image blockstore.ImageID, ref blockstore.SmallRef, fn func(b []byte) error) error {
	err := l.store.Get(ctx, ref.ID, fn)
	if l.fetch == nil || !errors.Is(err, blockstore.ErrNotFound) || ctx.Value(localKey{}) != nil {
		return err
	}
	ferr := l.fetch(ctx, image, ref)
	if ferr != nil && !errors.Is(ferr, blockstore.ErrNotFound) {
		return ferr
	}
	return l.store.Get(ctx, ref.ID, fn) // also if the last of the image came meanwhile
}

type localKey struct{}

// Local makes what is read under the context fail with blockstore.ErrNotFound where an
// object is missing, rather than wait for a peer.
func Local(ctx context.Context) context.Context { return context.WithValue(ctx, localKey{}, true) }

// node is a *record.Leaf or a *record.Inner.
type node any

// cached is an opened node with what opened it: who has other keys must not get it.
type cached struct {
	node   node
	epoch  crypto.EpochID
	master crypto.MasterKey
}

// keep holds a node in memory.
func (l *Loader) keep(id blockstore.ObjectID, n node, e *crypto.Epoch) {
	l.cache.Set(id, cached{node: n, epoch: e.ID(), master: e.Master()})
}

// Forget drops nodes from memory that nobody will ask for again.
func (l *Loader) Forget(ids []blockstore.ObjectID) {
	for _, id := range ids {
		l.cache.Invalidate(id)
	}
}

// kept gives a node from memory to who could open it.
func (l *Loader) kept(id blockstore.ObjectID, keys *crypto.Keyring) (node, bool) {
	c, ok := l.cache.GetIfPresent(id)
	if !ok {
		return nil, false
	}
	e, ok := keys.Epoch(c.epoch)
	return c.node, ok && e.Master() == c.master
}

// NewLoader keeps about maxBytes of opened nodes. Fetch may be nil.
func NewLoader(store *blockstore.Store, maxBytes int64, fetch Fetch) (*Loader, error) {
	cache, err := otter.New(&otter.Options[blockstore.ObjectID, cached]{
		MaximumWeight: uint64(maxBytes),
		Weigher:       func(_ blockstore.ObjectID, c cached) uint32 { return weight(c.node) },
	})
	if err != nil {
		return nil, fmt.Errorf("tree: cache of nodes: %w", err)
	}
	return &Loader{store: store, cache: cache, fetch: fetch}, nil
}

func weight(n node) uint32 {
	switch n := n.(type) {
	case *record.Leaf:
		return uint32(200 + 136*len(n.Objects) + 8*len(n.Extents))
	case *record.Inner:
		return uint32(200 + 96*len(n.Children))
	}
	return 200
}

// Tree is one version of a map. The zero Root is a disk without data. Trees are
// values, safe for concurrent use.
type Tree struct {
	Loader *Loader
	Keys   *crypto.Keyring
	Root   *blockstore.RootRef
	// Birth of the root; zero if it is not known, as after opening.
	Birth blockstore.Position
	// Latest is the position of the commit that names the root: nothing in the map was born
	// later, whatever it says of itself. Who made it may have been another host, and objects
	// go by their birth. Zero: it is not known.
	Latest blockstore.Position
}

// bound gives the entries below one that was born at a position without births after it.
func (t Tree) bound(birth, of blockstore.Position) blockstore.Position {
	if birth == (blockstore.Position{}) {
		birth = t.Latest
	}
	if birth != (blockstore.Position{}) && of.Compare(birth) > 0 {
		return birth
	}
	return of
}

// LevelOf is the level of the lowest root that covers a disk of size bytes.
func LevelOf(size int64) uint8 {
	level := uint8(0)
	for regions := (size - 1) / record.RegionSize; regions > 0; regions /= record.Fanout {
		level++
	}
	return level
}

// Span is the number of regions that a node of a level covers.
func Span(level uint8) uint64 { return 1 << (8 * level) }

// load gives a node of the tree, from memory or from the store.
func (t Tree) load(ctx context.Context, ref blockstore.SmallRef, level uint8, index uint64) (node, error) {
	if n, ok := t.Loader.kept(ref.ID, t.Keys); ok {
		return n, nil
	}
	n, e, err := t.fetch(ctx, ref, level, index)
	if err != nil {
		return nil, fmt.Errorf("tree: node %v (level %d, index %d): %w", ref.ID, level, index, err)
	}
	t.Loader.keep(ref.ID, n, e)
	return n, nil
}

// fetch reads a node from the store, past the cache.
func (t Tree) fetch(ctx context.Context, ref blockstore.SmallRef, level uint8, index uint64) (n node, e *crypto.Epoch, err error) {
	err = t.Loader.Get(ctx, t.Keys.Image, ref, func(b []byte) (err error) {
		if blockstore.IDOf(b) != ref.ID {
			return &blockstore.CorruptError{What: "node", Key: ref.ID.String(), Cause: fmt.Errorf("digest differs")}
		}
		h, _, _, err := blockstore.ParseRecord(b)
		if err != nil {
			return err
		}
		e, _ = t.Keys.Epoch(h.Epoch) // that it is there OpenLeaf and OpenInner see to
		if level > 0 {
			n, err = record.OpenInner(t.Keys, b, level, index)
			return err
		}
		n, err = record.OpenLeaf(t.Keys, b, index)
		return err
	})
	return n, e, err
}

func (t Tree) inner(ctx context.Context, ref blockstore.SmallRef, level uint8, index uint64) (*record.Inner, error) {
	n, err := t.load(ctx, ref, level, index)
	if err != nil {
		return nil, err
	}
	in, ok := n.(*record.Inner)
	if !ok || in.Level != level || in.Index != index {
		return nil, misplaced(ref.ID, level, index)
	}
	return in, nil
}

func (t Tree) leaf(ctx context.Context, ref blockstore.SmallRef, region uint64) (*record.Leaf, error) {
	n, err := t.load(ctx, ref, 0, region)
	if err != nil {
		return nil, err
	}
	l, ok := n.(*record.Leaf)
	if !ok || l.Region != region {
		return nil, misplaced(ref.ID, 0, region)
	}
	if l.Base >= 0 { // nothing writes them yet
		return nil, fmt.Errorf("tree: node %v: patch leaf: %w", ref.ID, blockstore.ErrFormat)
	}
	return l, nil
}

// misplaced is a node that is right by itself and stands in the wrong place: the cache
// would otherwise hide what OpenLeaf and OpenInner check.
func misplaced(id blockstore.ObjectID, level uint8, index uint64) error {
	return &blockstore.CorruptError{What: "node", Key: id.String(),
		Cause: fmt.Errorf("is not the node of level %d, index %d", level, index)}
}

// Leaf gives the leaf of a region, nil if the region has no data. The leaf is shared: do not change it.
func (t Tree) Leaf(ctx context.Context, region uint64) (*record.Leaf, error) {
	ref, ok, err := t.LeafRef(ctx, region)
	if err != nil || !ok {
		return nil, err
	}
	return t.leaf(ctx, ref, region)
}

// LeafRef names the leaf of a region without opening it; false if the region has no data.
func (t Tree) LeafRef(ctx context.Context, region uint64) (blockstore.SmallRef, bool, error) {
	ref, _, ok, err := t.find(ctx, region)
	return ref, ok, err
}

// LeafBorn is [Tree.Leaf] with a position after which nothing in the leaf was born.
func (t Tree) LeafBorn(ctx context.Context, region uint64) (*record.Leaf, blockstore.Position, error) {
	ref, birth, ok, err := t.find(ctx, region)
	if err != nil || !ok {
		return nil, birth, err
	}
	leaf, err := t.leaf(ctx, ref, region)
	return leaf, birth, err
}

// find names the leaf of a region and when it was born at the latest.
func (t Tree) find(ctx context.Context, region uint64) (ref blockstore.SmallRef, birth blockstore.Position, ok bool, err error) {
	if t.Root == nil || region >= Span(t.Root.Level) {
		return ref, birth, false, nil
	}
	ref, birth = t.rootRef(), t.Birth
	if birth == (blockstore.Position{}) {
		birth = t.Latest
	}
	for level := t.Root.Level; level > 0; level-- {
		in, err := t.inner(ctx, ref, level, region>>(8*level))
		if err != nil {
			return ref, birth, false, err
		}
		i, ok := in.Find(uint8(region >> (8 * (level - 1))))
		if !ok {
			return ref, birth, false, nil
		}
		ref, birth = small(in.Children[i].Ref), t.bound(birth, in.Children[i].Birth)
	}
	return ref, birth, true, nil
}

func (t Tree) rootRef() blockstore.SmallRef {
	return blockstore.SmallRef{ID: t.Root.ID, Length: t.Root.Length}
}

func small(r blockstore.Ref) blockstore.SmallRef {
	return blockstore.SmallRef{ID: r.ID, Length: r.Length}
}

// Next gives the first region at or after region that has a leaf; false if there is none.
func (t Tree) Next(ctx context.Context, region uint64) (uint64, bool, error) {
	if t.Root == nil {
		return 0, false, nil
	}
	return t.next(ctx, t.rootRef(), t.Root.Level, 0, region)
}

func (t Tree) next(ctx context.Context, ref blockstore.SmallRef, level uint8, index, region uint64) (uint64, bool, error) {
	first := index * Span(level)
	if region >= first+Span(level) {
		return 0, false, nil
	}
	if level == 0 {
		return first, true, nil
	}
	in, err := t.inner(ctx, ref, level, index)
	if err != nil {
		return 0, false, err
	}
	for _, c := range in.Children {
		found, ok, err := t.next(ctx, small(c.Ref), level-1, index*record.Fanout+uint64(c.Slot), region)
		if ok || err != nil {
			return found, ok, err
		}
	}
	return 0, false, nil
}

// Sectors counts the sectors that hold data; it opens the root alone.
func (t Tree) Sectors(ctx context.Context) (uint64, error) {
	if t.Root == nil {
		return 0, nil
	}
	if t.Root.Level == 0 {
		l, err := t.leaf(ctx, t.rootRef(), 0)
		if err != nil {
			return 0, err
		}
		return mapped(l), nil
	}
	in, err := t.inner(ctx, t.rootRef(), t.Root.Level, 0)
	if err != nil {
		return 0, err
	}
	var n uint64
	for _, c := range in.Children {
		n += c.Sectors
	}
	return n, nil
}

func mapped(l *record.Leaf) uint64 {
	var n uint64
	for _, x := range l.Extents {
		if x.Object != record.ZeroObject {
			n += uint64(x.Count)
		}
	}
	return n
}

// ErrSkip tells a walk to leave out what is below a node.
var ErrSkip = errors.New("tree: skip")

// Visitor is called for each node of a walk; a node that could not be loaded has
// err set and both nodes nil, and the walk goes on beside it. Returning an error ends the walk.
type Visitor func(level uint8, index uint64, ref blockstore.Ref, leaf *record.Leaf, inner *record.Inner, err error) error

// Walk visits every node, parents first, reading each from the store and not from memory.
func (t Tree) Walk(ctx context.Context, visit Visitor) error {
	if t.Root == nil {
		return nil
	}
	ref := blockstore.Ref{ID: t.Root.ID, Length: t.Root.Length, Subtree: t.Root.Subtree}
	return t.walk(ctx, ref, t.Root.Level, 0, visit)
}

func (t Tree) walk(ctx context.Context, ref blockstore.Ref, level uint8, index uint64, visit Visitor) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n, _, err := t.fetch(ctx, small(ref), level, index)
	if err != nil {
		n = nil
	}
	leaf, _ := n.(*record.Leaf)
	in, _ := n.(*record.Inner)
	if leaf != nil && leaf.Base >= 0 {
		leaf, err = nil, fmt.Errorf("patch leaf: %w", blockstore.ErrFormat)
	}
	err = visit(level, index, ref, leaf, in, err)
	if errors.Is(err, ErrSkip) {
		return nil
	}
	if err != nil || in == nil {
		return err
	}
	for _, c := range in.Children {
		if err := t.walk(ctx, c.Ref, level-1, index*record.Fanout+uint64(c.Slot), visit); err != nil {
			return err
		}
	}
	return nil
}
