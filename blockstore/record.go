package blockstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Sizes that docs/format.md §1 fixes, in bytes unless said otherwise.
const (
	SectorSize       = 4096
	RegionSectors    = 4096
	Fanout           = 256
	MaxSegmentData   = 1 << 20
	MaxSegment       = MaxSegmentData + 64<<10
	MaxNode          = 512 << 10
	MaxTable         = 1 << 20 // snapshot table, dependency map, keyring, image key
	MaxCommit        = 64 << 10
	MaxLease         = 64 << 10
	MaxCatalogue     = 16 << 20
	MaxEpochs        = 256
	MaxLevel         = 4
	MaxFrames        = 257
	recordHeaderSize = 60
	tagSize          = 16
	signatureSize    = 64
	maxObject        = MaxSegment
)

// Suites of docs/format.md §2.
const (
	SuiteAES256GCM        byte = 1
	SuiteChaCha20Poly1305 byte = 2
)

// Kind says what a sealed record is (docs/format.md §4).
type Kind byte

// The kinds of sealed record.
const (
	KindLeaf          Kind = 1
	KindInner         Kind = 2
	KindCommit        Kind = 3
	KindSnapshotTable Kind = 4
	KindDepMap        Kind = 5
	KindCatalogue     Kind = 6
)

func (k Kind) String() string {
	switch k {
	case KindLeaf:
		return "leaf"
	case KindInner:
		return "inner node"
	case KindCommit:
		return "commit"
	case KindSnapshotTable:
		return "snapshot table"
	case KindDepMap:
		return "dependency map"
	case KindCatalogue:
		return "catalogue"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// max is the largest record of the kind, signature included; 0 if the kind is unknown.
func (k Kind) max() int {
	switch k {
	case KindLeaf, KindInner:
		return MaxNode
	case KindCommit:
		return MaxCommit
	case KindSnapshotTable, KindDepMap:
		return MaxTable
	case KindCatalogue:
		return MaxCatalogue
	}
	return 0
}

// Header is everything of a sealed record that is not sealed (docs/format.md §4).
// A catalogue's Epoch is the store id.
type Header struct {
	Suite  byte
	Kind   Kind
	Epoch  [16]byte
	Salt   [32]byte
	Public []byte
}

func corrupt(what, format string, args ...any) error {
	return &CorruptError{What: what, Cause: fmt.Errorf(format, args...)}
}

// AppendHeader appends bytes 0 to 60+p of the record: its associated data.
// The sealed frame is to be appended next, and for a commit the signature.
func AppendHeader(dst []byte, h Header) []byte {
	dst = append(dst, "SDrc"...)
	dst = append(dst, 1, h.Suite, byte(h.Kind), 0)
	dst = append(dst, h.Epoch[:]...)
	dst = append(dst, h.Salt[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(h.Public)))
	return append(dst, h.Public...)
}

// ParseRecord splits a sealed record into its header, its associated data
// (bytes 0 to 60+p) and its sealed frame. All alias b. A commit carries a
// signature as well: use [ParseCommit] for it.
func ParseRecord(b []byte) (h Header, ad, sealed []byte, err error) {
	h, ad, sealed, err = splitRecord(b)
	if err == nil && h.Kind == KindCommit {
		err = corrupt("record", "a commit where another kind is wanted")
	}
	if err != nil {
		return Header{}, nil, nil, err
	}
	return h, ad, sealed, nil
}

func splitRecord(b []byte) (h Header, ad, sealed []byte, err error) {
	if len(b) < recordHeaderSize+tagSize {
		return h, nil, nil, corrupt("record", "%d bytes are too few", len(b))
	}
	if string(b[:4]) != "SDrc" {
		return h, nil, nil, corrupt("record", "magic %q", b[:4])
	}
	if b[4] != 1 {
		return h, nil, nil, fmt.Errorf("blockstore: record: %w: version %d, known is 1", ErrFormat, b[4])
	}
	if err := checkSuite(b[5]); err != nil {
		return h, nil, nil, err
	}
	h.Suite, h.Kind = b[5], Kind(b[6])
	if h.Kind.max() == 0 {
		return h, nil, nil, fmt.Errorf("blockstore: record: %w: %v", ErrFormat, h.Kind)
	}
	if len(b) > h.Kind.max() {
		return h, nil, nil, corrupt(h.Kind.String(), "%d bytes, at most %d", len(b), h.Kind.max())
	}
	if b[7] != 0 {
		return h, nil, nil, corrupt(h.Kind.String(), "reserved byte is %d", b[7])
	}
	copy(h.Epoch[:], b[8:24])
	copy(h.Salt[:], b[24:56])
	p := uint64(binary.BigEndian.Uint32(b[56:60]))
	if p > uint64(len(b)-recordHeaderSize-tagSize) {
		return h, nil, nil, corrupt(h.Kind.String(), "public part of %d bytes in a record of %d", p, len(b))
	}
	end := recordHeaderSize + int(p)
	h.Public = b[recordHeaderSize:end:end]
	return h, b[:end:end], b[end:], nil
}

func checkSuite(s byte) error {
	if s != SuiteAES256GCM && s != SuiteChaCha20Poly1305 {
		return fmt.Errorf("blockstore: %w: suite %d, known are 1 and 2", ErrFormat, s)
	}
	return nil
}

// Ref is an entry of a node's public list: an object, its sealed length, and the
// sealed bytes of it and of all beneath it.
type Ref struct {
	ID      ObjectID
	Length  uint32
	Subtree uint64
}

// NodePublic is the public part of a leaf (level 0) or inner node (docs/format.md
// §5). Children ascend strictly by id.
type NodePublic struct {
	Level    uint8
	Patch    bool
	Children []Ref
}

const (
	refSize   = 44
	flagPatch = 1
)

// AppendNodePublic appends the encoding of p. Children must ascend strictly by id
// and be fewer than 65,536.
func AppendNodePublic(dst []byte, p NodePublic) []byte {
	var flags byte
	if p.Patch {
		flags = flagPatch
	}
	dst = append(dst, p.Level, flags)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.Children)))
	for i := range p.Children {
		c := &p.Children[i]
		dst = append(dst, c.ID[:]...)
		dst = binary.BigEndian.AppendUint32(dst, c.Length)
		dst = binary.BigEndian.AppendUint64(dst, c.Subtree)
	}
	return dst
}

