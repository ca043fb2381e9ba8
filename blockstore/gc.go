package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// A collection marks from every live commit and sweeps what was not marked. What keeps
// it from taking something that a writer still needs:
//
//   - Badger's version of a key says when it was put. Nothing put after the mark began,
//     or after the oldest Hold began, is swept.
//   - An object that was found by Has or PutObjects meanwhile is touched, and stays.
//   - A commit or head put meanwhile is marked before the next batch is swept.
//
// Memory: 8 bytes and two bits for each object: the sorted first words of all ids, and
// their marks. Ids that share the first word share a mark and are walked again.

// CollectOptions of a collection.
type CollectOptions struct {
	Pins     []Root             // kept beside heads and what their tables name
	Partial  func(ImageID) bool // may objects and snapshots of this image be absent? nil: of none
	Progress func(CollectStats) // called for each node, may be nil
}

// CollectStats says what a collection did.
type CollectStats struct {
	Marked     int64 // objects that live
	Swept      int64 // objects that were removed
	SweptBytes int64
	Commits    int64 // commits that were removed
	Absent     int64 // references of partial images to what is not here
}

// ErrCollecting: a collection is running already.
var ErrCollecting = errors.New("a collection is running")

// Collect removes every commit and object that no head, no snapshot table of a head and
// no pin leads to (docs/format.md §11). It changes nothing if it meets a missing object
// of an image that is not partial ([ErrNotFound]), or a corrupt one ([ErrCorrupt]). It
// may be interrupted at any point. Space is given back by [Store.Reclaim].
func (s *Store) Collect(ctx context.Context, o CollectOptions) (CollectStats, error) {
	if err := s.Err(); err != nil {
		return CollectStats{}, err
	}
	c := &collector{s: s, opt: o, commits: make(map[Root]bool), late: make(map[ObjectID]bool)}
	if err := c.begin(); err != nil {
		return CollectStats{}, err
	}
	defer c.end()
	for _, step := range []func(context.Context) error{c.index, c.mark, c.catchUp, c.sweepCommits, c.sweepComplete, c.sweepObjects} {
		if err := step(ctx); err != nil {
			return c.stats, err
		}
	}
	s.wakeReclaim()
	return c.stats, nil
}

type collector struct {
	s       *Store
	opt     CollectOptions
	floor   uint64            // what has a higher version stays
	words   []uint64          // first words of all object ids, ascending
	marks   []uint64          // one bit for each of words: it lives
	walks   []uint64          // one bit for each of words: and so does all beneath it
	commits map[Root]bool     // marked commits
	late    map[ObjectID]bool // reached and not in the index: put since; true: walked
	partial bool              // the image being marked may lack objects
	stats   CollectStats
}

func (c *collector) begin() error {
	g := &c.s.gc
	g.sweep.Lock() // whoever is between finding and using a key comes first
	defer g.sweep.Unlock()
	c.floor = c.s.version()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.collecting {
		return fmt.Errorf("blockstore: collect: %w", ErrCollecting)
	}
	g.collecting, g.marking, g.roots = true, true, nil
	g.watchLocked()
	for h := range g.holds {
		c.floor = min(c.floor, h.floor)
	}
	return nil
}

// catchUp does the deletions that had to wait while maps were walked.
func (c *collector) catchUp(ctx context.Context) error {
	objects, commits := c.s.gc.resume()
	err := c.s.DeleteObjects(ctx, objects)
	for _, r := range commits {
		err = errors.Join(err, c.s.DeleteCommits(ctx, r.Image, r.Commit))
	}
	return err
}

func (c *collector) end() {
	if err := c.catchUp(context.Background()); err != nil { // after a mark that failed
		c.s.opt.Logger.Warn("deletions put off by a collection", "error", err)
	}
	g := &c.s.gc
	g.mu.Lock()
	defer g.mu.Unlock()
	g.collecting, g.roots = false, nil
	g.watchLocked()
}

func firstWord(id ObjectID) uint64 { return binary.BigEndian.Uint64(id[:]) }

func (c *collector) index(ctx context.Context) error {
	c.words = make([]uint64, 0, max(0, c.s.counts.objects.Load()))
	err := c.s.Objects(ctx, func(id ObjectID, _ int64) error {
		c.words = append(c.words, firstWord(id))
		return nil
	})
	c.marks = make([]uint64, (len(c.words)+63)/64)
	c.walks = make([]uint64, len(c.marks))
	return err
}

// position finds an id in the index. alone is false if another id has the same first word.
func (c *collector) position(id ObjectID) (i int, known, alone bool) {
	w := firstWord(id)
	i = sort.Search(len(c.words), func(i int) bool { return c.words[i] >= w })
	known = i < len(c.words) && c.words[i] == w
	alone = known && (i+1 == len(c.words) || c.words[i+1] != w)
	return i, known, alone
}

