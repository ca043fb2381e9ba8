package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/lease"
)

// Receiver brings images from peers into a store. Safe for concurrent use, but for one
// image at a time.
type Receiver struct {
	Store  *blockstore.Store
	Anchor *anchor.Anchor
	Log    *slog.Logger
	// Reserve sets bytes aside before they are asked for, until as many are released: those
	// that are stored by then take their room themselves. It fails if there is none for them
	// ([blockstore.ErrNoSpace]) or who brings them may not ([ErrRefused]).
	Reserve func(bytes int64) (release func(bytes int64), err error)
	// Account counts bytes that came, and fails once whoever brings them may bring no
	// more ([ErrRefused]); nil: nobody counts.
	Account func(bytes int) error
}

// ReceiveOptions of one image.
type ReceiveOptions struct {
	// Image is the only one that will do.
	Image blockstore.ImageID
	// Rollback is the sequence of an older state that the user accepts; 0: none.
	Rollback blockstore.Sequence
	// Install runs what makes the state the image's, and whatever must come with it; nil:
	// just that.
	Install func(install func() error) error
	// Progress is told how many of the sealed bytes that were missing are there; nil: nobody.
	Progress func(done, total int64)
}

// Received says what was brought.
type Received struct {
	Image    blockstore.ImageID
	Head     blockstore.CommitID
	Position blockstore.Position
	Objects  int64
	Bytes    int64 // sealed bytes that came
}

// Receive makes the state that d describes, and its snapshots, the state of the image in
// the store. It trusts neither d nor the peers, and can be cut at any point: what was
// stored by then is not fetched again.
func (r *Receiver) Receive(ctx context.Context, d *Description, peers []*Client, o ReceiveOptions) (Received, error) {
	x, err := r.admit(d, o)
	if err != nil {
		return Received{}, err
	}
	hold := r.Store.Hold() // the collector leaves alone what no commit names yet
	defer hold.Release()
	x.pool = newPool(d.Image, peers, r.Log)
	if x.progress = o.Progress; x.progress == nil {
		x.progress = func(int64, int64) {}
	}
	snapshots, err := x.snapshots(ctx, peers)
	if err != nil {
		return Received{}, err
	}
	for _, s := range append([]state{x.head}, snapshots...) {
		if err := x.fetch(ctx, s.public); err != nil {
			return Received{}, err
		}
	}
	if err := o.install(func() error { return x.install(ctx, d, snapshots) }); err != nil {
		return Received{}, err
	}
	return x.received(), nil
}

// Check checks a description as Receive does before it asks for anything, and gives the chain
// of leases that holds then.
func (r *Receiver) Check(d *Description, o ReceiveOptions) (lease.Chain, *blockstore.CommitPublic, error) {
	x, err := r.admit(d, o)
	if err != nil {
		return nil, nil, err
	}
	return x.chain, x.head.public, nil
}

func (o *ReceiveOptions) install(install func() error) error {
	if o.Install == nil {
		return install()
	}
	return o.Install(install)
}

// Begin makes the state that d describes the head of the image before what it reaches is
// here: the small objects and the root of the map are, the rest is for [Receiver.Fill] and
// for whoever reads it first. It checks what Receive checks.
func (r *Receiver) Begin(ctx context.Context, d *Description, peers []*Client, o ReceiveOptions) (Received, error) {
	x, err := r.admit(d, o)
	if err != nil {
		return Received{}, err
	}
	hold := r.Store.Hold()
	defer hold.Release()
	x.pool = newPool(d.Image, peers, r.Log)
	if err := x.begin(ctx, x.head.public); err != nil {
		return Received{}, err
	}
	if r := x.head.public.Root; r != nil {
		if _, err := x.children(ctx, rootOf(r), r.Level); err != nil {
			return Received{}, err
		}
	}
	snapshots, err := x.snapshots(ctx, peers)
	if err != nil {
		return Received{}, err
	}
	if err := o.install(func() error { return x.install(ctx, d, snapshots) }); err != nil {
		return Received{}, err
	}
	return x.received(), nil
}

// smallsOf lists the small objects that a commit names.
func smallsOf(c *blockstore.CommitPublic) []blockstore.SmallRef {
	refs := []blockstore.SmallRef{c.Keyring, c.ImageKey}
	for _, ref := range []*blockstore.SmallRef{c.Snapshots, c.DepMap} {
		if ref != nil {
			refs = append(refs, *ref)
		}
	}
	return refs
}

func rootOf(r *blockstore.RootRef) blockstore.Ref {
	return blockstore.Ref{ID: r.ID, Length: r.Length, Subtree: r.Subtree}
}

// begin brings the small objects that a commit names and the root of its map: in one round trip.
func (x *receiving) begin(ctx context.Context, c *blockstore.CommitPublic) error {
	g, group := errgroup.WithContext(ctx)
	g.Go(func() error { return x.smalls(group, smallsOf(c)...) })
	if c.Root != nil {
		g.Go(func() error { return x.nodes(group, []blockstore.Ref{rootOf(c.Root)}) })
	}
	return g.Wait()
}

