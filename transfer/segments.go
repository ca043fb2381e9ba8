package transfer

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/sealdisk/sealdisk/blockstore"
)

// chunkBytes is how much is fetched between two notes of what is complete, and chunksAhead
// how many such chunks are under way: while the end of one becomes durable the link is
// busy with the next.
const (
	chunkBytes  = 32 << 20
	chunksAhead = 2
)

// maxChunk bounds the objects of a chunk, however small they say they are.
const maxChunk = 16 << 10

// chunk is some leaves and what is missing below them.
type chunk struct {
	leaves []blockstore.ObjectID
	want   []blockstore.SmallRef
	bytes  int64
}

// gathering walks a map, all of whose nodes are here, for the segments that are missing.
type gathering struct {
	x     *receiving
	group *errgroup.Group
	ctx   context.Context // of group
	now   chunk
	inner []blockstore.ObjectID // that were walked, children first
	seen  map[blockstore.ObjectID]struct{}
}

// segments fetches all segments below a node that are missing, and marks it, and all
// nodes below it, as complete.
func (x *receiving) segments(ctx context.Context, ref blockstore.Ref, level uint8) error {
	g := &gathering{x: x, seen: map[blockstore.ObjectID]struct{}{}}
	g.group, g.ctx = errgroup.WithContext(ctx)
	g.group.SetLimit(chunksAhead)
	err := g.walk(ref, level)
	if err == nil {
		g.submit()
	}
	if gerr := g.group.Wait(); gerr != nil { // the reason why the walk ended, if it did
		return gerr
	}
	if err != nil {
		return err
	}
	for part := range slices.Chunk(g.inner, maxRequestIDs) {
		if err := x.r.Store.MarkComplete(ctx, part...); err != nil {
			return err
		}
	}
	return nil
}

func (g *gathering) walk(ref blockstore.Ref, level uint8) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	if _, seen := g.seen[ref.ID]; seen && level > 0 { // a hostile map names a node many times
		return nil
	}
	complete, err := g.x.complete(g.ctx, ref, level)
	if err != nil || complete {
		return err
	}
	children, err := g.x.children(g.ctx, ref, level)
	if err != nil {
		return err
	}
	if level == 0 {
		return g.leaf(ref.ID, children)
	}
	g.seen[ref.ID] = struct{}{}
	for _, child := range children {
		if err := g.walk(child, level-1); err != nil {
			return err
		}
	}
	g.inner = append(g.inner, ref.ID)
	return nil
}

// leaf adds a leaf and what is missing below it to the chunk of now.
func (g *gathering) leaf(id blockstore.ObjectID, children []blockstore.Ref) error {
	n, err := g.x.missing(children, func(ref blockstore.SmallRef) { g.now.want = append(g.now.want, ref) })
	if err != nil {
		return err
	}
	g.now.leaves = append(g.now.leaves, id)
	g.now.bytes += n
	if g.now.bytes >= chunkBytes || len(g.now.leaves) >= maxRequestIDs || len(g.now.want) >= maxChunk {
		g.submit()
	}
	return nil
}

// submit fetches the chunk of now beside those before it.
func (g *gathering) submit() {
	c := g.now
	g.now = chunk{}
	if len(c.leaves) == 0 {
		return
	}
	g.group.Go(func() error { return g.fetch(c) })
}

func (g *gathering) fetch(c chunk) error {
	x := g.x
	put := blockstore.NewBatch(g.ctx, x.r.Store)
	defer put.Wait()
	put.Bulk = true
	requestsOf, ctx := errgroup.WithContext(g.ctx)
	requestsOf.SetLimit(x.ahead())
	for _, part := range requests(c.want, x.most()) {
		requestsOf.Go(func() error {
			rest := 0
			for _, ref := range part {
				rest += int(ref.Length)
			}
			err := x.request(ctx, put, part, func(b []byte) error {
				if _, _, _, _, err := blockstore.ParseSegmentHeader(b); err != nil {
					return err
				}
				rest -= len(b)
				x.advance(len(b))
				return nil
			})
			if err == nil {
				x.advance(rest) // what whoever uses the image has brought itself
			}
			return err
		})
	}
	if err := requestsOf.Wait(); err != nil {
		return err
	}
	if err := put.Flush(); err != nil {
		return err
	}
	return x.r.Store.MarkComplete(g.ctx, c.leaves...)
}
