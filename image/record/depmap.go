package record

import (
	"fmt"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// Range is an entry of the start-up list: bytes that a guest needed, the burst of
// reads that it belongs to, and when that was.
type Range struct {
	_      struct{} `cbor:",toarray"`
	Offset int64    // bytes
	Length int64    // bytes, at least 1
	Burst  uint32
	Ms     uint32 // milliseconds after the image was opened
}

// Lineage is the commit that an image was cloned from or depends on.
type Lineage struct {
	_      struct{} `cbor:",toarray"`
	Image  blockstore.ImageID
	Commit blockstore.CommitID
}

// DepMap is a dependency map: what is needed together and in which order
// (docs/format.md §7). Sealed it holds at most 1 MiB.
type DepMap struct {
	Startup []Range  // in the order of first need
	Lineage *Lineage // nil: none
}

type depMapWire struct {
	Startup    []Range   `cbor:"1,keyasint"`
	Lineage    *Lineage  `cbor:"2,keyasint"`
	Successors *struct{} `cbor:"3,keyasint"` // reserved: null
}

func (w *depMapWire) check() error {
	if w.Successors != nil {
		return fmt.Errorf("successor edges are reserved")
	}
	for _, r := range w.Startup {
		if r.Offset < 0 || r.Length < 1 || r.Offset >= MaxImageSize || r.Length > MaxImageSize-r.Offset {
			return fmt.Errorf("range of %d bytes at %d", r.Length, r.Offset)
		}
	}
	return nil
}

// DepMap seals a dependency map.
func (s Seal) DepMap(m *DepMap) ([]byte, error) {
	body, err := m.encode()
	if err != nil {
		return nil, err
	}
	return s.record(blockstore.KindDepMap, crypto.NoRegion, crypto.NewSalt(), nil, body)
}

func (m *DepMap) encode() ([]byte, error) {
	const what = "dependency map"
	w := depMapWire{Startup: m.Startup, Lineage: m.Lineage}
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("record: seal %s: %w", what, err)
	}
	return encode(what, &w)
}

// OpenDepMap opens a dependency map and checks all but its id.
func OpenDepMap(k *crypto.Keyring, b []byte) (*DepMap, error) {
	h, body, err := open(nil, k, b, blockstore.KindDepMap, crypto.NoRegion)
	if err != nil {
		return nil, err
	}
	if len(h.Public) != 0 {
		return nil, corrupt("dependency map", "public part of %d bytes", len(h.Public))
	}
	return decodeDepMap(body)
}

func decodeDepMap(body []byte) (*DepMap, error) {
	const what = "dependency map"
	var w depMapWire
	if err := decode(what, body, &w); err != nil {
		return nil, err
	}
	if err := w.check(); err != nil {
		return nil, &blockstore.CorruptError{What: what, Cause: err}
	}
	return &DepMap{Startup: w.Startup, Lineage: w.Lineage}, nil
}
