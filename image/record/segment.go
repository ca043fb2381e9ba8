package record

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

const (
	segmentHeader = 64 // bytes before the length table
	segmentBound  = 32 // bytes of it that the key is bound to
	lengthMask    = 1<<28 - 1
	runsUnit      = 64 // the runs are padded to a multiple of it

	// After so many frames that do not become smaller only one in so many is tried, until
	// one does: most data is like its neighbours.
	vainMost, vainStep = 4, 8
)

// Run is a run of sectors of a region.
type Run struct {
	First, Count uint16 // sectors
}

// Segment seals data, the joined sectors of runs of one region, as one object
// (docs/format.md §3, the paper's VMDE) and appends it to dst. Runs ascend, are
// disjoint and not adjacent, and hold 1 to 256 sectors; a frame holds
// 2^frameLog bytes, 12 to 17, and less if none becomes smaller; log says how many. The
// spare capacity of dst must not overlap data. The salt is fresh: it belongs in the map,
// without it the object does not open.
func (s Seal) Segment(dst []byte, region uint64, runs []Run, data []byte, frameLog uint8) (sealed []byte, salt crypto.Salt, log uint8, err error) {
	if err := checkSegment(runs, len(data), frameLog); err != nil {
		return nil, salt, 0, fmt.Errorf("record: seal segment: %w", err)
	}
	first := appendRuns(make([]byte, 0, 1088), runs)
	var table [blockstore.MaxFrames]uint32
	table[0] = uint32(len(first) + crypto.Overhead)

	// The key is bound to the length table, so all is compressed before any is sealed.
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	lengths, packed, log := sc.pack(table[:1], data, s.Compression, frameLog)

	salt = crypto.NewSalt()
	total := segmentHeader + 4*len(lengths)
	for _, l := range lengths {
		total += int(l & lengthMask)
	}
	start := len(dst)
	dst = blockstore.AppendSegmentHeader(slices.Grow(dst, total), blockstore.SegmentHeader{
		Suite: byte(s.Suite), FrameLog: log, Epoch: s.Epoch.ID(), Salt: salt, Lengths: lengths,
	})
	h := dst[start:]
	key := s.Epoch.Key(crypto.PurposeSegment, crypto.Region(region), salt, h[:segmentBound], h[segmentHeader:])
	sealer, err := crypto.NewSealer(s.Suite, key)
	if err != nil {
		return nil, salt, 0, fmt.Errorf("record: seal segment: %w", err)
	}
	dst = sealer.Seal(dst, first, nil, false)
	for i, l := range lengths[1:] {
		frame := data[:min(len(data), 1<<log)]
		data = data[len(frame):]
		if l>>28 != uint32(None) {
			n := int(l&lengthMask) - crypto.Overhead
			frame, packed = packed[:n], packed[n:]
		}
		dst = sealer.Seal(dst, frame, nil, i == len(lengths)-2)
	}
	return dst, salt, log, nil
}

// pack compresses data frame by frame: packed is what became smaller, joined, and lengths
// grows by an entry of the segment's table for each frame.
func (sc *scratch) pack(lengths []uint32, data []byte, c Compression, frameLog uint8) (_ []uint32, packed []byte, log uint8) {
	first := len(lengths)
	packed = sc.buf[:0]
	vain := 0 // frames that did not become smaller, one after the other
	for frame := range slices.Chunk(data, 1<<frameLog) {
		length, encoding := len(frame), None
		start := len(packed)
		try := c
		if vain >= vainMost && (len(lengths)-first)%vainStep != 0 {
			try = None
		}
		var kept bool
		vain++
		if packed, kept = compress(packed, frame, try, frameLog); kept {
			length, encoding = len(packed)-start, try
			vain = 0
		}
		lengths = append(lengths, uint32(encoding)<<28|uint32(length+crypto.Overhead))
	}
	sc.buf = packed
	if len(packed) > 0 || frameLog <= RawFrameLog {
		return lengths, packed, frameLog
	}
	lengths = lengths[:first]
	for frame := range slices.Chunk(data, 1<<RawFrameLog) {
		lengths = append(lengths, uint32(None)<<28|uint32(len(frame)+crypto.Overhead))
	}
	return lengths, nil, RawFrameLog
}

