package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// scanBudget bounds what is opened while looking for records behind a bad place, as
// a multiple of the file: true ones do not overlap, forged headers may.
const scanBudget = 4

// JournalScanner reads the records of a journal in order and tells its end from
// corruption (docs/format.md §9). Memory is one record. It serves one goroutine.
type JournalScanner struct {
	r      io.ReaderAt
	size   int64
	header JournalHeader
	opener *crypto.Opener
	off    int64  // of the next record
	number uint64 // of the next record
	tag    Tag    // of the last record
	first  Tag    // what the first record says of the journal before
	buf    []byte
	ops    []Op
	done   error // what Next says from now on
}

// NewJournalScanner reads the header of a journal of size bytes and checks its tag.
// Bind is that of the sealer. An error of r is wrapped and is no blockstore.ErrCorrupt.
func NewJournalScanner(k *crypto.Keyring, r io.ReaderAt, size int64, bind Binder) (*JournalScanner, error) {
	if size < JournalHeaderSize {
		return nil, corrupt("journal", "%d bytes", size)
	}
	b := make([]byte, JournalHeaderSize)
	if err := readAt(r, b, 0); err != nil {
		return nil, fmt.Errorf("record: read journal header: %w", err)
	}
	h, err := ParseJournalHeader(b)
	if err != nil {
		return nil, err
	}
	e, err := epochOf(k, h.Epoch)
	if err != nil {
		return nil, fmt.Errorf("record: open journal: %w", err)
	}
	opener, err := crypto.NewOpener(h.Suite, h.key(e, bind))
	if err != nil {
		return nil, fmt.Errorf("record: open journal: %w", err)
	}
	s := &JournalScanner{r: r, size: size, header: h, opener: opener, off: JournalHeaderSize}
	if _, err := opener.Open(nil, 0, true, b[journalHeader:journalHeader+crypto.Overhead], nil); err != nil {
		return nil, s.corrupt("header: %w", err)
	}
	return s, nil
}

// Header returns the journal's header. It is authentic; whether the journal belongs
// here is for the commit, the lease and the anchor to say.
func (s *JournalScanner) Header() JournalHeader { return s.header }

// Chain returns what the first record names as the last tag of the journal before, and
// the tag of the last record so far; ok is false while there is no record.
func (s *JournalScanner) Chain() (first, last Tag, ok bool) { return s.first, s.tag, s.number > 0 }

// Next returns the operations of the next record, the joined data of its writes,
// and where it begins in the file. Both slices are good until the next call. At the
// end of the journal it returns io.EOF; if a later record shows that something is
// bad before the end, a blockstore.CorruptError. An error of the file itself is
// neither. After an error it returns the same again.
func (s *JournalScanner) Next() (ops []Op, data []byte, off int64, err error) {
	if s.done != nil {
		return nil, nil, s.off, s.done
	}
	ops, data, err = s.next()
	if err != nil {
		s.done = err
		return nil, nil, s.off, err
	}
	off = s.off
	s.off += int64(roundUp(journalRecord+len(s.buf), JournalAlign))
	s.number++
	return ops, data, off, nil
}

func (s *JournalScanner) next() ([]Op, []byte, error) {
	h, ok, err := s.readHeader(s.off)
	if err != nil {
		return nil, nil, err
	}
	if !ok || h.number != s.number || h.number > 0 && h.previous != s.tag {
		return nil, nil, s.end()
	}
	body, err := s.open(&h)
	if errors.Is(err, crypto.ErrAuth) {
		return nil, nil, s.end()
	}
	if err != nil {
		return nil, nil, err
	}
	if h.durable > uint64(s.off) {
		return nil, nil, s.corrupt("record %d at %d says that %d bytes are durable", h.number, s.off, h.durable)
	}
	s.ops, body, err = parseBody(s.ops[:0], body)
	if err != nil {
		return nil, nil, err
	}
	if h.number == 0 {
		s.first = h.previous
	}
	s.tag = h.tag
	return s.ops, body, nil
}

// recordHeader is the public part of a journal record.
type recordHeader struct {
	raw      [journalRecord]byte
	off      int64
	n        int // sealed length
	number   uint64
	durable  uint64
	previous Tag
	tag      Tag // once it was read
}

// readHeader reads the header at off; ok is false if there is none of a record that
// fits in the file.
func (s *JournalScanner) readHeader(off int64) (h recordHeader, ok bool, err error) {
	if s.size-off < journalRecord {
		return h, false, nil
	}
	if err := readAt(s.r, h.raw[:], off); err != nil {
		return h, false, fmt.Errorf("record: read journal: %w", err)
	}
	if string(h.raw[:4]) != "SDjr" || !allZero(h.raw[40:]) {
		return h, false, nil
	}
	n := int64(binary.BigEndian.Uint32(h.raw[4:]))
	if n < 4+crypto.Overhead || n > maxJournalSealed || n > s.size-off-journalRecord {
		return h, false, nil
	}
	h.off, h.n = off, int(n)
	h.number = binary.BigEndian.Uint64(h.raw[8:])
	h.durable = binary.BigEndian.Uint64(h.raw[16:])
	copy(h.previous[:], h.raw[24:40])
	return h, true, nil
}

// open opens a record in s.buf, whose length stays the sealed length.
func (s *JournalScanner) open(h *recordHeader) ([]byte, error) {
	if cap(s.buf) < h.n {
		s.buf = make([]byte, h.n)
	}
	s.buf = s.buf[:h.n]
	if err := readAt(s.r, s.buf, h.off+journalRecord); err != nil {
		return nil, fmt.Errorf("record: read journal: %w", err)
	}
	copy(h.tag[:], s.buf[h.n-crypto.Overhead:])
	return s.opener.Open(s.buf[:0], h.number, false, s.buf, h.raw[:])
}

// end is called where the chain stops. It is the end of the journal, io.EOF, unless
// a record from here on was written when this place was durable already.
func (s *JournalScanner) end() error {
	budget := scanBudget * s.size
	for off := s.off; s.size-off >= journalRecord; off += JournalAlign {
		h, ok, err := s.readHeader(off)
		if err != nil {
			return err
		}
		if !ok || h.durable <= uint64(s.off) {
			continue
		}
		if budget -= int64(h.n); budget < 0 {
			return s.corrupt("no record %d at %d, and too much behind it that looks like records", s.number, s.off)
		}
		_, err = s.open(&h)
		if err == nil {
			return s.corrupt("no record %d at %d, which was durable when record %d at %d was written", s.number, s.off, h.number, off)
		}
		if !errors.Is(err, crypto.ErrAuth) {
			return err
		}
	}
	return io.EOF
}

func (s *JournalScanner) corrupt(format string, args ...any) error {
	return &blockstore.CorruptError{
		What:  "journal",
		Key:   s.header.Number.String(),
		Cause: fmt.Errorf(format, args...),
	}
}

// readAt fills b. A file that ends early is not what its size said.
func readAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
