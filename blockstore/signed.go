package blockstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// SmallRef names a keyring, image key, snapshot table or dependency map.
type SmallRef struct {
	_      struct{} `cbor:",toarray"`
	ID     ObjectID
	Length uint32
}

// RootRef names the root of a map.
type RootRef struct {
	_       struct{} `cbor:",toarray"`
	Level   uint8
	ID      ObjectID
	Length  uint32
	Subtree uint64 // sealed bytes of the root and of all beneath it
}

// EpochMaster is the master key, a confirmation, of one epoch (docs/format.md §2).
type EpochMaster struct {
	_      struct{} `cbor:",toarray"`
	ID     [16]byte
	Master [32]byte
}

// CommitPublic is the public part of a commit (docs/format.md §7). Pointers are nil
// where the record holds null.
type CommitPublic struct {
	Features  [3]uint64     `cbor:"2,keyasint"` // incompatible, read-compatible, compatible
	Image     ImageID       `cbor:"3,keyasint"`
	Era       Era           `cbor:"4,keyasint"`
	Term      Term          `cbor:"5,keyasint"`
	Sequence  Sequence      `cbor:"6,keyasint"`
	Parent    *CommitID     `cbor:"7,keyasint"`
	Lease     LeaseID       `cbor:"8,keyasint"`
	Keyring   SmallRef      `cbor:"9,keyasint"`
	Epochs    []EpochMaster `cbor:"10,keyasint"` // oldest first, 1 to 256
	Root      *RootRef      `cbor:"11,keyasint"`
	Snapshots *SmallRef     `cbor:"12,keyasint"`
	DepMap    *SmallRef     `cbor:"13,keyasint"`
	Absorbed  JournalNumber `cbor:"14,keyasint"` // journals up to it are in this commit
	ImageKey  SmallRef      `cbor:"15,keyasint"`
}

// Position is the commit's place in time.
func (c *CommitPublic) Position() Position { return Position{c.Era, c.Term, c.Sequence} }

// KnownIncompatible and KnownReadCompatible are the feature bits this program knows.
// A commit with other incompatible bits is refused with [ErrFormat]; with other
// read-compatible ones the image must not be written.
const (
	KnownIncompatible   uint64 = 0
	KnownReadCompatible uint64 = 0
)

// MayWrite says whether all read-compatible features are known.
func (c *CommitPublic) MayWrite() bool { return c.Features[1]&^KnownReadCompatible == 0 }

// CommitRecord is a parsed commit. The slices alias what was parsed.
type CommitRecord struct {
	CommitPublic
	Header    Header
	AD        []byte // associated data of the sealed body
	Sealed    []byte // sealed body: one frame
	Signed    []byte // what the signature covers
	Signature []byte // 64 bytes, unchecked
}

type commitWire struct {
	Format uint64 `cbor:"1,keyasint"`
	CommitPublic
}

// Lease is the content of a lease record (docs/format.md §8).
type Lease struct {
	Image      ImageID   `cbor:"1,keyasint"`
	Era        Era       `cbor:"2,keyasint"`
	Term       Term      `cbor:"3,keyasint"`
	Holder     [32]byte  `cbor:"4,keyasint"` // the holder's host key, Ed25519
	Previous   *LeaseID  `cbor:"5,keyasint"` // nil: the first record
	LastCommit *CommitID `cbor:"6,keyasint"` // of the previous term; nil: none
}

// LeaseRecord is a parsed lease. The slices alias what was parsed.
type LeaseRecord struct {
	Lease
	Signed    []byte // what the signature covers
	Signature []byte // 64 bytes, unchecked
}

// cborModes returns the one encoding and the strict decoding of docs/format.md.
// What the decoder still lets through (null for a zero, a short byte string, a
// missing key, a long integer) differs after re-encoding, which every parser checks.
var cborModes = sync.OnceValues(func() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   8,
		MaxArrayElements:  MaxEpochs,
		MaxMapPairs:       32,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
})

func encodeCBOR(v any) ([]byte, error) {
	enc, _ := cborModes()
	b, err := enc.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("blockstore: encode: %w", err)
	}
	return b, nil
}

// decodeCBOR decodes b into v and checks that v encodes to exactly b.
func decodeCBOR(what string, b []byte, v any) error {
	_, dec := cborModes()
	if err := dec.Unmarshal(b, v); err != nil {
		return &CorruptError{What: what, Cause: err}
	}
	again, err := encodeCBOR(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return corrupt(what, "not in the one deterministic encoding")
	}
	return nil
}

// EncodeCommitPublic returns the public part of a commit record, or an error where
// [ParseCommit] would refuse it.
func EncodeCommitPublic(c *CommitPublic) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return encodeCBOR(commitWire{Format: 1, CommitPublic: *c})
}