func checkSegment(runs []Run, data int, frameLog uint8) error {
	if frameLog < MinFrameLog || frameLog > MaxFrameLog {
		return fmt.Errorf("frames of 2^%d bytes", frameLog)
	}
	n, err := checkRuns(runs)
	if err != nil {
		return err
	}
	if n*SectorSize != data {
		return fmt.Errorf("%d bytes of data for %d sectors", data, n)
	}
	return nil
}

// checkRuns returns how many sectors the runs hold.
func checkRuns(runs []Run) (sectors int, err error) {
	end := -1
	for _, r := range runs {
		if int(r.First) <= end || r.Count == 0 || int(r.First)+int(r.Count) > RegionSectors {
			return 0, fmt.Errorf("run of %d sectors at %d after one that ends at %d", r.Count, r.First, end)
		}
		end = int(r.First) + int(r.Count)
		sectors += int(r.Count)
	}
	if sectors < 1 || sectors > MaxSegmentSectors {
		return 0, fmt.Errorf("runs of %d sectors, want 1 to %d", sectors, MaxSegmentSectors)
	}
	return sectors, nil
}

func appendRuns(dst []byte, runs []Run) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(runs)))
	for _, r := range runs {
		dst = binary.BigEndian.AppendUint16(dst, r.First)
		dst = binary.BigEndian.AppendUint16(dst, r.Count)
	}
	n := len(dst) - start
	return append(dst, make([]byte, roundUp(n, runsUnit)-n)...)
}

