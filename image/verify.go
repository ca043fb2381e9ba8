package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/audit"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/image/tree"
)

// Verify checks an image as audit.Public does and opens every frame of its head and of
// all snapshots, and its journals unless the image is in use.
func (s *Shared) Verify(ctx context.Context, id blockstore.ImageID, report func(audit.Fault), progress audit.Progress) error {
	defer s.Guard(id)()
	if err := audit.Public(ctx, s.Store, id, report, nil); err != nil {
		return err
	}
	ctx = tree.Local(ctx) // what is not here yet is said to be missing
	v := audit.NewTally(id, report, progress)
	h, _, err := s.load(ctx, id)
	if err != nil {
		if ctx.Err() == nil {
			v.Fault("head", 0, 0, err)
		}
		return ctx.Err()
	}
	states := []*head{h}
	names := []string{""}
	for _, snap := range h.snapshots {
		c, err := s.loadSnapshot(ctx, h, snap.Name)
		if err != nil {
			v.Snapshot = snap.Name
			v.Fault("commit "+snap.Commit.String(), 0, 0, err)
			continue
		}
		states, names = append(states, c), append(names, snap.Name)
	}
	for _, c := range states {
		if c.commit.Root != nil {
			v.Total += int64(c.commit.Root.Subtree)
		}
	}
	for i, c := range states {
		v.Snapshot = names[i]
		if _, err := s.depmap(ctx, c); err != nil {
			v.Fault("dependency map", 0, 0, err)
		}
		if err := s.verifyMap(ctx, v, c); err != nil {
			return err
		}
	}
	v.Snapshot = ""
	return s.verifyJournals(ctx, v, h)
}

// verifyMap opens every node and frame of one state.
func (s *Shared) verifyMap(ctx context.Context, v *audit.Tally, h *head) error {
	t := tree.Tree{Loader: s.loader, Keys: h.keys, Root: h.commit.Root}
	return t.Walk(ctx, func(level uint8, index uint64, ref blockstore.Ref, leaf *record.Leaf, _ *record.Inner, err error) error {
		if !v.First(ref.ID) {
			v.Advance(int(ref.Subtree))
			return tree.ErrSkip
		}
		v.Advance(int(ref.Length))
		if err != nil {
			length := int64(tree.Span(level)) * regionSize
			v.Fault("node "+ref.ID.String(), int64(index)*length, length, err)
		}
		if leaf == nil {
			return nil
		}
		for i := range leaf.Objects {
			if i == leaf.Base || !v.First(leaf.Objects[i].Ref.ID) {
				continue
			}
			if err := s.verifySegment(ctx, h.keys, leaf, i); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				off, length := covered(leaf, i)
				v.Fault("segment "+leaf.Objects[i].Ref.ID.String(), off, length, err)
			}
			v.Advance(int(leaf.Objects[i].Ref.Length))
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
func (s *Shared) verifyJournals(ctx context.Context, v *audit.Tally, h *head) error {
	s.mu.Lock()
	busy := s.writers[v.Image] != nil
	s.mu.Unlock()
	if busy {
		return ctx.Err()
	}
	numbers, err := s.Store.Journals(v.Image)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n <= h.commit.Absorbed {
			continue
		}
		if err := s.verifyJournal(h, v.Image, n); err != nil {
			v.Fault("journal "+n.String(), 0, 0, err)
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
	scan, err := record.NewJournalScanner(h.keys, r, r.Size(), s.Key.JournalKey)
	for err == nil {
		_, _, _, err = scan.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