func (x *receiving) received() Received {
	return Received{Image: x.image, Head: x.head.id, Position: x.head.public.Position(), Objects: x.objects.Load(), Bytes: x.bytes.Load()}
}

// FillOptions of an image that is not whole.
type FillOptions struct {
	// Gate is passed before each request: whoever waits for data goes first.
	Gate func(ctx context.Context) error
	// First brings what is wanted before all else, with bring, which keeps the order
	// roughly; nil: nothing.
	First    func(ctx context.Context, bring func(ctx context.Context, refs []blockstore.SmallRef) error) error
	Progress func(done, total int64)
}

// Fill brings what the head of an image and its snapshots lack, and gives the head that
// is whole then. A newer one may have come meanwhile.
func (r *Receiver) Fill(ctx context.Context, id blockstore.ImageID, peers []*Client, o FillOptions) (Received, error) {
	head, raw, err := r.Store.Head(id)
	if err != nil {
		return Received{}, err
	}
	chain, err := lease.Load(r.Store, id)
	if err != nil {
		return Received{}, err
	}
	public, err := chain.CheckHead(id, head, raw)
	if err != nil {
		return Received{}, err
	}
	hold := r.Store.Hold()
	defer hold.Release()
	x := &receiving{r: r, image: id, chain: chain, head: state{head, public, raw, true}, walked: map[blockstore.ObjectID]struct{}{}, lazy: true, gate: o.Gate, progress: o.Progress}
	x.pool = newPool(id, peers, r.Log)
	if o.First != nil {
		bring := func(ctx context.Context, refs []blockstore.SmallRef) error { return x.first(ctx, refs) }
		if err := o.First(ctx, bring); err != nil {
			return Received{}, err
		}
	}
	snapshots, err := x.snapshots(ctx, peers)
	if err != nil {
		return Received{}, err
	}
	for _, s := range append([]state{x.head}, snapshots...) {
		if err := x.fetch(ctx, s.public); err != nil {
			return Received{}, err
		}
	}
	return x.received(), nil
}

// state is a commit whose signature is right.
type state struct {
	id     blockstore.CommitID
	public *blockstore.CommitPublic
	raw    []byte
	here   bool // in the store
}

// admit checks a description against everything that vouches for it, and against what
// this host has seen of the image.
func (r *Receiver) admit(d *Description, o ReceiveOptions) (*receiving, error) {
	fail := func(err error) (*receiving, error) { return nil, fmt.Errorf("image %v: %w", d.Image, err) }
	if d.Image != o.Image {
		return nil, fmt.Errorf("image %v in place of %v: %w", d.Image, o.Image, ErrProtocol)
	}
	chain, leases, err := r.longestChain(d)
	if err != nil {
		return fail(err)
	}
	head := state{id: blockstore.CommitIDOf(d.Head), raw: d.Head}
	if head.public, err = chain.CheckHead(d.Image, head.id, d.Head); err != nil {
		return fail(err)
	}
	if err := r.checkAge(d.Image, head, o.Rollback); err != nil {
		return fail(err)
	}
	return &receiving{r: r, options: o, image: d.Image, chain: chain, leases: leases, head: head, walked: map[blockstore.ObjectID]struct{}{}}, nil
}

// longestChain compares the lease chain with the one that is here and gives the one that
// counts: one must begin with the other, since the first record seen for a term stays, or
// end in a higher era, which takes the image key. What a former holder signs is refused by
// whoever has seen the next term.
func (r *Receiver) longestChain(d *Description) (lease.Chain, [][]byte, error) {
	have, err := r.Store.Leases(d.Image)
	if err != nil {
		return nil, nil, err
	}
	theirs, err := lease.Parse(d.Image, d.Leases)
	if err != nil {
		return nil, nil, err
	}
	if len(have) == 0 {
		return theirs, d.Leases, nil
	}
	ours, err := lease.Parse(d.Image, have)
	if err != nil {
		return nil, nil, err
	}
	use := len(theirs) >= len(ours)
	for i := range min(len(have), len(d.Leases)) {
		if slices.Equal(have[i], d.Leases[i]) {
			continue
		}
		if ours.Newest().Era == theirs.Newest().Era {
			return nil, nil, fmt.Errorf("%w: its lease chain is another one from record %d on", image.ErrFork, i+1)
		}
		use = theirs.Newest().Era > ours.Newest().Era
		break
	}
	if !use {
		return ours, have, nil
	}
	return theirs, d.Leases, nil
}

