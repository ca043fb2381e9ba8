package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/lease"
)

// receiving is one image that is being received.
type receiving struct {
	r        *Receiver
	options  ReceiveOptions
	image    blockstore.ImageID
	chain    lease.Chain
	leases   [][]byte // the records of chain
	head     state
	pool     *pool
	progress func(done, total int64)
	lazy     bool                            // somebody uses the image meanwhile: small requests
	gate     func(ctx context.Context) error // passed before each request; nil: open

	objects, bytes atomic.Int64 // that came
	done, total    atomic.Int64 // bytes that were missing, and are there

	mu      sync.Mutex // guards what follows
	aside   int64      // bytes that are set aside
	release func(int64)
	walked  map[blockstore.ObjectID]struct{} // inner nodes whose missing bytes were counted
}

// advance counts bytes of segments that came, and are about to be stored.
func (x *receiving) advance(n int) {
	done := x.done.Add(int64(n))
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := min(int64(n), x.aside); n > 0 {
		x.aside -= n
		x.release(n)
	}
	x.progress(done, x.total.Load())
}

// setAside notes what is set aside, and releases what is left of what was before.
func (x *receiving) setAside(release func(int64), n int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.aside > 0 {
		x.release(x.aside)
	}
	x.release, x.aside = release, n
}

// maxWalked bounds the inner nodes of one image: those of the largest that there may be,
// and of as many states.
const maxWalked = 4 << 20

// walkers is how many subtrees are looked through at a time: while one waits for a round
// trip others go on.
const walkers = 4

// fetch makes all that a commit reaches local: small objects, then the nodes that are
// missing, which tell how much else is, then that.
func (x *receiving) fetch(ctx context.Context, c *blockstore.CommitPublic) error {
	if err := x.begin(ctx, c); err != nil || c.Root == nil {
		return err
	}
	root := rootOf(c.Root)
	if complete, err := x.complete(ctx, root, c.Root.Level); err != nil || complete {
		return err
	}
	missing, err := x.count(ctx, root, c.Root.Level)
	if err != nil {
		return err
	}
	release, err := x.r.Reserve(missing)
	if err != nil {
		return err
	}
	x.setAside(release, missing)
	defer x.setAside(nil, 0)
	x.total.Add(missing)
	return x.segments(ctx, root, c.Root.Level)
}

