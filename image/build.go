package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// CreateOptions say what a new image is like.
type CreateOptions struct {
	Size, BlockSize int64 // bytes
	Compression     record.Compression
	Plan            record.PlanStats
	Labels          map[string]string // "name", "kind", …
	Recipients      []string          // in age's notation: who can open the image
	Admins          []string          // who holds the image key
	Passphrase      string            // a further way in, if not empty
}

// Builder makes a new image of planned regions (the paper's VMDE). Regions may be
// added concurrently and in any order, each once; nothing refers to them until
// Finish, and what an abandoned Builder has stored is the collector's. It ends with Close.
type Builder struct {
	s       *Shared
	options CreateOptions
	seal    record.Seal
	tree    tree.Tree
	put     *blockstore.Batch

	mu      sync.Mutex // guards what follows
	changes []tree.Change
}

// firstPosition is that of the first commit of an image that is nobody's clone.
var firstPosition = blockstore.Position{Era: 1, Term: 1, Sequence: 1}

// Build begins a new image. Storing it ends with ctx.
func (s *Shared) Build(ctx context.Context, o CreateOptions) (*Builder, error) {
	if o.Size < 0 || o.Size > record.MaxImageSize {
		return nil, fmt.Errorf("image: a disk of %d bytes", o.Size)
	}
	epoch := crypto.NewEpoch()
	put := blockstore.NewBatch(ctx, s.Store)
	put.Bulk = true
	return &Builder{
		s:       s,
		options: o,
		seal:    record.Seal{Suite: s.suite, Epoch: epoch, Compression: o.Compression},
		tree:    tree.Tree{Loader: s.loader, Keys: &crypto.Keyring{Epochs: []*crypto.Epoch{epoch}}},
		put:     put,
	}, nil
}

// AddRegion seals and stores pieces as the content of a region; what no piece covers
// reads as zeros. The pieces may be reused on return.
func (b *Builder) AddRegion(region uint64, pieces []Piece) error {
	m := new(regionMap)
	for i := range pieces {
		object, entry, err := sealPiece(b.put.Buffer(pieces[i].sealedMost()), b.seal, firstPosition, region, &pieces[i])
		if err != nil {
			return err
		}
		m.set(entry, pieces[i].Runs)
		if err := b.put.AddBuffer(object); err != nil {
			return err
		}
	}
	leaf, _ := m.leaf(region)
	if leaf == nil {
		return nil
	}
	object, child, err := b.tree.SealLeaf(b.seal, firstPosition, leaf)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.changes = append(b.changes, tree.Change{Region: region, Leaf: child})
	b.mu.Unlock()
	return b.put.Add(object)
}

// SetPlan records what the planner did. Not to be called while regions are added.
func (b *Builder) SetPlan(p record.PlanStats) { b.options.Plan = p }

// SetSize sets the size, for a source that tells it at its end. Not to be called while regions are added.
func (b *Builder) SetSize(size int64) { b.options.Size = size }

// Close returns when nothing is being stored any more: without it a Builder that was not
// finished still uses the store.
func (b *Builder) Close() { b.put.Wait() }

// Finish makes the image durable and returns its id.
func (b *Builder) Finish(ctx context.Context) (blockstore.ImageID, error) {
	none := blockstore.ImageID{}
	if b.options.Size <= 0 {
		return none, errors.New("image: a disk without a size")
	}
	slices.SortFunc(b.changes, func(x, y tree.Change) int { return cmp.Compare(x.Region, y.Region) })
	if n := len(b.changes); n > 0 && int64(b.changes[n-1].Region)*regionSize >= b.options.Size {
		return none, fmt.Errorf("%w: region %d", ErrTooLarge, b.changes[n-1].Region)
	}
	up, err := b.tree.Update(ctx, b.seal, firstPosition, tree.LevelOf(b.options.Size), b.changes)
	if err != nil {
		return none, err
	}
	if err := b.put.Add(up.Nodes...); err != nil {
		return none, err
	}
	if err := b.put.Flush(); err != nil {
		return none, err
	}
	return b.s.create(ctx, creation{options: b.options, tree: up.Tree, seals: b.seal.Epoch})
}

