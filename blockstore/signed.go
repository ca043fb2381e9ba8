package blockstore

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// ObjectID names an object: the SHA-256 of its sealed bytes (docs/format.md §1).
type ObjectID [32]byte

// ImageID names an image: its Ed25519 public key.
type ImageID [32]byte

// CommitID names a commit: the SHA-256 of the whole record, signature included.
type CommitID [32]byte

// LeaseID names a lease: the SHA-256 of the whole record, signature included.
type LeaseID [32]byte

// StoreID names a store: 16 random bytes, fixed when it is created.
type StoreID [16]byte

// Era, Term and Sequence place a commit in time; see [Position].
type (
	Era           uint64
	Term          uint64
	Sequence      uint64
	JournalNumber uint64
)

func (id ObjectID) String() string { return hex.EncodeToString(id[:]) }
func (id ImageID) String() string  { return hex.EncodeToString(id[:]) }
func (id CommitID) String() string { return hex.EncodeToString(id[:]) }
func (id LeaseID) String() string  { return hex.EncodeToString(id[:]) }
func (id StoreID) String() string  { return hex.EncodeToString(id[:]) }

// String is the 16 hex digits that name the journal's file.
func (n JournalNumber) String() string { return fmt.Sprintf("%016x", uint64(n)) }

// IDOf returns the id of an object with the given sealed bytes.
func IDOf(b []byte) ObjectID { return sha256.Sum256(b) }

// CommitIDOf returns the id of a commit record, signature included.
func CommitIDOf(raw []byte) CommitID { return sha256.Sum256(raw) }

// LeaseIDOf returns the id of a lease record, signature included.
func LeaseIDOf(raw []byte) LeaseID { return sha256.Sum256(raw) }

// ParseObjectID reads 64 hex digits.
func ParseObjectID(s string) (id ObjectID, err error) { return id, parseHex("object id", id[:], s) }

// ParseImageID reads 64 hex digits.
func ParseImageID(s string) (id ImageID, err error) { return id, parseHex("image id", id[:], s) }

// ParseCommitID reads 64 hex digits.
func ParseCommitID(s string) (id CommitID, err error) { return id, parseHex("commit id", id[:], s) }

// ParseLeaseID reads 64 hex digits.
func ParseLeaseID(s string) (id LeaseID, err error) { return id, parseHex("lease id", id[:], s) }

// ParseStoreID reads 32 hex digits.
func ParseStoreID(s string) (id StoreID, err error) { return id, parseHex("store id", id[:], s) }

func parseHex(what string, dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("blockstore: %s: %d characters, want %d", what, len(s), 2*len(dst))
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return fmt.Errorf("blockstore: %s: %w", what, err)
	}
	return nil
}

// Position is the place of a commit in an image's history, ordered by era, then
// term, then sequence (docs/format.md §1).
type Position struct {
	Era      Era
	Term     Term
	Sequence Sequence
}

// Compare returns -1, 0 or 1 as p lies before, at or after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Era, q.Era), cmp.Compare(p.Term, q.Term), cmp.Compare(p.Sequence, q.Sequence))
}

// String is era.term.sequence.
func (p Position) String() string { return fmt.Sprintf("%d.%d.%d", p.Era, p.Term, p.Sequence) }

// Errors that a caller tells apart with errors.Is.
var (
	// ErrNotFound: what was asked for is not in the store.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt: it is there and is not what was put; see [CorruptError].
	ErrCorrupt = errors.New("corrupt")
	// ErrFormat: a version, suite or feature that this program does not know.
	ErrFormat = errors.New("unknown format")
	// ErrNoSpace: refused before the reserve was touched; nothing was written.
	ErrNoSpace = errors.New("no space left for the store")
	// ErrFailed: a write or fsync failed earlier, so the store stopped.
	ErrFailed = errors.New("the store has stopped after an error")
	// ErrClosed: the store or journal was closed.
	ErrClosed = errors.New("closed")
	// ErrExists: what was to be created is there already.
	ErrExists = errors.New("exists already")
)

// CorruptError says what is not what was put. It is an ErrCorrupt.
type CorruptError struct {
	What  string // "object", "commit", "segment header", …
	Key   string // hex id, or empty where the record has none yet
	Cause error
}

func (e *CorruptError) Error() string {
	s := "blockstore: corrupt " + e.What
	if e.Key != "" {
		s += " " + e.Key
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap lets errors.Is find ErrCorrupt and the cause.
func (e *CorruptError) Unwrap() []error {
	if e.Cause == nil {
		return []error{ErrCorrupt}
	}
	return []error{ErrCorrupt, e.Cause}
}

// InUseError: another process has the store open.
type InUseError struct {
	PID     int    // 0 if the holder left no readable note
	Command string // its command line
	Holder  string // path of the lock file
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("blockstore: store in use by another process (%s)", e.Holder)
	}
	return fmt.Sprintf("blockstore: store in use by process %d (%s)", e.PID, e.Command)
}

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

// maxPosition bounds eras, terms and sequences: what follows one does not overflow.
const maxPosition = 1 << 62

func (p Position) sane() bool {
	return p.Era < maxPosition && p.Term < maxPosition && p.Sequence < maxPosition
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
	if !c.Position().sane() {
		return corrupt("commit", "position %v", c.Position())
	}
	if r := c.Root; r != nil {
		if r.Subtree > maxPosition || r.Level > MaxLevel || r.Length == 0 || r.Length > MaxNode || r.Subtree < uint64(r.Length) {
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
	if p := (Position{Era: l.Era, Term: l.Term}); !p.sane() {
		return nil, corrupt("lease", "position %v", p)
	}
	return l, nil
}