func bit(set []uint64, i int) bool { return set[i/64]>>(i%64)&1 == 1 }
func setBit(set []uint64, i int)   { set[i/64] |= 1 << (i % 64) }

// reach marks an object and reports whether it is here; an absent one of a partial
// image is passed over.
func (c *collector) reach(id ObjectID) (here bool, err error) {
	if i, known, _ := c.position(id); known {
		if !bit(c.marks, i) {
			setBit(c.marks, i)
			c.stats.Marked++
		}
		return true, nil
	}
	_, here, err = c.s.exists(keyObject(id))
	if err == nil && !here {
		err = c.absent("object", id.String())
	}
	if _, seen := c.late[id]; here && !seen {
		c.late[id] = false
	}
	return here, err
}

// walked reports whether all beneath a node was marked before, and notes that it will
// be now. It is apart from the mark: a hostile image may name another's node as if it
// were a segment, and that must not hide what lies beneath.
func (c *collector) walked(id ObjectID) bool {
	i, known, alone := c.position(id)
	if !known {
		before := c.late[id]
		c.late[id] = true
		return before
	}
	before := bit(c.walks, i) && alone
	setBit(c.walks, i)
	return before
}

func (c *collector) absent(what, key string) error {
	if c.partial {
		c.stats.Absent++
		return nil
	}
	return fmt.Errorf("blockstore: collect: %s %s: %w", what, key, ErrNotFound)
}

func (c *collector) mark(ctx context.Context) error {
	images, err := c.s.Images()
	if err != nil {
		return err
	}
	for _, image := range images {
		id, _, err := c.s.Head(image)
		if errors.Is(err, ErrNotFound) { // removed meanwhile
			continue
		}
		if err == nil {
			err = c.markHead(ctx, Root{Image: image, Commit: id})
		}
		if err != nil {
			if _, _, now := c.s.Head(image); errors.Is(now, ErrNotFound) {
				continue
			}
			return err
		}
	}
	for _, r := range c.opt.Pins {
		if err := c.markHead(ctx, r); err != nil {
			return err
		}
	}
	return c.markLate(ctx, c.s.gc.takeRoots())
}

