package record

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// Sizes of docs/format.md §9.
const (
	JournalHeaderSize = blockstore.JournalHeaderSize // bytes
	JournalAlign      = 4096                         // records begin on multiples of it
	MaxJournalData    = 4 << 20                      // bytes of data in a record
	MaxJournalOps     = 1 << 16                      // operations in a record

	journalHeader    = 176 // bytes of the header that the key is bound to; the header's tag follows
	journalRecord    = 64  // bytes before the sealed body
	journalOp        = 17
	maxJournalSealed = 4 + journalOp*MaxJournalOps + MaxJournalData + crypto.Overhead
)

// JournalHeader says which image, host and term a journal belongs to, and to which
// commit it adds. Its key is bound to all of it.
type JournalHeader struct {
	Suite  crypto.Suite
	Image  blockstore.ImageID
	Host   [32]byte // public host key
	Era    blockstore.Era
	Term   blockstore.Term
	Epoch  crypto.EpochID
	Salt   crypto.Salt
	Number blockstore.JournalNumber
	Base   blockstore.CommitID
}

// append appends the bytes of the header that the key is bound to.
func (h *JournalHeader) append(dst []byte) []byte {
	dst = append(dst, "SDjn"...)
	dst = append(dst, 1, byte(h.Suite), 0, 0)
	dst = append(dst, h.Image[:]...)
	dst = append(dst, h.Host[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Era))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Term))
	dst = append(dst, h.Epoch[:]...)
	dst = append(dst, h.Salt[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Number))
	return append(dst, h.Base[:]...)
}

// ParseJournalHeader reads the first 4,096 bytes of a journal and does not check its
// tag, as [NewJournalScanner] does.
func ParseJournalHeader(b []byte) (h JournalHeader, err error) {
	const what = "journal header"
	if len(b) != JournalHeaderSize {
		return h, corrupt(what, "%d bytes", len(b))
	}
	r := reader{b: b}
	if magic := r.bytes(4); string(magic) != "SDjn" {
		return h, corrupt(what, "magic %q", magic)
	}
	if v := r.u8(); v != 1 {
		return h, fmt.Errorf("record: %s: %w: version %d, known is 1", what, blockstore.ErrFormat, v)
	}
	if h.Suite = crypto.Suite(r.u8()); !h.Suite.Valid() {
		return h, fmt.Errorf("record: %s: %w: suite %d", what, blockstore.ErrFormat, byte(h.Suite))
	}
	reserved := r.u16()
	copy(h.Image[:], r.bytes(32))
	copy(h.Host[:], r.bytes(32))
	h.Era, h.Term = blockstore.Era(r.u64()), blockstore.Term(r.u64())
	copy(h.Epoch[:], r.bytes(16))
	copy(h.Salt[:], r.bytes(32))
	h.Number = blockstore.JournalNumber(r.u64())
	copy(h.Base[:], r.bytes(32))
	if reserved != 0 || !allZero(b[journalHeader+crypto.Overhead:]) {
		return JournalHeader{}, corrupt(what, "reserved bytes are not zero")
	}
	return h, nil
}

// Binder binds a journal's key to the host that writes and replays it:
// crypto.HostKey.JournalKey. Nil, for test vectors, leaves it as the epoch gives it.
type Binder func(crypto.Key) crypto.Key

// Tag is the authentication tag of a journal record.
type Tag [crypto.Overhead]byte

// key derives the key of the journal from its header.
func (h *JournalHeader) key(e *crypto.Epoch, bind Binder) crypto.Key {
	key := e.Key(crypto.PurposeJournal, crypto.NoRegion, h.Salt, h.append(nil))
	if bind != nil {
		key = bind(key)
	}
	return key
}

// seal returns the 4,096 bytes of the header. The tag is that of an empty frame, 0
// and last: no record is a last frame, so the nonce is not used again. Without it a
// changed header would make all records foreign, and the journal look empty.
func (h *JournalHeader) seal(key crypto.Key) ([]byte, error) {
	s, err := crypto.NewSealer(h.Suite, key)
	if err != nil {
		return nil, err
	}
	b := s.Seal(h.append(make([]byte, 0, JournalHeaderSize)), nil, nil, true)
	return b[:JournalHeaderSize], nil
}

// OpKind says what an operation does.
type OpKind uint8

// The kinds of operation.
const (
	OpWrite  OpKind = 1 // B sectors from sector A on; their data is in the record
	OpZero   OpKind = 2 // B sectors from sector A on read as zeros
	OpResize OpKind = 3 // the image has A bytes; B is 0
)

// Op is one operation of a journal record. The data of writes follows in their order.
type Op struct {
	Kind OpKind
	A, B uint64
}

