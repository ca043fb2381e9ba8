package image

import (
	"context"
	"fmt"

	"github.com/maypok86/otter/v2"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
)

// frameID names an opened data frame of a segment.
type frameID struct {
	object blockstore.ObjectID
	frame  uint32
}

// frame is an opened frame with what opened it: a map that says otherwise must not
// get it, or one image would read another's plaintext out of memory.
type frame struct {
	data   []byte // never changes
	salt   crypto.Salt
	master crypto.MasterKey
}

// frameCache keeps opened frames in bounded memory. Its policy (W-TinyLFU) does not
// give way to a scan.
type frameCache struct{ *otter.Cache[frameID, *frame] }

func newFrameCache(maxBytes int64) (*frameCache, error) {
	c, err := otter.New(&otter.Options[frameID, *frame]{
		MaximumWeight: uint64(maxBytes),
		Weigher:       func(_ frameID, f *frame) uint32 { return uint32(cap(f.data)) + 256 },
	})
	if err != nil {
		return nil, fmt.Errorf("image: cache of frames: %w", err)
	}
	return &frameCache{c}, nil
}

// span is a run of sectors of one segment's data.
type span struct {
	object        *record.LeafObject
	region        uint64
	offset, count int // sectors of the segment's data
}

// read appends slices of opened frames that make up a span. What is not in memory is
// opened, only the frames needed, without a copy of the sealed bytes.
func (s *Shared) read(ctx context.Context, keys *crypto.Keyring, sp span, out [][]byte) ([][]byte, error) {
	epoch, ok := keys.Epoch(sp.object.Epoch)
	if !ok {
		return out, corruptSegment(sp.object.Ref.ID, fmt.Errorf("unknown epoch %v", sp.object.Epoch))
	}
	master := epoch.Master()
	log := sp.object.FrameLog - sectorLog // sectors of a frame, as a power of two
	first, last := sp.offset>>log, (sp.offset+sp.count-1)>>log
	frames := make([][]byte, last-first+1)
	missing := false
	for i := range frames {
		f, ok := s.frames.GetIfPresent(frameID{sp.object.Ref.ID, uint32(first + i)})
		if ok && f.salt == sp.object.Salt && f.master == master {
			frames[i] = f.data
			continue
		}
		missing = true
	}
	if missing {
		if err := s.open(ctx, epoch, sp, first, frames); err != nil {
			return out, err
		}
	}
	for i, b := range frames {
		start := (first + i) << log
		from := max(sp.offset, start) - start
		to := min(sp.offset+sp.count, start+1<<log) - start
		if to*record.SectorSize > len(b) {
			return out, corruptSegment(sp.object.Ref.ID, fmt.Errorf("frame %d is short", first+i))
		}
		out = append(out, b[from*record.SectorSize:to*record.SectorSize])
	}
	return out, nil
}

// open fills the empty places of frames, which begin with frame number first.
func (s *Shared) open(ctx context.Context, epoch *crypto.Epoch, sp span, first int, frames [][]byte) error {
	id := sp.object.Ref.ID
	err := s.Store.Get(ctx, id, func(b []byte) error {
		seg, err := record.OpenSegment(epoch, sp.region, sp.object.Salt, b)
		if err != nil {
			return err
		}
		if err := seg.Expect(int(sp.object.Sectors)); err != nil {
			return err
		}
		size := 1 << sp.object.FrameLog
		if seg.FrameSize() != size {
			return corruptSegment(id, fmt.Errorf("frames of %d bytes, the map says %d", seg.FrameSize(), size))
		}
		for i := range frames {
			if frames[i] != nil {
				continue
			}
			n := min(size, int(sp.object.Sectors)*record.SectorSize-(first+i)*size)
			data, err := seg.OpenFrame(make([]byte, 0, max(n, 0)), first+i)
			if err != nil {
				return err
			}
			frames[i] = data
			s.frames.Set(frameID{id, uint32(first + i)}, &frame{data, sp.object.Salt, epoch.Master()})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("image: segment %v of region %d: %w", id, sp.region, err)
	}
	return nil
}

func corruptSegment(id blockstore.ObjectID, cause error) error {
	return &blockstore.CorruptError{What: "segment", Key: id.String(), Cause: cause}
}