// ParseNodePublic reads the public part of a node and nothing else.
func ParseNodePublic(b []byte) (NodePublic, error) {
	const what = "node"
	var p NodePublic
	if len(b) < 4 {
		return p, corrupt(what, "public part of %d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if len(b) != 4+n*refSize {
		return p, corrupt(what, "public part of %d bytes for %d children", len(b), n)
	}
	p.Level, p.Patch = b[0], b[1] == flagPatch
	switch {
	case p.Level > MaxLevel:
		return p, corrupt(what, "level %d", p.Level)
	case b[1]&^flagPatch != 0 || p.Patch && p.Level != 0:
		return p, corrupt(what, "flags %#x at level %d", b[1], p.Level)
	case p.Level > 0 && n > Fanout:
		return p, corrupt(what, "%d children at level %d", n, p.Level)
	}
	p.Children = make([]Ref, n)
	for i := range p.Children {
		e := b[4+i*refSize:]
		c := &p.Children[i]
		copy(c.ID[:], e)
		c.Length = binary.BigEndian.Uint32(e[32:])
		c.Subtree = binary.BigEndian.Uint64(e[36:])
		if c.Length == 0 || c.Length > maxObject || c.Subtree < uint64(c.Length) {
			return p, corrupt(what, "child %v of %d bytes, subtree %d", c.ID, c.Length, c.Subtree)
		}
		if i > 0 && bytes.Compare(p.Children[i-1].ID[:], c.ID[:]) >= 0 {
			return p, corrupt(what, "child %v out of order", c.ID)
		}
	}
	return p, nil
}

// SnapshotRef is an entry of a snapshot table's public part: a commit and the keyed
// tag of its name.
type SnapshotRef struct {
	ID  CommitID
	Tag [16]byte
}

// SnapshotPublic is the public part of a snapshot table, oldest first (docs/format.md §7).
type SnapshotPublic []SnapshotRef

const snapshotRefSize = 48

// AppendSnapshotPublic appends the encoding of p, at most 65,535 entries.
func AppendSnapshotPublic(dst []byte, p SnapshotPublic) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(p)))
	for i := range p {
		dst = append(dst, p[i].ID[:]...)
		dst = append(dst, p[i].Tag[:]...)
	}
	return dst
}