// checkOps checks operations beside how many bytes of data they come with.
func checkOps(ops []Op, data int) error {
	const sectors = MaxImageSize / SectorSize
	written := uint64(0)
	for _, o := range ops {
		ok := false
		switch o.Kind {
		case OpWrite, OpZero:
			ok = o.B > 0 && o.A < sectors && o.B <= sectors-o.A
		case OpResize:
			ok = o.A > 0 && o.A <= MaxImageSize && o.B == 0
		}
		if !ok {
			return fmt.Errorf("operation %d of %d at %d", o.Kind, o.B, o.A)
		}
		if o.Kind == OpWrite {
			if written += o.B; written > MaxJournalData/SectorSize {
				return fmt.Errorf("writes of more than %d bytes", MaxJournalData)
			}
		}
	}
	if written*SectorSize != uint64(data) {
		return fmt.Errorf("%d bytes of data for %d sectors", data, written)
	}
	return nil
}

func appendOps(dst []byte, ops []Op) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(ops)))
	for _, o := range ops {
		dst = append(dst, byte(o.Kind))
		dst = binary.BigEndian.AppendUint64(dst, o.A)
		dst = binary.BigEndian.AppendUint64(dst, o.B)
	}
	return dst
}

// parseBody reads the plaintext of a record. Data aliases body; ops are appended.
func parseBody(ops []Op, body []byte) ([]Op, []byte, error) {
	const what = "journal record"
	r := reader{b: body}
	n := r.u32()
	if r.short || n > MaxJournalOps || r.left() < int(n)*journalOp {
		return nil, nil, corrupt(what, "%d operations in %d bytes", n, len(body))
	}
	for range n {
		ops = append(ops, Op{Kind: OpKind(r.u8()), A: r.u64(), B: r.u64()})
	}
	if err := checkOps(ops, r.left()); err != nil {
		return nil, nil, &blockstore.CorruptError{What: what, Cause: err}
	}
	return ops, r.b, nil
}

// JournalSealer seals the records of one journal file, in order. It serves one
// goroutine at a time, and one file once: never the same file after it was re-opened.
type JournalSealer struct {
	header JournalHeader
	front  []byte // the sealed header
	sealer *crypto.Sealer
	number uint64
	tag    Tag    // of the previous record
	size   uint64 // bytes of the file up to the end of the last record
}

// NewJournalSealer begins a journal: Suite, Epoch and a fresh Salt come from seal,
// all else from h. Previous is the last tag of the journal before it, if that one is to
// be replayed before this one, else zero.
func NewJournalSealer(seal Seal, h JournalHeader, bind Binder, previous Tag) (*JournalSealer, error) {
	h.Suite, h.Epoch, h.Salt = seal.Suite, seal.Epoch.ID(), crypto.NewSalt()
	key := h.key(seal.Epoch, bind)
	front, err := h.seal(key)
	if err != nil {
		return nil, fmt.Errorf("record: seal journal: %w", err)
	}
	sealer, err := crypto.NewSealer(h.Suite, key)
	if err != nil {
		return nil, fmt.Errorf("record: seal journal: %w", err)
	}
	return &JournalSealer{header: h, front: front, sealer: sealer, tag: previous, size: JournalHeaderSize}, nil
}

// Header returns the 4,096 bytes that the file begins with.
func (w *JournalSealer) Header() []byte { return slices.Clone(w.front) }

// Last returns the tag of the last record, or of the journal before if there is none.
func (w *JournalSealer) Last() Tag { return w.tag }

// Record appends the next record to dst, zero padded to a multiple of 4,096 bytes.
// It belongs in the file where the last one ended. Data is that of the writes, in
// their order, 4 MiB at most, cut anywhere; durable is how many bytes of the file are
// known to be durable. The spare capacity of dst must not overlap data. After an
// error the next record may still be sealed.
func (w *JournalSealer) Record(dst []byte, ops []Op, data [][]byte, durable uint64) ([]byte, error) {
	total := 0
	for _, d := range data {
		total += len(d)
	}
	if len(ops) > MaxJournalOps || durable > w.size {
		return nil, fmt.Errorf("record: seal journal record: %d operations, %d of %d bytes durable", len(ops), durable, w.size)
	}
	if err := checkOps(ops, total); err != nil {
		return nil, fmt.Errorf("record: seal journal record: %w", err)
	}
	n := 4 + len(ops)*journalOp + total + crypto.Overhead
	padded := roundUp(journalRecord+n, JournalAlign)
	start := len(dst)
	dst = slices.Grow(dst, padded)
	dst = append(dst, "SDjr"...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	dst = binary.BigEndian.AppendUint64(dst, w.number)
	dst = binary.BigEndian.AppendUint64(dst, durable)
	dst = append(dst, w.tag[:]...)
	dst = append(dst, make([]byte, 24)...)
	header := dst[start:]
	dst = appendOps(dst, ops)
	for _, d := range data {
		dst = append(dst, d...)
	}
	body := dst[start+journalRecord:]
	dst = w.sealer.Seal(dst[:start+journalRecord], body, header, false)
	copy(w.tag[:], dst[len(dst)-crypto.Overhead:])
	w.number++
	w.size += uint64(padded)
	tail := len(dst)
	dst = dst[:start+padded]
	clear(dst[tail:])
	return dst, nil
}
