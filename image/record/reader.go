package record

import (
	"encoding/binary"

	"github.com/sealdisk/sealdisk/blockstore"
)

// reader reads a body from front to back. Beyond the end it yields zeros and is short.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) left() int { return len(r.b) }

// bytes returns the next n bytes, or nil.
func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.b, r.short = nil, true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.bytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (r *reader) position() blockstore.Position {
	return blockstore.Position{
		Era:      blockstore.Era(r.u64()),
		Term:     blockstore.Term(r.u64()),
		Sequence: blockstore.Sequence(r.u64()),
	}
}

func appendPosition(b []byte, p blockstore.Position) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.Era))
	b = binary.BigEndian.AppendUint64(b, uint64(p.Term))
	return binary.BigEndian.AppendUint64(b, uint64(p.Sequence))
}