// creation is what the first commit of an image is made of.
type creation struct {
	options CreateOptions
	tree    tree.Tree
	epochs  []*crypto.Epoch     // of a clone's parent, oldest first
	seals   *crypto.Epoch       // the image's own epoch; nil: a new one
	after   blockstore.Position // of the parent's head; zero if it has no parent
	depmap  *record.DepMap
}

// create makes the records of a new image: image key, keyring, lease and, last, the
// commit, from which on it exists. docs/format.md §11, Import.
func (s *Shared) create(ctx context.Context, n creation) (id blockstore.ImageID, err error) {
	key := crypto.NewImageKey()
	id = key.ID()
	if n.seals == nil {
		n.seals = crypto.NewEpoch()
	}
	keys := &crypto.Keyring{Image: id, Epochs: append(slices.Clone(n.epochs), n.seals), Recipients: n.options.Recipients}
	if n.options.Passphrase != "" {
		if err := keys.AddPassphrase(n.options.Passphrase); err != nil {
			return id, err
		}
	}
	put := blockstore.NewBatch(ctx, s.Store)
	seal := record.Seal{Suite: s.suite, Epoch: n.seals, Compression: n.options.Compression}
	c, err := s.firstCommit(put, seal, n, key, keys)
	if err != nil {
		return id, err
	}
	chain, err := lease.Sign(&blockstore.Lease{Image: id, Era: c.Era, Term: c.Term, Holder: s.Key.Public()}, key.Sign)
	if err != nil {
		return id, err
	}
	if err := put.Flush(); err != nil {
		return id, err
	}
	if c.Lease, err = s.Store.PutLease(ctx, chain); err != nil {
		return id, err
	}
	raw, err := seal.Commit(c, s.sign)
	if err != nil {
		return id, err
	}
	commit, err := s.Store.PutCommit(ctx, id, raw) // the point of no return
	if err != nil {
		return id, err
	}
	return id, s.Anchor.Save(id, anchor.Mark{Era: c.Era, Term: c.Term, Sequence: c.Sequence, Commit: commit})
}

// firstCommit fills in a first commit and puts the small objects that it names.
func (s *Shared) firstCommit(put *blockstore.Batch, seal record.Seal, n creation, key *crypto.ImageKey, keys *crypto.Keyring) (*record.Commit, error) {
	c := new(record.Commit)
	c.Image, c.Epochs, c.Root = keys.Image, masters(keys), n.tree.Root
	p := firstPosition
	if n.after != (blockstore.Position{}) { // births in the shared map stay comparable
		p = blockstore.Position{Era: n.after.Era, Term: n.after.Term + 1, Sequence: n.after.Sequence + 1}
		c.Floor = p
	}
	c.Era, c.Term, c.Sequence = p.Era, p.Term, p.Sequence
	o := n.options
	c.Size, c.BlockSize, c.Compression, c.Plan, c.Labels, c.Time = o.Size, o.BlockSize, o.Compression, o.Plan, o.Labels, s.Now()
	raw, err := keys.Seal()
	if err != nil {
		return nil, err
	}
	if c.Keyring, err = put.AddSmall(raw); err != nil {
		return nil, err
	}
	if raw, err = key.SealImageKey(o.Admins); err != nil {
		return nil, err
	}
	if c.ImageKey, err = put.AddSmall(raw); err != nil {
		return nil, err
	}
	if n.depmap == nil {
		return c, nil
	}
	if raw, err = seal.DepMap(n.depmap); err != nil {
		return nil, err
	}
	ref, err := put.AddSmall(raw)
	c.DepMap = &ref
	return c, err
}

// sign signs a commit as the holder of its lease.
func (s *Shared) sign(b []byte) []byte {
	sig := s.Key.Sign(crypto.SignCommit, b)
	return sig[:]
}