// markLate marks commits that were put meanwhile. One that is gone was replaced, or removed with its
// image: its successor was put before that, and is marked too. What it alone names goes after it, so
// nothing that the successor needs is below a node at which a walk ended.
func (c *collector) markLate(ctx context.Context, roots []Root) error {
	for _, r := range roots {
		err := c.markHead(ctx, r)
		if errors.Is(err, ErrNotFound) {
			if _, now := c.s.Commit(r.Image, r.Commit); errors.Is(now, ErrNotFound) {
				continue
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// markHead marks a commit and the commits that its snapshot table names.
func (c *collector) markHead(ctx context.Context, r Root) error {
	c.partial = c.opt.Partial != nil && c.opt.Partial(r.Image)
	table, err := c.markCommit(ctx, r)
	if err != nil || table == nil {
		return err
	}
	var snaps SnapshotPublic
	err = c.load(table.ID, func(h Header) (err error) {
		if h.Kind != KindSnapshotTable {
			return corrupt("snapshot table", "it is a %v", h.Kind)
		}
		snaps, err = ParseSnapshotPublic(h.Public)
		return err
	})
	if err != nil {
		return err
	}
	for _, snap := range snaps {
		if _, err := c.markCommit(ctx, Root{Image: r.Image, Commit: snap.ID}); err != nil {
			return err
		}
	}
	return nil
}

// markCommit marks what one commit names, and returns its snapshot table.
func (c *collector) markCommit(ctx context.Context, r Root) (*SmallRef, error) {
	raw, err := c.s.Commit(r.Image, r.Commit)
	if errors.Is(err, ErrNotFound) {
		return nil, c.absent("commit", r.Commit.String())
	}
	if err != nil {
		return nil, err
	}
	com, err := ParseCommit(raw)
	if err != nil {
		return nil, err
	}
	c.commits[r] = true
	for _, ref := range []*SmallRef{&com.Keyring, &com.ImageKey, com.Snapshots, com.DepMap} {
		if ref == nil {
			continue
		}
		if _, err := c.reach(ref.ID); err != nil {
			return nil, err
		}
	}
	if com.Root != nil {
		if err := c.markNode(ctx, com.Root.ID, com.Root.Level); err != nil {
			return nil, err
		}
	}
	return com.Snapshots, nil
}

// markNode marks a node of a level and all beneath it. Levels fall on the way down, so
// a hostile map cannot make it deep.
func (c *collector) markNode(ctx context.Context, id ObjectID, level uint8) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	here, err := c.reach(id)
	if err != nil || !here || c.walked(id) {
		return err
	}
	if c.opt.Progress != nil {
		c.opt.Progress(c.stats)
	}
	var p NodePublic
	err = c.load(id, func(h Header) (err error) {
		p, err = ParseNodePublic(h.Public)
		if err == nil && (p.Level != level || (h.Kind == KindLeaf) != (level == 0)) {
			err = corrupt("node", "a %v of level %d where level %d is wanted", h.Kind, p.Level, level)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, child := range p.Children {
		switch {
		case level > 0:
			err = c.markNode(ctx, child.ID, level-1)
		case p.Patch:
			err = c.markBelowPatch(ctx, child.ID)
		default:
			_, err = c.reach(child.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// markBelowPatch marks a child of a patch leaf: a segment, or its base leaf, which only
// the sealed part names. The object itself says which.
func (c *collector) markBelowPatch(ctx context.Context, id ObjectID) error {
	leaf := false
	err := c.s.Get(ctx, id, func(b []byte) error {
		leaf = len(b) > 4 && string(b[:4]) == "SDrc"
		return nil
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if leaf {
		return c.markNode(ctx, id, 0)
	}
	_, err = c.reach(id)
	return err
}

// load checks an object against its id and passes its header on; an absent one of a
// partial image is passed over. The header is valid during the call.
func (c *collector) load(id ObjectID, fn func(h Header) error) error {
	err := c.s.Get(context.Background(), id, func(b []byte) error {
		if IDOf(b) != id {
			return &CorruptError{What: "object", Key: id.String(), Cause: errors.New("digest differs")}
		}
		h, _, _, err := ParseRecord(b)
		if err != nil {
			return err
		}
		return fn(h)
	})
	if errors.Is(err, ErrNotFound) {
		return c.absent("object", id.String())
	}
	return err
}

// exclusive runs fn while nobody can find an object or put a commit, with everything
// marked that was put until then.
func (c *collector) exclusive(ctx context.Context, fn func() error) error {
	for {
		c.s.gc.sweep.Lock()
		roots := c.s.gc.takeRoots()
		if len(roots) == 0 {
			err := fn()
			c.s.gc.sweep.Unlock()
			return err
		}
		c.s.gc.sweep.Unlock()
		if err := c.markLate(ctx, roots); err != nil {
			return err
		}
	}
}

func (c *collector) sweepCommits(ctx context.Context) error {
	var dead []Root
	err := c.s.keys(ctx, []byte("k"), func(it item) error {
		if len(it.key) != 65 {
			return corrupt("commit key", "% x", it.key)
		}
		r := Root{Image: ImageID(it.key[1:33]), Commit: CommitID(it.key[33:])}
		if it.version <= c.floor && !c.commits[r] {
			dead = append(dead, r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(dead, deleteBatch) {
		err := c.exclusive(ctx, func() error {
			var keys [][]byte
			for _, r := range batch {
				if !c.commits[r] { // it may have become a head since
					keys = append(keys, keyCommit(r.Image, r.Commit))
				}
			}
			c.stats.Commits += int64(len(keys))
			return c.s.deleteKeys(ctx, keys)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepComplete removes the complete marks of nodes that do not live, before any
// object beneath them goes.
func (c *collector) sweepComplete(ctx context.Context) error {
	return c.sweep(ctx, "w", func(ids []ObjectID) error {
		keys := make([][]byte, len(ids))
		for i, id := range ids {
			keys[i] = keyComplete(id)
		}
		return c.s.deleteKeys(ctx, keys)
	})
}

func (c *collector) sweepObjects(ctx context.Context) error {
	return c.sweep(ctx, "o", func(ids []ObjectID) error {
		n, err := c.s.deleteBatch(ctx, ids)
		if err == nil {
			c.stats.Swept += int64(len(ids))
			c.stats.SweptBytes += n
		}
		return err
	})
}

// sweep passes the ids of dead keys with a prefix to remove, in batches.
func (c *collector) sweep(ctx context.Context, prefix string, remove func([]ObjectID) error) error {
	var dead []ObjectID
	flush := func() error {
		defer func() { dead = dead[:0] }()
		return c.exclusive(ctx, func() error {
			return remove(slices.DeleteFunc(dead, c.lives))
		})
	}
	err := c.s.keys(ctx, []byte(prefix), func(it item) error {
		if len(it.key) != 33 {
			return corrupt("object key", "% x", it.key)
		}
		if id := ObjectID(it.key[1:]); it.version <= c.floor && !c.lives(id) {
			dead = append(dead, id)
		}
		if len(dead) < deleteBatch {
			return nil
		}
		return flush()
	})
	if err != nil || len(dead) == 0 {
		return err
	}
	return flush()
}

func (c *collector) lives(id ObjectID) bool {
	i, known, _ := c.position(id)
	_, late := c.late[id]
	return known && bit(c.marks, i) || late || c.s.gc.isTouched(id)
}
