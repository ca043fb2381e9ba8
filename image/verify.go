package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// Fault is one thing that is wrong in a store.
type Fault struct {
	Image          blockstore.ImageID
	Snapshot       string // "" for the head
	Offset, Length int64  // bytes of the image that it concerns; Length 0: not one place, or sealed
	Object         string // what, and its id
	Cause          error
}

func (f Fault) Error() string {
	s := fmt.Sprintf("image %v", f.Image)
	if f.Snapshot != "" {
		s += "@" + f.Snapshot
	}
	if f.Length > 0 {
		s += fmt.Sprintf(": bytes %d to %d", f.Offset, f.Offset+f.Length-1)
	}
	return fmt.Sprintf("%s: %s: %v", s, f.Object, f.Cause)
}

// Progress is told how far a long operation has come, in bytes.
type Progress func(done, total int64)

// verifier walks all that an image consists of, each object once.
type verifier struct {
	image    blockstore.ImageID
	snapshot string
	report   func(Fault)
	progress Progress
	seen     map[blockstore.ObjectID]struct{}
	done     int64
	total    int64
}

func newVerifier(id blockstore.ImageID, report func(Fault), progress Progress) *verifier {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return &verifier{image: id, report: report, progress: progress, seen: make(map[blockstore.ObjectID]struct{})}
}

func (v *verifier) fault(object string, off, length int64, cause error) {
	v.report(Fault{Image: v.image, Snapshot: v.snapshot, Offset: off, Length: length, Object: object, Cause: cause})
}

// first notes an object and reports whether it is new.
func (v *verifier) first(id blockstore.ObjectID) bool {
	_, ok := v.seen[id]
	v.seen[id] = struct{}{}
	return !ok
}

func (v *verifier) advance(n int) {
	v.done += int64(n)
	v.progress(v.done, max(v.total, v.done))
}