// ParseCommit parses a whole commit record, checks its shape and not its signature.
func ParseCommit(raw []byte) (*CommitRecord, error) {
	if len(raw) > MaxCommit {
		return nil, corrupt("commit", "%d bytes, at most %d", len(raw), MaxCommit)
	}
	if len(raw) < signatureSize {
		return nil, corrupt("commit", "%d bytes are too few", len(raw))
	}
	end := len(raw) - signatureSize
	c := &CommitRecord{Signed: raw[:end:end], Signature: raw[end:]}
	var err error
	if c.Header, c.AD, c.Sealed, err = splitRecord(c.Signed); err != nil {
		return nil, err
	}
	if c.Header.Kind != KindCommit {
		return nil, corrupt("commit", "it is a %v", c.Header.Kind)
	}
	if err := checkCommitFormat(c.Header.Public); err != nil {
		return nil, err
	}
	var w commitWire
	if err := decodeCBOR("commit", c.Header.Public, &w); err != nil {
		return nil, err
	}
	if err := w.check(); err != nil {
		return nil, err
	}
	c.CommitPublic = w.CommitPublic
	return c, nil
}

// checkCommitFormat tells a commit of a later format from a corrupt one: it looks at
// keys 1 and 2 alone, which every format has.
func checkCommitFormat(public []byte) error {
	var v struct {
		Format   uint64    `cbor:"1,keyasint"`
		Features [3]uint64 `cbor:"2,keyasint"`
	}
	if err := cbor.Unmarshal(public, &v); err != nil {
		return &CorruptError{What: "commit", Cause: err}
	}
	if v.Format != 1 {
		return fmt.Errorf("blockstore: commit: %w: version %d, known is 1", ErrFormat, v.Format)
	}
	if u := v.Features[0] &^ KnownIncompatible; u != 0 {
		return fmt.Errorf("blockstore: commit: %w: incompatible features %#x", ErrFormat, u)
	}
	return nil
}

func (c *CommitPublic) check() error {
	if len(c.Epochs) == 0 || len(c.Epochs) > MaxEpochs {
		return corrupt("commit", "%d epochs", len(c.Epochs))
	}
	seen := make(map[[16]byte]bool, len(c.Epochs))
	for _, e := range c.Epochs {
		if seen[e.ID] {
			return corrupt("commit", "epoch %x twice", e.ID)
		}
		seen[e.ID] = true
	}
	if r := c.Root; r != nil {
		if r.Level > MaxLevel || r.Length == 0 || r.Length > MaxNode || r.Subtree < uint64(r.Length) {
			return corrupt("commit", "root of level %d, %d bytes, subtree %d", r.Level, r.Length, r.Subtree)
		}
	}
	for _, r := range []*SmallRef{&c.Keyring, &c.ImageKey, c.Snapshots, c.DepMap} {
		if r != nil && (r.Length == 0 || r.Length > MaxTable) {
			return corrupt("commit", "object %v of %d bytes", r.ID, r.Length)
		}
	}
	return nil
}

const leaseHeaderSize = 12

// EncodeLease returns the record without its signature: what is to be signed, and
// what the signature is to be appended to.
func EncodeLease(l *Lease) ([]byte, error) {
	body, err := encodeCBOR(l)
	if err != nil {
		return nil, err
	}
	b := append([]byte("SDls"), 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...), nil
}

// ParseLease parses a whole lease record, checks its shape and not its signature.
func ParseLease(raw []byte) (*LeaseRecord, error) {
	if len(raw) > MaxLease {
		return nil, corrupt("lease", "%d bytes, at most %d", len(raw), MaxLease)
	}
	if len(raw) < leaseHeaderSize+signatureSize {
		return nil, corrupt("lease", "%d bytes are too few", len(raw))
	}
	if string(raw[:4]) != "SDls" {
		return nil, corrupt("lease", "magic %q", raw[:4])
	}
	if raw[4] != 1 {
		return nil, fmt.Errorf("blockstore: lease: %w: version %d, known is 1", ErrFormat, raw[4])
	}
	if raw[5]|raw[6]|raw[7] != 0 {
		return nil, corrupt("lease", "reserved bytes are % x", raw[5:8])
	}
	end := len(raw) - signatureSize
	if n := binary.BigEndian.Uint32(raw[8:]); uint64(n) != uint64(end-leaseHeaderSize) {
		return nil, corrupt("lease", "length %d in a record of %d bytes", n, len(raw))
	}
	l := &LeaseRecord{Signed: raw[:end:end], Signature: raw[end:]}
	if err := decodeCBOR("lease", raw[leaseHeaderSize:end], &l.Lease); err != nil {
		return nil, err
	}
	return l, nil
}