// checkAge refuses what is older than this host has seen, unless the user accepts that.
func (r *Receiver) checkAge(id blockstore.ImageID, head state, accepted blockstore.Sequence) error {
	mark, seen, err := r.Anchor.Load(id)
	if err != nil || !seen {
		return err
	}
	at := head.public.Position()
	switch c := at.Compare(mark.Position()); {
	case c == 0 && head.id != mark.Commit:
		return fmt.Errorf("%w: commits %v and %v at %v", image.ErrFork, head.id, mark.Commit, at)
	case c < 0 && (accepted == 0 || accepted != at.Sequence):
		return fmt.Errorf("%w: it is at %v, seen was %v", image.ErrRolledBack, at, mark.Position())
	}
	return nil
}

// snapshots fetches the snapshot table of the head and the commits that it names.
func (x *receiving) snapshots(ctx context.Context, peers []*Client) ([]state, error) {
	table := x.head.public.Snapshots
	if table == nil {
		return nil, nil
	}
	if err := x.smalls(ctx, *table); err != nil {
		return nil, err
	}
	var list blockstore.SnapshotPublic
	err := x.r.Store.Get(ctx, table.ID, func(b []byte) error {
		h, _, _, err := blockstore.ParseRecord(b)
		if err == nil && h.Kind != blockstore.KindSnapshotTable {
			err = fmt.Errorf("a %v for a snapshot table: %w", h.Kind, blockstore.ErrCorrupt)
		}
		if err == nil {
			list, err = blockstore.ParseSnapshotPublic(h.Public)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot table: %w", err)
	}
	states := make([]state, 0, len(list))
	bytes := 0
	for part := range slices.Chunk(list, maxRequestIDs) {
		got, err := x.commits(ctx, peers, part)
		if err != nil {
			return nil, err
		}
		for _, s := range got {
			bytes += len(s.raw)
		}
		if bytes > maxSnapshotBytes {
			return nil, fmt.Errorf("snapshots of more than %d bytes of commits: %w", maxSnapshotBytes, ErrProtocol)
		}
		states = append(states, got...)
	}
	slices.Reverse(states) // the newest has most in common with the head
	return states, nil
}

// maxSnapshotBytes bounds the commits of all snapshots: about a hundred thousand.
const maxSnapshotBytes = 64 << 20

// commits gives commits, from the store or from a peer, each checked.
func (x *receiving) commits(ctx context.Context, peers []*Client, list blockstore.SnapshotPublic) ([]state, error) {
	found := make(map[blockstore.CommitID][]byte, len(list))
	here := make(map[blockstore.CommitID]bool, len(list))
	var missing []blockstore.CommitID
	for _, s := range list {
		raw, err := x.r.Store.Commit(x.image, s.ID)
		switch {
		case err == nil:
			found[s.ID], here[s.ID] = raw, true
		case errors.Is(err, blockstore.ErrNotFound), errors.Is(err, blockstore.ErrCorrupt):
			missing = append(missing, s.ID)
		default:
			return nil, err
		}
	}
	for _, c := range peers {
		if len(missing) == 0 {
			break
		}
		err := c.Commits(ctx, x.image, missing, func(id blockstore.CommitID, raw []byte) error {
			found[id] = raw
			return nil
		})
		if err != nil && c == peers[len(peers)-1] {
			return nil, err
		}
		missing = slices.DeleteFunc(missing, func(id blockstore.CommitID) bool { return found[id] != nil })
	}
	states := make([]state, 0, len(list))
	for _, s := range list {
		public, _, err := x.chain.Check(x.image, s.ID, found[s.ID])
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		states = append(states, state{id: s.ID, public: public, raw: found[s.ID], here: here[s.ID]})
	}
	return states, nil
}

// install makes a state that is complete the head. Snapshots first; leases and head are one
// transaction, the point of no return.
func (x *receiving) install(ctx context.Context, d *Description, snapshots []state) error {
	st := x.r.Store
	// Once more: this host may have seen, or made, something newer meanwhile.
	again, err := x.r.admit(d, x.options)
	if err != nil {
		return err
	}
	x.chain, x.leases = again.chain, again.leases
	if head, _, err := st.Head(x.image); err == nil && head == x.head.id {
		return st.Adopt(ctx, x.image, x.leases, nil)
	}
	return x.putHead(ctx, snapshots)
}

// putHead stores the snapshots and the head, and forgets commits that are neither.
func (x *receiving) putHead(ctx context.Context, snapshots []state) error {
	st := x.r.Store
	keep := []blockstore.CommitID{x.head.id}
	for _, s := range snapshots {
		if !s.here {
			if _, err := st.AddCommit(ctx, x.image, s.raw); err != nil {
				return err
			}
		}
		keep = append(keep, s.id)
	}
	if err := st.Adopt(ctx, x.image, x.leases, x.head.raw); err != nil { // the point of no return
		return err
	}
	p := x.head.public
	if err := x.r.Anchor.Save(x.image, anchor.Mark{Era: p.Era, Term: p.Term, Sequence: p.Sequence, Commit: x.head.id}); err != nil {
		return err
	}
	all, err := st.Commits(x.image)
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(all, func(id blockstore.CommitID) bool { return slices.Contains(keep, id) })
	return st.DeleteCommits(ctx, x.image, gone...)
}
