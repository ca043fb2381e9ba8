package blockstore

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