// lacks tells whether an object is not in the store. One that is must have the length that names it.
func (x *receiving) lacks(id blockstore.ObjectID, length uint32) (bool, error) {
	here, err := x.r.Store.HasOf(id, length)
	if errors.Is(err, blockstore.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return !here, err
}

// lacking leaves out what is in the store.
func (x *receiving) lacking(refs []blockstore.SmallRef) (want []blockstore.SmallRef, err error) {
	for _, ref := range refs {
		lacks, err := x.lacks(ref.ID, ref.Length)
		if err != nil {
			return nil, err
		}
		if lacks {
			want = append(want, ref)
		}
	}
	return want, nil
}

// smalls fetches what is missing of keyrings, tables and the like.
func (x *receiving) smalls(ctx context.Context, refs ...blockstore.SmallRef) error {
	want, err := x.lacking(refs)
	if err != nil {
		return err
	}
	for _, ref := range want {
		if ref.Length > blockstore.MaxTable {
			return fmt.Errorf("object %v of %d bytes: %w", ref.ID, ref.Length, ErrProtocol)
		}
	}
	return x.bring(ctx, want, nil)
}

// nodes fetches what is missing of some nodes, and checks their form.
func (x *receiving) nodes(ctx context.Context, refs []blockstore.Ref) error {
	var want []blockstore.SmallRef
	for _, ref := range refs {
		lacks, err := x.lacks(ref.ID, ref.Length)
		if err != nil {
			return err
		}
		if lacks && ref.Length > blockstore.MaxNode {
			return fmt.Errorf("node %v of %d bytes: %w", ref.ID, ref.Length, ErrProtocol)
		}
		if lacks {
			want = append(want, blockstore.SmallRef{ID: ref.ID, Length: ref.Length})
		}
	}
	return x.bring(ctx, want, func(b []byte) error {
		h, _, _, err := blockstore.ParseRecord(b)
		if err == nil {
			_, err = blockstore.ParseNodePublic(h.Public)
		}
		return err
	})
}

// bring fetches objects, several requests at a time, and returns when they are durable.
func (x *receiving) bring(ctx context.Context, want []blockstore.SmallRef, check func(b []byte) error) error {
	if len(want) == 0 {
		return nil
	}
	put := blockstore.NewBatch(ctx, x.r.Store)
	defer put.Wait()
	put.Bulk = true
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(x.ahead())
	for _, part := range requests(want, x.most()) {
		g.Go(func() error { return x.request(group, put, part, check) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return put.Flush()
}

// first brings objects that are wanted before others: as many as are missing, in order.
func (x *receiving) first(ctx context.Context, refs []blockstore.SmallRef) error {
	want, err := x.lacking(refs)
	if err != nil {
		return err
	}
	for _, part := range requests(want, firstBytes) { // each part is readable once it is there
		if err := x.bring(ctx, part, nil); err != nil {
			return err
		}
	}
	return nil
}

// Requests of a lazy image: what is under way must not keep a reader waiting for long.
const (
	lazyBytes = 512 << 10
	lazyAhead = 2
	// firstBytes are brought together.
	firstBytes = 2 << 20
)

// most is how many bytes one request asks for.
func (x *receiving) most() int {
	if x.lazy {
		return lazyBytes
	}
	return maxRequestData
}

// ahead is how many requests are made at a time.
func (x *receiving) ahead() int {
	if x.lazy {
		return lazyAhead
	}
	return requestsAhead
}

// request makes one request, once the gate is open, and hands what comes to put.
func (x *receiving) request(ctx context.Context, put *blockstore.Batch, refs []blockstore.SmallRef, check func(b []byte) error) error {
	if x.gate != nil {
		if err := x.gate(ctx); err != nil {
			return err
		}
		var err error
		if refs, err = x.lacking(refs); err != nil { // whoever uses the image may have brought some meanwhile
			return err
		}
	}
	return x.pool.fetch(ctx, refs, put.Buffer, func(ref blockstore.SmallRef, b []byte) error {
		if check != nil {
			if err := check(b); err != nil {
				return fmt.Errorf("%w: %w", ErrProtocol, err)
			}
		}
		if x.r.Account != nil {
			if err := x.r.Account(len(b)); err != nil {
				return err
			}
		}
		x.objects.Add(1)
		x.bytes.Add(int64(len(b)))
		return put.AddBuffer(blockstore.Object{ID: ref.ID, Bytes: b})
	})
}

// requests cuts a list into what one request may ask for: most bytes, or one object.
func requests(want []blockstore.SmallRef, most int) (parts [][]blockstore.SmallRef) {
	begin, size := 0, 0
	for i, ref := range want {
		if i > begin && (size+int(ref.Length) > most || i-begin == maxRequestIDs) {
			parts = append(parts, want[begin:i])
			begin, size = i, 0
		}
		size += int(ref.Length)
	}
	if begin < len(want) {
		parts = append(parts, want[begin:])
	}
	return parts
}

// children gives what a node that is here names, and checks that it is what its parent
// says: its level, and the bytes below it.
func (x *receiving) children(ctx context.Context, ref blockstore.Ref, level uint8) ([]blockstore.Ref, error) {
	var p blockstore.NodePublic
	err := x.r.Store.Get(ctx, ref.ID, func(b []byte) error {
		h, _, _, err := blockstore.ParseRecord(b)
		if err != nil {
			return err
		}
		if p, err = blockstore.ParseNodePublic(h.Public); err != nil {
			return err
		}
		sum := uint64(len(b))
		for _, c := range p.Children {
			if sum += c.Subtree; c.Subtree > maxSubtree || sum > maxSubtree {
				return errors.New("more below it than there can be")
			}
		}
		switch {
		case p.Patch:
			return fmt.Errorf("patch leaf: %w", blockstore.ErrFormat) // nothing writes them yet
		case level == 0 && len(p.Children) > blockstore.RegionSectors:
			return errors.New("more segments than there are sectors")
		case len(b) != int(ref.Length), p.Level != level, (h.Kind == blockstore.KindLeaf) != (level == 0), sum != ref.Subtree:
			return errors.New("not what its parent says")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("node %v: %w: %w", ref.ID, ErrProtocol, err)
	}
	return p.Children, nil
}

// maxSubtree is more than the sealed bytes of the largest image.
const maxSubtree = 1 << 54

// firstWalk notes an inner node and tells whether it is new.
func (x *receiving) firstWalk(id blockstore.ObjectID) (bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.walked[id]; ok {
		return false, nil
	}
	if len(x.walked) >= maxWalked {
		return false, fmt.Errorf("a map of more than %d nodes: %w", maxWalked, ErrProtocol)
	}
	x.walked[id] = struct{}{}
	return true, nil
}

// complete reports whether a node and all below it are here. The mark says so of the node,
// and the node must be what its parent says: another image may have brought it.
func (x *receiving) complete(ctx context.Context, ref blockstore.Ref, level uint8) (bool, error) {
	complete, err := x.r.Store.IsComplete(ref.ID)
	if err != nil || !complete {
		return false, err
	}
	_, err = x.children(ctx, ref, level)
	return err == nil, err
}

// incomplete leaves out what is complete already.
func (x *receiving) incomplete(ctx context.Context, refs []blockstore.Ref, level uint8) ([]blockstore.Ref, error) {
	var rest []blockstore.Ref
	for _, ref := range refs {
		complete, err := x.complete(ctx, ref, level)
		if err != nil {
			return nil, err
		}
		if !complete {
			rest = append(rest, ref)
		}
	}
	return rest, nil
}

// count fetches the nodes below one that is here, as far as they are missing, and sums
// up the segments that are.
func (x *receiving) count(ctx context.Context, ref blockstore.Ref, level uint8) (missing int64, err error) {
	children, err := x.children(ctx, ref, level)
	if err != nil {
		return 0, err
	}
	if level == 0 {
		return x.missing(children, nil)
	}
	first, err := x.firstWalk(ref.ID)
	if err != nil || !first {
		return 0, err
	}
	if children, err = x.incomplete(ctx, children, level-1); err != nil {
		return 0, err
	}
	if err := x.nodes(ctx, children); err != nil {
		return 0, err
	}
	var sum atomic.Int64
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(walkers)
	for _, child := range children {
		g.Go(func() error {
			if err := group.Err(); err != nil {
				return err
			}
			n, err := x.count(group, child, level-1)
			sum.Add(n)
			return err
		})
	}
	err = g.Wait()
	return sum.Load(), err
}

// missing sums up the segments that are not here, and passes each to add, if there is one.
func (x *receiving) missing(refs []blockstore.Ref, add func(blockstore.SmallRef)) (sum int64, err error) {
	for _, ref := range refs {
		if ref.Length > blockstore.MaxSegment || uint64(ref.Length) != ref.Subtree {
			return 0, fmt.Errorf("segment %v of %d bytes: %w", ref.ID, ref.Length, ErrProtocol)
		}
		lacks, err := x.lacks(ref.ID, ref.Length)
		if err != nil {
			return 0, err
		}
		if !lacks {
			continue
		}
		sum += int64(ref.Length)
		if add != nil {
			add(blockstore.SmallRef{ID: ref.ID, Length: ref.Length})
		}
	}
	return sum, nil
}