// ParseSnapshotPublic reads the public part of a snapshot table and nothing else.
func ParseSnapshotPublic(b []byte) (SnapshotPublic, error) {
	if len(b) < 2 {
		return nil, corrupt("snapshot table", "public part of %d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) != 2+n*snapshotRefSize {
		return nil, corrupt("snapshot table", "public part of %d bytes for %d entries", len(b), n)
	}
	p := make(SnapshotPublic, n)
	for i := range p {
		e := b[2+i*snapshotRefSize:]
		copy(p[i].ID[:], e)
		copy(p[i].Tag[:], e[32:])
	}
	return p, nil
}

// Frame encodings, the upper 4 bits of an entry of a segment's length table.
const (
	EncodingRaw  = 0
	EncodingZstd = 1
	EncodingS2   = 2
)

// SegmentHeader is the public start of a segment (docs/format.md §3). Lengths hold
// encoding (4 bits) and sealed length (28 bits) of each frame as they stand in the table.
type SegmentHeader struct {
	Suite    byte
	FrameLog uint8 // frames hold 2^FrameLog bytes
	Epoch    [16]byte
	Salt     [32]byte
	Lengths  []uint32
}

const segmentHeaderSize = 64

// AppendSegmentHeader appends the header and the length table; the sealed frames follow.
func AppendSegmentHeader(dst []byte, h SegmentHeader) []byte {
	dst = append(dst, "SDsg"...)
	dst = append(dst, 1, h.Suite, 1, h.FrameLog)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(h.Lengths)))
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, h.Epoch[:]...)
	dst = append(dst, h.Salt[:]...)
	for _, l := range h.Lengths {
		dst = binary.BigEndian.AppendUint32(dst, l)
	}
	return dst
}

// ParseSegmentHeader splits a whole segment into its header, the bytes that the key
// is bound to (0–31), its length table as it stands, and the sealed frames. The
// slices alias b. The lengths are checked to add up to the object.
func ParseSegmentHeader(b []byte) (h SegmentHeader, bound, table, body []byte, err error) {
	h, bound, table, err = ParseSegmentHead(b, len(b))
	if err != nil {
		return SegmentHeader{}, nil, nil, nil, err
	}
	return h, bound, table, b[segmentHeaderSize+len(table):], nil
}

// MaxSegmentHead is the most that the header and the length table of a segment take.
const MaxSegmentHead = segmentHeaderSize + 4*MaxFrames

// ParseSegmentHead is [ParseSegmentHeader] for the beginning of a segment of size bytes:
// header and length table at least.
func ParseSegmentHead(b []byte, size int) (h SegmentHeader, bound, table []byte, err error) {
	const what = "segment header"
	fail := func(err error) (SegmentHeader, []byte, []byte, error) {
		return SegmentHeader{}, nil, nil, err
	}
	if len(b) < segmentHeaderSize || len(b) > size || size > MaxSegment {
		return fail(corrupt(what, "segment of %d bytes", size))
	}
	if string(b[:4]) != "SDsg" {
		return fail(corrupt(what, "magic %q", b[:4]))
	}
	if b[4] != 1 || b[6] != 1 {
		return fail(fmt.Errorf("blockstore: segment: %w: version %d, hash %d, known are 1 and 1", ErrFormat, b[4], b[6]))
	}
	if err := checkSuite(b[5]); err != nil {
		return fail(err)
	}
	h.Suite, h.FrameLog = b[5], b[7]
	n := binary.BigEndian.Uint32(b[8:])
	if h.FrameLog < 12 || h.FrameLog > 17 || n < 2 || n > MaxFrames || binary.BigEndian.Uint32(b[12:]) != 0 {
		return fail(corrupt(what, "%d frames of 2^%d bytes", n, h.FrameLog))
	}
	start := segmentHeaderSize + 4*int(n)
	if len(b) < start {
		return fail(corrupt(what, "length table cut short"))
	}
	copy(h.Epoch[:], b[16:32])
	copy(h.Salt[:], b[32:64])
	bound, table = b[:32:32], b[segmentHeaderSize:start:start]
	h.Lengths = make([]uint32, n)
	sum := 0
	for i := range h.Lengths {
		l := binary.BigEndian.Uint32(table[4*i:])
		h.Lengths[i] = l
		if err := checkFrame(i, l, h.FrameLog); err != nil {
			return fail(err)
		}
		sum += int(l & (1<<28 - 1))
	}
	if sum != size-start {
		return fail(corrupt(what, "frames of %d bytes in all, %d are there", sum, size-start))
	}
	return h, bound, table, nil
}

// checkFrame checks entry i of a length table by itself. Frame 0 (the runs) is raw
// and holds at most 256 runs; a data frame never grows by sealing.
func checkFrame(i int, l uint32, frameLog uint8) error {
	encoding, length := l>>28, l&(1<<28-1)
	most := uint32(1)<<frameLog + tagSize
	if i == 0 {
		most = 1088 + tagSize
	}
	if encoding > EncodingS2 || i == 0 && encoding != EncodingRaw {
		return fmt.Errorf("blockstore: segment: %w: encoding %d of frame %d", ErrFormat, encoding, i)
	}
	if length <= tagSize || length > most {
		return corrupt("segment header", "frame %d of %d bytes", i, length)
	}
	return nil
}
