package record

import (
	"encoding/binary"
	"fmt"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// boundHeader is how much of a record's header its key is bound to: bytes 0–23.
const boundHeader = 24

// purposeOf says what the key of a kind of record is for (docs/format.md §2, §4).
func purposeOf(k blockstore.Kind) crypto.Purpose {
	switch k {
	case blockstore.KindLeaf:
		return crypto.PurposeLeaf
	case blockstore.KindInner:
		return crypto.PurposeInner
	case blockstore.KindCommit:
		return crypto.PurposeCommit
	case blockstore.KindSnapshotTable:
		return crypto.PurposeSnapshots
	case blockstore.KindDepMap:
		return crypto.PurposeDepMap
	}
	panic("record: no purpose for " + k.String())
}

// record seals body in a container of docs/format.md §4. Salt is fresh; room is
// left for a signature.
func (s Seal) record(kind blockstore.Kind, r crypto.Region, salt crypto.Salt, public, body []byte) ([]byte, error) {
	key := func(header []byte) crypto.Key { return s.Epoch.Key(purposeOf(kind), r, salt, header) }
	h := blockstore.Header{Suite: byte(s.Suite), Kind: kind, Epoch: s.Epoch.ID(), Salt: salt, Public: public}
	return sealRecord(h, key, body)
}

func sealRecord(h blockstore.Header, key func(header []byte) crypto.Key, body []byte) ([]byte, error) {
	const header, signature = 60, 64
	n := header + len(h.Public) + len(body) + crypto.Overhead
	if most := maxRecord(h.Kind); n > most {
		return nil, fmt.Errorf("record: seal %v: %d bytes, at most %d", h.Kind, n, most)
	}
	ad := blockstore.AppendHeader(make([]byte, 0, n+signature), h)
	sealer, err := crypto.NewSealer(crypto.Suite(h.Suite), key(ad[:boundHeader]))
	if err != nil {
		return nil, fmt.Errorf("record: seal %v: %w", h.Kind, err)
	}
	return sealer.Seal(ad, body, ad, true), nil
}

func maxRecord(k blockstore.Kind) int {
	switch k {
	case blockstore.KindLeaf, blockstore.KindInner:
		return blockstore.MaxNode
	case blockstore.KindCommit:
		return blockstore.MaxCommit - signatureSize
	case blockstore.KindCatalogue:
		return blockstore.MaxCatalogue
	}
	return blockstore.MaxTable
}

// open parses and opens a record that is not a commit. The body is appended to dst,
// which is empty and may be nil.
func open(dst []byte, k *crypto.Keyring, b []byte, kind blockstore.Kind, r crypto.Region) (h blockstore.Header, body []byte, err error) {
	h, ad, sealed, err := blockstore.ParseRecord(b)
	if err != nil {
		return h, nil, err
	}
	body, err = openBody(dst, k, h, ad, sealed, kind, r)
	return h, body, err
}

func openBody(dst []byte, k *crypto.Keyring, h blockstore.Header, ad, sealed []byte, kind blockstore.Kind, r crypto.Region) ([]byte, error) {
	if h.Kind != kind {
		return nil, corrupt(kind.String(), "it is a %v", h.Kind)
	}
	e, err := epochOf(k, h.Epoch)
	if err != nil {
		return nil, fmt.Errorf("record: open %v: %w", kind, err)
	}
	key := e.Key(purposeOf(kind), r, h.Salt, ad[:boundHeader])
	return openFrame(dst, crypto.Suite(h.Suite), key, kind.String(), ad, sealed)
}

func openFrame(dst []byte, suite crypto.Suite, key crypto.Key, what string, ad, sealed []byte) ([]byte, error) {
	opener, err := crypto.NewOpener(suite, key)
	if err != nil {
		return nil, fmt.Errorf("record: open %s: %w", what, err)
	}
	body, err := opener.Open(dst, 0, true, sealed, ad)
	if err != nil {
		return nil, fmt.Errorf("record: open %s: %w", what, err)
	}
	return body, nil
}

func epochOf(k *crypto.Keyring, id crypto.EpochID) (*crypto.Epoch, error) {
	e, ok := k.Epoch(id)
	if !ok {
		return nil, fmt.Errorf("%w: epoch %v", ErrNoEpoch, id)
	}
	return e, nil
}

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

func positionAt(b []byte) blockstore.Position {
	return blockstore.Position{
		Era:      blockstore.Era(binary.BigEndian.Uint64(b)),
		Term:     blockstore.Term(binary.BigEndian.Uint64(b[8:])),
		Sequence: blockstore.Sequence(binary.BigEndian.Uint64(b[16:])),
	}
}

func appendPosition(b []byte, p blockstore.Position) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.Era))
	b = binary.BigEndian.AppendUint64(b, uint64(p.Term))
	return binary.BigEndian.AppendUint64(b, uint64(p.Sequence))
}