// VerifyPublic checks every object, node, commit and signature of an image without
// any key. It cannot tell which place of the disk a fault concerns: positions are
// sealed. The error is of the context or of the store; what is wrong goes to report.
func VerifyPublic(ctx context.Context, st *blockstore.Store, id blockstore.ImageID, report func(Fault), progress Progress) error {
	v := newVerifier(id, report, progress)
	chain, err := loadChain(st, id)
	if err != nil {
		v.fault("lease chain", 0, 0, err)
		return ctx.Err()
	}
	headID, raw, err := st.Head(id)
	if err != nil {
		v.fault("head", 0, 0, err)
		return ctx.Err()
	}
	head := v.commit(chain, headID, raw)
	if head == nil {
		return ctx.Err()
	}
	public := &publicVerifier{verifier: v, st: st}
	roots := []*blockstore.CommitPublic{head}
	for _, c := range public.snapshots(ctx, head) {
		v.snapshot = c.String()
		raw, err := st.Commit(id, c)
		if err != nil {
			v.fault("commit "+c.String(), 0, 0, err)
			continue
		}
		if p := v.commit(chain, c, raw); p != nil {
			roots = append(roots, p)
		}
	}
	for _, c := range roots {
		if c.Root != nil {
			v.total += int64(c.Root.Subtree)
		}
	}
	for i, c := range roots {
		v.snapshot = ""
		if i > 0 {
			v.snapshot = fmt.Sprintf("commit %v", c.Position())
		}
		if err := public.roots(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) commit(chain leaseChain, id blockstore.CommitID, raw []byte) *blockstore.CommitPublic {
	p, _, err := chain.check(v.image, id, raw)
	if err != nil {
		v.fault("commit "+id.String(), 0, 0, err)
		return nil
	}
	return p
}

type publicVerifier struct {
	*verifier
	st *blockstore.Store
}

// get reads an object and checks length and digest.
func (v *publicVerifier) get(ctx context.Context, id blockstore.ObjectID, length uint32, fn func(b []byte) error) error {
	return v.st.Get(ctx, id, func(b []byte) error {
		if len(b) != int(length) {
			return fmt.Errorf("%d bytes, want %d: %w", len(b), length, blockstore.ErrCorrupt)
		}
		if blockstore.IDOf(b) != id {
			return fmt.Errorf("digest differs: %w", blockstore.ErrCorrupt)
		}
		return fn(b)
	})
}

func (v *publicVerifier) snapshots(ctx context.Context, c *blockstore.CommitPublic) (ids []blockstore.CommitID) {
	if c.Snapshots == nil {
		return nil
	}
	err := v.get(ctx, c.Snapshots.ID, c.Snapshots.Length, func(b []byte) error {
		h, _, _, err := blockstore.ParseRecord(b)
		if err != nil {
			return err
		}
		list, err := blockstore.ParseSnapshotPublic(h.Public)
		for _, s := range list {
			ids = append(ids, s.ID)
		}
		return err
	})
	if err != nil {
		v.fault("snapshot table "+c.Snapshots.ID.String(), 0, 0, err)
	}
	return ids
}

// roots checks all that a commit names.
func (v *publicVerifier) roots(ctx context.Context, c *blockstore.CommitPublic) error {
	small := []struct {
		what string
		ref  *blockstore.SmallRef
	}{{"keyring", &c.Keyring}, {"image key", &c.ImageKey}, {"snapshot table", c.Snapshots}, {"dependency map", c.DepMap}}
	for _, x := range small {
		if x.ref == nil || !v.first(x.ref.ID) {
			continue
		}
		if err := v.get(ctx, x.ref.ID, x.ref.Length, func([]byte) error { return nil }); err != nil {
			v.fault(x.what+" "+x.ref.ID.String(), 0, 0, err)
		}
	}
	if c.Root == nil {
		return ctx.Err()
	}
	return v.node(ctx, blockstore.Ref{ID: c.Root.ID, Length: c.Root.Length, Subtree: c.Root.Subtree}, c.Root.Level)
}

// node checks a node and all beneath it.
func (v *publicVerifier) node(ctx context.Context, ref blockstore.Ref, level uint8) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !v.first(ref.ID) {
		v.advance(int(ref.Subtree))
		return nil
	}
	var p blockstore.NodePublic
	err := v.get(ctx, ref.ID, ref.Length, func(b []byte) error {
		h, _, _, err := blockstore.ParseRecord(b)
		if err != nil {
			return err
		}
		if p, err = blockstore.ParseNodePublic(h.Public); err != nil {
			return err
		}
		sum := uint64(len(b))
		for _, c := range p.Children {
			sum += c.Subtree
		}
		if p.Level != level || sum != ref.Subtree {
			return fmt.Errorf("level %d and %d bytes below, want %d and %d: %w", p.Level, sum, level, ref.Subtree, blockstore.ErrCorrupt)
		}
		return nil
	})
	v.advance(int(ref.Length))
	if err != nil {
		v.fault("node "+ref.ID.String(), 0, 0, err)
		return nil
	}
	for _, c := range p.Children {
		if level > 0 || p.Patch && len(p.Children) > 0 && c.Subtree != uint64(c.Length) {
			err = v.node(ctx, c, max(level, 1)-1)
		} else {
			err = v.segment(ctx, c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *publicVerifier) segment(ctx context.Context, ref blockstore.Ref) error {
	if !v.first(ref.ID) {
		v.advance(int(ref.Length))
		return nil
	}
	err := v.get(ctx, ref.ID, ref.Length, func(b []byte) error {
		_, _, _, _, err := blockstore.ParseSegmentHeader(b)
		return err
	})
	v.advance(int(ref.Length))
	if err != nil {
		v.fault("segment "+ref.ID.String(), 0, 0, err)
	}
	return ctx.Err()
}

// Verify checks an image as VerifyPublic does and opens every frame of its head and of
// all snapshots, and its journals unless the image is in use.
func (s *Shared) Verify(ctx context.Context, id blockstore.ImageID, report func(Fault), progress Progress) error {
	if err := VerifyPublic(ctx, s.Store, id, report, nil); err != nil {
		return err
	}
	v := newVerifier(id, report, progress)
	h, _, err := s.load(ctx, id)
	if err != nil {
		if ctx.Err() == nil {
			v.fault("head", 0, 0, err)
		}
		return ctx.Err()
	}
	states := []*head{h}
	names := []string{""}
	for _, snap := range h.snapshots {
		c, err := s.loadSnapshot(ctx, h, snap.Name)
		if err != nil {
			v.snapshot = snap.Name
			v.fault("commit "+snap.Commit.String(), 0, 0, err)
			continue
		}
		states, names = append(states, c), append(names, snap.Name)
	}
	for _, c := range states {
		if c.commit.Root != nil {
			v.total += int64(c.commit.Root.Subtree)
		}
	}
	for i, c := range states {
		v.snapshot = names[i]
		if _, err := s.depmap(ctx, c); err != nil {
			v.fault("dependency map", 0, 0, err)
		}
		if err := s.verifyMap(ctx, v, c); err != nil {
			return err
		}
	}
	v.snapshot = ""
	return s.verifyJournals(ctx, v, h)
}

// verifyMap opens every node and frame of one state.
func (s *Shared) verifyMap(ctx context.Context, v *verifier, h *head) error {
	t := tree.Tree{Loader: s.loader, Keys: h.keys, Root: h.commit.Root}
	return t.Walk(ctx, func(level uint8, index uint64, ref blockstore.Ref, leaf *record.Leaf, _ *record.Inner, err error) error {
		if !v.first(ref.ID) {
			v.advance(int(ref.Subtree))
			return tree.ErrSkip
		}
		v.advance(int(ref.Length))
		if err != nil {
			length := int64(tree.Span(level)) * regionSize
			v.fault("node "+ref.ID.String(), int64(index)*length, length, err)
		}
		if leaf == nil {
			return nil
		}
		for i := range leaf.Objects {
			if i == leaf.Base || !v.first(leaf.Objects[i].Ref.ID) {
				continue
			}
			if err := s.verifySegment(ctx, h.keys, leaf, i); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				off, length := covered(leaf, i)
				v.fault("segment "+leaf.Objects[i].Ref.ID.String(), off, length, err)
			}
			v.advance(int(leaf.Objects[i].Ref.Length))
		}
		return nil
	})
}

// covered is the part of the disk that an object of a leaf holds.
func covered(leaf *record.Leaf, object int) (off, length int64) {
	first, end := record.RegionSectors, 0
	for _, x := range leaf.Extents {
		if int(x.Object) == object {
			first, end = min(first, int(x.First)), max(end, int(x.First)+int(x.Count))
		}
	}
	return int64(leaf.Region)*regionSize + int64(first)*sectorSize, int64(end-first) * sectorSize
}

// verifySegment opens all of a segment and compares its own runs with what the map says.
func (s *Shared) verifySegment(ctx context.Context, keys *crypto.Keyring, leaf *record.Leaf, object int) error {
	o := &leaf.Objects[object]
	epoch, ok := keys.Epoch(o.Epoch)
	if !ok {
		return fmt.Errorf("unknown epoch %v: %w", o.Epoch, blockstore.ErrCorrupt)
	}
	return s.Store.Get(ctx, o.Ref.ID, func(b []byte) error {
		seg, err := record.OpenSegment(epoch, leaf.Region, o.Salt, b)
		if err != nil {
			return err
		}
		if err := seg.Expect(int(o.Sectors)); err != nil {
			return err
		}
		runs, err := seg.Runs()
		if err != nil {
			return err
		}
		if err := agree(leaf, object, runs); err != nil {
			return err
		}
		var buf []byte
		for i := range seg.Frames() {
			if buf, err = seg.OpenFrame(buf[:0], i); err != nil {
				return fmt.Errorf("frame %d: %w", i, err)
			}
		}
		return nil
	})
}

// agree checks that every extent of an object points to the data of its own sectors.
func agree(leaf *record.Leaf, object int, runs []record.Run) error {
	var at [record.RegionSectors]uint16 // offset in the segment plus one
	n := uint16(0)
	for _, r := range runs {
		for i := range r.Count {
			n++
			at[r.First+i] = n
		}
	}
	for _, x := range leaf.Extents {
		for i := range x.Count {
			if int(x.Object) == object && at[x.First+i] != x.Offset+i+1 {
				return fmt.Errorf("the map looks for sector %d where the segment has another: %w", x.First+i, blockstore.ErrCorrupt)
			}
		}
	}
	return nil
}

// verifyJournals opens the journals that are not absorbed.
func (s *Shared) verifyJournals(ctx context.Context, v *verifier, h *head) error {
	s.mu.Lock()
	busy := s.writers[v.image] != nil
	s.mu.Unlock()
	if busy {
		return ctx.Err()
	}
	numbers, err := s.Store.Journals(v.image)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n <= h.commit.Absorbed {
			continue
		}
		if err := s.verifyJournal(h, v.image, n); err != nil {
			v.fault("journal "+n.String(), 0, 0, err)
		}
	}
	return ctx.Err()
}

func (s *Shared) verifyJournal(h *head, id blockstore.ImageID, n blockstore.JournalNumber) error {
	r, err := s.Store.OpenJournal(id, n)
	if err != nil {
		return err
	}
	defer r.Close()
	scan, err := record.NewJournalScanner(h.keys, r, r.Size())
	for err == nil {
		_, _, _, err = scan.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
