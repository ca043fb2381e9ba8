package audit

import (
	"context"
	"fmt"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/lease"
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

// Tally is what a check of one image has looked at and found. It is not safe for
// concurrent use.
type Tally struct {
	Image    blockstore.ImageID
	Snapshot string // the state that is looked at, "" for the head
	report   func(Fault)
	progress Progress
	seen     map[blockstore.ObjectID]struct{}
	done     int64
	Total    int64 // bytes to be looked at
}

// NewTally begins a check; progress may be nil.
func NewTally(id blockstore.ImageID, report func(Fault), progress Progress) *Tally {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return &Tally{Image: id, report: report, progress: progress, seen: make(map[blockstore.ObjectID]struct{})}
}

// Fault reports something wrong.
func (v *Tally) Fault(object string, off, length int64, cause error) {
	v.report(Fault{Image: v.Image, Snapshot: v.Snapshot, Offset: off, Length: length, Object: object, Cause: cause})
}

// First notes an object and reports whether it is new.
func (v *Tally) First(id blockstore.ObjectID) bool {
	_, ok := v.seen[id]
	v.seen[id] = struct{}{}
	return !ok
}

// Advance notes that n more bytes were looked at.
func (v *Tally) Advance(n int) {
	v.done += int64(n)
	v.progress(v.done, max(v.Total, v.done))
}

// Public checks every object, node, commit and signature of an image without
// any key. It cannot tell which place of the disk a fault concerns: positions are
// sealed. The error is of the context or of the store; what is wrong goes to report.
func Public(ctx context.Context, st *blockstore.Store, id blockstore.ImageID, report func(Fault), progress Progress) error {
	v := NewTally(id, report, progress)
	chain, err := lease.Load(st, id)
	if err != nil {
		v.Fault("lease chain", 0, 0, err)
		return ctx.Err()
	}
	headID, raw, err := st.Head(id)
	if err != nil {
		v.Fault("head", 0, 0, err)
		return ctx.Err()
	}
	head := v.commit(chain, headID, raw)
	if head == nil {
		return ctx.Err()
	}
	public := &publicVerifier{Tally: v, st: st}
	roots := []*blockstore.CommitPublic{head}
	for _, c := range public.snapshots(ctx, head) {
		v.Snapshot = c.String()
		raw, err := st.Commit(id, c)
		if err != nil {
			v.Fault("commit "+c.String(), 0, 0, err)
			continue
		}
		if p := v.commit(chain, c, raw); p != nil {
			roots = append(roots, p)
		}
	}
	for _, c := range roots {
		if c.Root != nil {
			v.Total += int64(c.Root.Subtree)
		}
	}
	for i, c := range roots {
		v.Snapshot = ""
		if i > 0 {
			v.Snapshot = fmt.Sprintf("commit %v", c.Position())
		}
		if err := public.roots(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (v *Tally) commit(chain lease.Chain, id blockstore.CommitID, raw []byte) *blockstore.CommitPublic {
	p, _, err := chain.Check(v.Image, id, raw)
	if err != nil {
		v.Fault("commit "+id.String(), 0, 0, err)
		return nil
	}
	return p
}

type publicVerifier struct {
	*Tally
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
		v.Fault("snapshot table "+c.Snapshots.ID.String(), 0, 0, err)
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
		if x.ref == nil || !v.First(x.ref.ID) {
			continue
		}
		if err := v.get(ctx, x.ref.ID, x.ref.Length, func([]byte) error { return nil }); err != nil {
			v.Fault(x.what+" "+x.ref.ID.String(), 0, 0, err)
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
	if !v.First(ref.ID) {
		v.Advance(int(ref.Subtree))
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
		if p.Patch {
			return fmt.Errorf("patch leaf: %w", blockstore.ErrFormat) // nothing writes them yet
		}
		if p.Level != level || sum != ref.Subtree {
			return fmt.Errorf("level %d and %d bytes below, want %d and %d: %w", p.Level, sum, level, ref.Subtree, blockstore.ErrCorrupt)
		}
		return nil
	})
	v.Advance(int(ref.Length))
	if err != nil {
		v.Fault("node "+ref.ID.String(), 0, 0, err)
		return nil
	}
	for _, c := range p.Children {
		if level > 0 {
			err = v.node(ctx, c, level-1)
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
	if !v.First(ref.ID) {
		v.Advance(int(ref.Length))
		return nil
	}
	err := v.get(ctx, ref.ID, ref.Length, func(b []byte) error {
		_, _, _, _, err := blockstore.ParseSegmentHeader(b)
		return err
	})
	v.Advance(int(ref.Length))
	if err != nil {
		v.Fault("segment "+ref.ID.String(), 0, 0, err)
	}
	return ctx.Err()
}