func parseRuns(b []byte) (runs []Run, sectors int, err error) {
	const what = "segment's runs"
	if len(b) < 2 {
		return nil, 0, corrupt(what, "%d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint16(b))
	end := 2 + 4*n
	if n > MaxSegmentSectors || roundUp(end, runsUnit) != len(b) {
		return nil, 0, corrupt(what, "%d runs in %d bytes", n, len(b))
	}
	if !allZero(b[end:]) {
		return nil, 0, corrupt(what, "padding is not zero")
	}
	runs = make([]Run, n)
	for i := range runs {
		e := b[2+4*i:]
		runs[i] = Run{First: binary.BigEndian.Uint16(e), Count: binary.BigEndian.Uint16(e[2:])}
	}
	if sectors, err = checkRuns(runs); err != nil {
		return nil, 0, &blockstore.CorruptError{What: what, Cause: err}
	}
	return runs, sectors, nil
}

// Segment opens single frames of a sealed segment (the paper's VMDD). It refers to
// the object it was made from; after [Segment.Forget] only to what it needs for [Segment.OpenSealed].
// Safe for concurrent use, [Segment.Expect] apart.
type Segment struct {
	opener   *crypto.Opener
	table    []byte // lengths of all frames, as they stand; our own copy
	frames   []byte // sealed frames
	frameLog uint8
	last     int // bytes of the last data frame; 0: not known
}

// OpenSegment checks the header of obj and derives its key. Epoch, region and salt
// come from the map: an object that says otherwise is corrupt, and an older one in
// the place of a newer does not open. The id of obj is not checked.
func OpenSegment(e *crypto.Epoch, region uint64, salt crypto.Salt, obj []byte) (*Segment, error) {
	s, err := OpenSegmentHead(e, region, salt, obj, len(obj))
	if err != nil {
		return nil, err
	}
	s.frames = obj[segmentHeader+len(s.table):]
	return s, nil
}

// OpenSegmentHead is OpenSegment for the beginning of an object of size bytes: at least
// what blockstore.MaxSegmentHead says, or all of it. The segment is as after
// [Segment.Forget].
func OpenSegmentHead(e *crypto.Epoch, region uint64, salt crypto.Salt, head []byte, size int) (*Segment, error) {
	const what = "segment"
	h, bound, table, err := blockstore.ParseSegmentHead(head, size)
	if err != nil {
		return nil, err
	}
	if h.Epoch != e.ID() {
		return nil, corrupt(what, "epoch %x, the map says %v", h.Epoch, e.ID())
	}
	if h.Salt != salt {
		return nil, corrupt(what, "not the version that the map names")
	}
	s := &Segment{table: slices.Clone(table), frameLog: h.FrameLog}
	if err := s.checkTable(h.Lengths); err != nil {
		return nil, err
	}
	key := e.Key(crypto.PurposeSegment, crypto.Region(region), salt, bound, table)
	if s.opener, err = crypto.NewOpener(crypto.Suite(h.Suite), key); err != nil {
		return nil, fmt.Errorf("record: open segment: %w", err)
	}
	return s, nil
}

// OpenRaw is [OpenSegmentHead] without the head, for an object of size bytes with so many
// sectors in frames of 2^frameLog bytes, none of them compressed: all of the header follows
// from that. A wrong guess shows when a frame does not open. Ok is false where the size
// says that it would be one.
func OpenRaw(suite crypto.Suite, e *crypto.Epoch, region uint64, salt crypto.Salt, frameLog uint8, sectors, size int) (s *Segment, ok bool) {
	data, full := sectors*SectorSize, 1<<frameLog
	frames := (data + full - 1) / full
	runs := size - segmentHeader - 4*(1+frames) - data - frames*crypto.Overhead
	if frames >= blockstore.MaxFrames || runs < crypto.Overhead {
		return nil, false
	}
	lengths := append(make([]uint32, 0, 1+frames), uint32(runs))
	for ; data > 0; data -= full {
		lengths = append(lengths, uint32(None)<<28|uint32(min(data, full)+crypto.Overhead))
	}
	head := blockstore.AppendSegmentHeader(make([]byte, 0, segmentHeader+4*len(lengths)), blockstore.SegmentHeader{
		Suite: byte(suite), FrameLog: frameLog, Epoch: e.ID(), Salt: salt, Lengths: lengths,
	})
	s, err := OpenSegmentHead(e, region, salt, head, size)
	return s, err == nil
}

// Forget lets go of the object, so that s can be kept.
func (s *Segment) Forget() { s.frames = nil }

// Size is about what s keeps in memory, in bytes, the object apart.
func (s *Segment) Size() int { return len(s.table) + 1200 }

// checkTable checks what blockstore does not: that each length is one that its
// encoding can have.
func (s *Segment) checkTable(lengths []uint32) error {
	const what = "segment header"
	full, unit := s.FrameSize(), bucket(s.frameLog)
	if (len(lengths)-2)*full >= MaxSegmentSectors*SectorSize {
		return corrupt(what, "%d frames of %d bytes", len(lengths), full)
	}
	for i, l := range lengths {
		n := int(l&lengthMask) - crypto.Overhead
		last := i == len(lengths)-1
		var ok bool
		switch {
		case i == 0:
			ok = n%runsUnit == 0
		case Compression(l>>28) != None:
			ok = n%unit == 0 && n <= full-full/8
		default:
			ok = n == full || last && n < full && n%SectorSize == 0
		}
		if !ok || n <= 0 {
			return corrupt(what, "frame %d of %d bytes, encoding %d", i, n, l>>28)
		}
	}
	if l := lengths[len(lengths)-1]; Compression(l>>28) == None {
		s.last = int(l&lengthMask) - crypto.Overhead
	}
	if s.DataLen() > MaxSegmentSectors*SectorSize && s.last != 0 {
		return corrupt(what, "%d bytes of data", s.DataLen())
	}
	return nil
}

// FrameSize is how many bytes of data a full frame holds.
func (s *Segment) FrameSize() int { return 1 << s.frameLog }

// Frames is how many data frames there are, at least 1.
func (s *Segment) Frames() int { return len(s.table)/4 - 1 }

// DataLen is how many bytes of data there are, or can be at most if the last frame
// is compressed and [Segment.Expect] was not called.
func (s *Segment) DataLen() int {
	last := s.last
	if last == 0 {
		last = s.FrameSize()
	}
	return (s.Frames()-1)*s.FrameSize() + last
}

// Expect says how many sectors of data the map says that there are. It is an error
// if the segment cannot hold just that many; later the last frame is held to it.
func (s *Segment) Expect(sectors int) error {
	n := sectors * SectorSize
	last := n - (s.Frames()-1)*s.FrameSize()
	if sectors > MaxSegmentSectors || last <= 0 || last > s.FrameSize() || s.last != 0 && s.last != last {
		return corrupt("segment", "%d frames of %d bytes for %d sectors", s.Frames(), s.FrameSize(), sectors)
	}
	s.last = last
	return nil
}

// sealedFrame returns the sealed bytes of frame i, the runs being frame 0.
func (s *Segment) sealedFrame(i int) (sealed []byte, c Compression) {
	off := 0
	for t := s.table[:4*i]; len(t) > 0; t = t[4:] {
		off += int(binary.BigEndian.Uint32(t) & lengthMask)
	}
	l := binary.BigEndian.Uint32(s.table[4*i:])
	end := off + int(l&lengthMask)
	return s.frames[off:end:end], Compression(l >> 28)
}

// Sealed says where in the object the sealed bytes of data frame i lie.
func (s *Segment) Sealed(i int) (off, n int) {
	off = segmentHeader + len(s.table)
	for t := s.table[:4*(i+1)]; len(t) > 0; t = t[4:] {
		off += int(binary.BigEndian.Uint32(t) & lengthMask)
	}
	return off, int(binary.BigEndian.Uint32(s.table[4*(i+1):]) & lengthMask)
}

// OpenFrame appends the data of data frame i, 0 to Frames()−1, to dst: FrameSize
// bytes, or a smaller multiple of 4,096 for the last. The spare capacity of dst must
// not overlap the object; it may be overwritten on failure.
func (s *Segment) OpenFrame(dst []byte, i int) ([]byte, error) {
	if i < 0 || i >= s.Frames() {
		return nil, corrupt("segment", "frame %d of %d", i, s.Frames())
	}
	sealed, _ := s.sealedFrame(i + 1)
	return s.OpenSealed(dst, sealed, i)
}

// OpenSealed is [Segment.OpenFrame] with the sealed bytes of the frame, which
// [Segment.Sealed] has told where to read. i is 0 to Frames()−1.
func (s *Segment) OpenSealed(dst, sealed []byte, i int) ([]byte, error) {
	last := i == s.Frames()-1
	c := Compression(binary.BigEndian.Uint32(s.table[4*(i+1):]) >> 28)
	if c == None {
		out, err := s.opener.Open(dst, uint64(i+1), last, sealed, nil)
		if err != nil {
			return nil, fmt.Errorf("record: open frame %d: %w", i, err)
		}
		return out, nil
	}
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	packed, err := s.opener.Open(sc.buf[:0], uint64(i+1), last, sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("record: open frame %d: %w", i, err)
	}
	sc.buf = packed
	want := s.FrameSize()
	if last {
		want = s.last
	}
	return decompress(dst, packed, c, s.frameLog, want)
}

// Runs opens the runs that the data belongs to and checks that the data frames can
// hold just their sectors.
func (s *Segment) Runs() ([]Run, error) {
	sealed, _ := s.sealedFrame(0)
	b, err := s.opener.Open(nil, 0, false, sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("record: open runs: %w", err)
	}
	runs, sectors, err := parseRuns(b)
	if err != nil {
		return nil, err
	}
	held := *s
	if err := held.Expect(sectors); err != nil {
		return nil, err
	}
	return runs, nil
}
