package image

import (
	"context"
	"fmt"
	"sync"

	"github.com/maypok86/otter/v2"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
)

// groupLog: data frames of a segment are kept in groups of so many bytes, as a power of
// two; larger ones by themselves.
const groupLog = 15

// groupID names a group of neighbouring data frames of a segment. What a map says of their
// size is part of it, for it says how many there are in a group.
type groupID struct {
	object   blockstore.ObjectID
	group    uint32
	frameLog uint8
}

// group is opened frames with what opened them: a map that says otherwise must not
// get them, or one image would read another's plaintext out of memory. It never changes.
type group struct {
	frames [][]byte // nil where one is not open
	salt   crypto.Salt
	master crypto.MasterKey
}

// frameCache keeps opened frames in bounded memory. Its policy (W-TinyLFU) does not
// give way to a scan.
type frameCache struct{ *otter.Cache[groupID, *group] }

func newFrameCache(maxBytes int64) (*frameCache, error) {
	c, err := otter.New(&otter.Options[groupID, *group]{
		MaximumWeight: uint64(maxBytes),
		Weigher: func(_ groupID, g *group) uint32 {
			n := 256 + 24*len(g.frames)
			for _, f := range g.frames {
				n += cap(f)
			}
			return uint32(n)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("image: cache of frames: %w", err)
	}
	return &frameCache{c}, nil
}

// get gives the group that a frame belongs to, nil if it is not in memory, and the place of
// the frame in it.
func (c *frameCache) get(sp *span, frame int) (g *group, at int) {
	id, at := sp.group(frame)
	g, ok := c.GetIfPresent(id)
	if !ok || g.salt != sp.object.Salt || g.master != sp.master {
		g = nil
	}
	return g, at
}

// look gives those of the frames from first on that are in memory, and tells whether all are.
func (c *frameCache) look(sp *span, first int, frames [][]byte) (all bool) {
	all = true
	for i := 0; i < len(frames); {
		g, at := c.get(sp, first+i)
		for ; i < len(frames) && at < 1<<sp.groupLog(); i, at = i+1, at+1 {
			if g == nil {
				all = false
				continue
			}
			frames[i] = g.frames[at]
			all = all && frames[i] != nil
		}
	}
	return all
}

// keep puts frames of one group, from first on, into memory.
func (c *frameCache) keep(sp *span, first int, frames [][]byte) {
	old, at := c.get(sp, first)
	g := &group{make([][]byte, 1<<sp.groupLog()), sp.object.Salt, sp.master}
	if old != nil {
		copy(g.frames, old.frames)
	}
	copy(g.frames[at:], frames)
	id, _ := sp.group(first)
	c.Set(id, g)
}

// opened is a segment whose key was derived, with what it was derived from.
type opened struct {
	segment *record.Segment // without the object
	place   blockstore.Place
	region  uint64
	sectors uint16
	salt    crypto.Salt
	master  crypto.MasterKey
}

func (o *opened) is(epoch *crypto.Epoch, sp *span) bool {
	return o.region == sp.region && o.sectors == sp.object.Sectors && o.segment.FrameSize() == 1<<sp.object.FrameLog &&
		o.salt == sp.object.Salt && o.master == epoch.Master()
}

// segmentCache keeps opened segments: a key, a cipher and a table of lengths each.
type segmentCache struct {
	*otter.Cache[blockstore.ObjectID, *opened]
}

func newSegmentCache(maxBytes int64) (*segmentCache, error) {
	c, err := otter.New(&otter.Options[blockstore.ObjectID, *opened]{
		MaximumWeight: uint64(maxBytes),
		Weigher:       func(_ blockstore.ObjectID, o *opened) uint32 { return uint32(o.segment.Size()) + 256 },
	})
	if err != nil {
		return nil, fmt.Errorf("image: cache of segments: %w", err)
	}
	return &segmentCache{c}, nil
}

// span is a run of sectors of one segment's data.
type span struct {
	object        *record.LeafObject
	image         blockstore.ImageID // set by read
	master        crypto.MasterKey   // that opens it; set by read
	region        uint64
	offset, count int  // sectors of the segment's data
	once          bool // nobody will read it again: not to be kept
}

// groupLog is how many of its frames are kept together, as a power of two.
func (sp *span) groupLog() int { return max(0, groupLog-int(sp.object.FrameLog)) }

// group names the group of a frame, and gives the frame's place in it.
func (sp *span) group(frame int) (id groupID, at int) {
	log := sp.groupLog()
	return groupID{sp.object.Ref.ID, uint32(frame >> log), sp.object.FrameLog}, frame & (1<<log - 1)
}

// read appends slices of opened frames that make up a span. What is not in memory is
// opened, only the frames needed, without a copy of the sealed bytes.
func (s *Shared) read(ctx context.Context, keys *crypto.Keyring, sp span, out [][]byte) ([][]byte, error) {
	epoch, ok := keys.Epoch(sp.object.Epoch)
	if !ok {
		return out, corruptSegment(sp.object.Ref.ID, fmt.Errorf("unknown epoch %v", sp.object.Epoch))
	}
	sp.image, sp.master = keys.Image, epoch.Master()
	log := sp.object.FrameLog - sectorLog // sectors of a frame, as a power of two
	first, last := sp.offset>>log, (sp.offset+sp.count-1)>>log
	frames := make([][]byte, last-first+1)
	if !s.frames.look(&sp, first, frames) {
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

// keeps tells whether the first frame of a span is in memory; whose it is does not matter.
func (s *Shared) keeps(sp *span) bool {
	id, at := sp.group(sp.offset >> (sp.object.FrameLog - sectorLog))
	g, ok := s.frames.GetIfPresent(id)
	return ok && g.frames[at] != nil
}

// open fills the empty places of frames, which begin with frame number first.
func (s *Shared) open(ctx context.Context, epoch *crypto.Epoch, sp span, first int, frames [][]byte) error {
	id := sp.object.Ref.ID
	if o, ok := s.segments.GetIfPresent(id); ok && o.is(epoch, &sp) && s.Store.Err() == nil {
		if s.openAt(o.segment, o.place, &sp, first, frames) == nil {
			return nil
		}
		s.segments.Invalidate(id) // moved, or damaged: the store says which
	}
	if place, ok, err := s.Store.Find(id); err == nil && ok && s.openFound(epoch, place, &sp, first, frames) == nil {
		return nil
	}
	ref := blockstore.SmallRef{ID: id, Length: sp.object.Ref.Length}
	err := s.loader.Get(ctx, sp.image, ref, func(b []byte) error {
		seg, err := record.OpenSegment(epoch, sp.region, sp.object.Salt, b)
		if err == nil {
			err = sp.fits(seg)
		}
		if err != nil {
			return err
		}
		return s.openFrames(seg, &sp, first, frames, func(i int) []byte {
			off, n := seg.Sealed(i)
			return b[off : off+n]
		})
	})
	if err != nil {
		return fmt.Errorf("image: segment %v of region %d: %w", id, sp.region, err)
	}
	return nil
}

// fits compares a segment with what the map says of it.
func (sp *span) fits(seg *record.Segment) error {
	if err := seg.Expect(int(sp.object.Sectors)); err != nil {
		return err
	}
	if size := 1 << sp.object.FrameLog; seg.FrameSize() != size {
		return corruptSegment(sp.object.Ref.ID, fmt.Errorf("frames of %d bytes, the map says %d", seg.FrameSize(), size))
	}
	return nil
}

// smallObject is read whole, in bytes: a second read would cost more than the rest of it.
const smallObject = 96 << 10

// openFound is open for a segment whose place is known and whose header is not. What it
// is wanted for a large part of is read at once.
func (s *Shared) openFound(epoch *crypto.Epoch, place blockstore.Place, sp *span, first int, frames [][]byte) error {
	part := 2*len(frames)<<sp.object.FrameLog < int(sp.object.Sectors)*sectorSize
	if part {
		seg, ok := record.OpenRaw(s.suite, epoch, sp.region, sp.object.Salt, sp.object.FrameLog, int(sp.object.Sectors), place.Size())
		if ok && s.openAt(seg, place, sp, first, frames) == nil {
			s.keepOpened(epoch, seg, place, sp)
			return nil
		}
	}
	n := place.Size()
	if part && n > smallObject {
		n = blockstore.MaxSegmentHead
	}
	buf, b := sealedBuffer(n)
	defer sealedBytes.Put(buf)
	if err := place.ReadAt(b, 0); err != nil {
		return err
	}
	seg, err := record.OpenSegmentHead(epoch, sp.region, sp.object.Salt, b, place.Size())
	if err == nil {
		err = sp.fits(seg)
	}
	if err != nil {
		return err
	}
	if n < place.Size() {
		err = s.openAt(seg, place, sp, first, frames)
	} else {
		err = s.openFrames(seg, sp, first, frames, func(i int) []byte {
			off, n := seg.Sealed(i)
			return b[off : off+n]
		})
	}
	if err == nil {
		s.keepOpened(epoch, seg, place, sp)
	}
	return err
}

// keepOpened keeps what opens the frames of a segment.
func (s *Shared) keepOpened(epoch *crypto.Epoch, seg *record.Segment, place blockstore.Place, sp *span) {
	s.segments.Set(sp.object.Ref.ID, &opened{seg, place, sp.region, sp.object.Sectors, sp.object.Salt, epoch.Master()})
}

// sealedBytes are buffers for sealed frames on their way from a place.
var sealedBytes = sync.Pool{New: func() any { return new([]byte) }}

func sealedBuffer(n int) (buf *[]byte, b []byte) {
	buf = sealedBytes.Get().(*[]byte)
	if cap(*buf) < n {
		*buf = make([]byte, n)
	}
	return buf, (*buf)[:n]
}

// openAt is open for a segment whose place is known: all that is wanted is read at once.
func (s *Shared) openAt(seg *record.Segment, place blockstore.Place, sp *span, first int, frames [][]byte) error {
	from, to := 0, len(frames)-1 // of those that are missing
	for frames[from] != nil {
		from++
	}
	for frames[to] != nil {
		to--
	}
	if first+to >= seg.Frames() {
		return corruptSegment(sp.object.Ref.ID, fmt.Errorf("frame %d of %d", first+to, seg.Frames()))
	}
	start, _ := seg.Sealed(first + from)
	end, n := seg.Sealed(first + to)
	end += n
	buf, b := sealedBuffer(end - start)
	defer sealedBytes.Put(buf)
	if err := place.ReadAt(b, start); err != nil {
		return err
	}
	return s.openFrames(seg, sp, first, frames, func(i int) []byte {
		off, n := seg.Sealed(i)
		return b[off-start : off-start+n]
	})
}

// openFrames opens what is missing in frames; sealed gives the sealed bytes of a frame.
func (s *Shared) openFrames(seg *record.Segment, sp *span, first int, frames [][]byte, sealed func(i int) []byte) error {
	group := 1 << sp.groupLog()
	for len(frames) > 0 {
		n := min(len(frames), group-first&(group-1))
		if err := s.openGroup(seg, sp, first, frames[:n], sealed); err != nil {
			return err
		}
		first, frames = first+n, frames[n:]
	}
	return nil
}

// openGroup is openFrames for frames of one group, which share memory.
func (s *Shared) openGroup(seg *record.Segment, sp *span, first int, frames [][]byte, sealed func(i int) []byte) error {
	size, data := seg.FrameSize(), int(sp.object.Sectors)*record.SectorSize
	length := func(i int) int { return min(size, data-(first+i)*size) }
	total := 0
	for i, f := range frames {
		if first+i >= seg.Frames() || length(i) <= 0 {
			return corruptSegment(sp.object.Ref.ID, fmt.Errorf("frame %d of %d", first+i, seg.Frames()))
		}
		if f == nil {
			total += length(i)
		}
	}
	room := make([]byte, 0, total)
	for i, f := range frames {
		if f != nil {
			continue
		}
		n := length(i)
		data, err := seg.OpenSealed(room[:0:n], sealed(first+i), first+i)
		if err != nil {
			return err
		}
		frames[i], room = data, room[n:n:cap(room)]
	}
	if total > 0 && !sp.once {
		s.frames.keep(sp, first, frames)
	}
	return nil
}

func corruptSegment(id blockstore.ObjectID, cause error) error {
	return &blockstore.CorruptError{What: "segment", Key: id.String(), Cause: cause}
}
