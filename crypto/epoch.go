package crypto

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// ErrMasterKey is returned by [Epoch.Confirm] for an epoch that is not the one
// the master key belongs to.
var ErrMasterKey = errors.New("crypto: master key does not match the epoch")

// Domain labels of docs/format.md §2.
const (
	labelPrefix     = "sealdisk/v1 "
	labelParent     = "sealdisk/v1 parent"
	labelCommitment = "sealdisk/v1 commitment"
	labelFold       = "sealdisk/v1 fold"
)

// The key set of an epoch: one parent key for each region mod 256, and one for
// records without a region.
const (
	regionParents = 256
	parentCount   = regionParents + 1
)

// EpochID names an epoch. It is public.
type EpochID [16]byte

// String returns the id in hex.
func (id EpochID) String() string { return hex.EncodeToString(id[:]) }

// Salt makes the key of one seal. It is public and never used twice.
type Salt [32]byte

// NewSalt returns 32 fresh random bytes.
func NewSalt() Salt {
	var s Salt
	rand.Read(s[:])
	return s
}

// MasterKey confirms an epoch (the paper's PAKG). It is public and opens nothing.
type MasterKey [32]byte

// String returns the master key in hex.
func (m MasterKey) String() string { return hex.EncodeToString(m[:]) }

// Key is the key of one stream: one segment, one record or one journal file. Do
// not keep it in an unexported field: fmt prints those without asking their methods.
type Key [32]byte

// Format writes "redacted", whatever the verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redactedText) }

// String returns "redacted".
func (Key) String() string { return redactedText }

// GoString returns "redacted".
func (Key) GoString() string { return redactedText }

// LogValue returns "redacted".
func (Key) LogValue() slog.Value { return slog.StringValue(redactedText) }

// MarshalText returns "redacted", also for JSON.
func (Key) MarshalText() ([]byte, error) { return []byte(redactedText), nil }

// Purpose says what a key is for. Only the constants of this package are used.
type Purpose string

// The purposes of docs/format.md §2.
const (
	PurposeSegment     Purpose = "segment"
	PurposeLeaf        Purpose = "leaf"
	PurposeInner       Purpose = "inner"
	PurposeCommit      Purpose = "commit"
	PurposeSnapshots   Purpose = "snapshots"
	PurposeDepMap      Purpose = "depmap"
	PurposeJournal     Purpose = "journal"
	PurposeSnapshotTag Purpose = "snapshot-tag"
)

// Region is the number of a region of an image.
type Region uint64

// NoRegion stands for records that belong to no region.
const NoRegion Region = 1<<64 - 1

// Epoch is one random secret and the key set derived from it (docs/format.md
// §2). It does not change, and is safe for concurrent use.
type Epoch struct {
	redacted
	id EpochID
	*schedule
}

// schedule is the secret part of an epoch. The key set is derived when it is
// first needed: opening a keyring of 256 epochs derives none.
type schedule struct {
	secret *[32]byte

	parentsOnce sync.Once
	parents     *[parentCount][32]byte

	masterOnce sync.Once
	master     MasterKey
}

// NewEpoch returns an epoch with a fresh random id and secret.
func NewEpoch() *Epoch {
	var id EpochID
	var secret [32]byte
	rand.Read(id[:])
	rand.Read(secret[:])
	return newEpoch(id, secret)
}

func newEpoch(id EpochID, secret [32]byte) *Epoch {
	return &Epoch{id: id, schedule: &schedule{secret: &secret}}
}

// ID returns the epoch's id.
func (e *Epoch) ID() EpochID { return e.id }

// Master returns the epoch's master key: the commitments of all its parent keys,
// folded in pairs until one is left. The first call takes about 0.4 ms.
func (e *Epoch) Master() MasterKey {
	e.masterOnce.Do(func() {
		e.deriveParents()
		level := make([][32]byte, parentCount)
		for i := range level {
			level[i] = expandLabel(&e.parents[i], labelCommitment)
		}
		e.master = MasterKey(fold(level))
	})
	return e.master
}

// Confirm compares m with the epoch's master key in constant time and returns
// ErrMasterKey if they differ. A destination confirms every epoch that it was
// given before it opens anything with it (the paper's VMDD).
func (e *Epoch) Confirm(m MasterKey) error {
	have := e.Master()
	if subtle.ConstantTimeCompare(have[:], m[:]) != 1 {
		return ErrMasterKey
	}
	return nil
}

// Key derives the key of one seal. Context is joined; its meaning is given with
// each record in docs/format.md. A caller that seals passes a salt from NewSalt;
// one that opens passes the salt of the place that refers to the record.
func (e *Epoch) Key(p Purpose, r Region, salt Salt, context ...[]byte) Key {
	e.deriveParents()
	i := regionParents
	if r != NoRegion {
		i = int(r % regionParents)
	}
	return recordKey(&e.parents[i], &salt, string(p), r, context)
}

func (e *Epoch) deriveParents() {
	e.parentsOnce.Do(func() {
		prk := extract(e.id[:], e.secret[:])
		e.parents = new([parentCount][32]byte)
		for i := range e.parents {
			e.parents[i] = expandParent(&prk, i)
		}
	})
}

// fold pairs neighbours until one value is left; an odd last one moves up as it
// is. It overwrites level.
func fold(level [][32]byte) [32]byte {
	var buf [len(labelFold) + 64]byte
	copy(buf[:], labelFold)
	for len(level) > 1 {
		n := 0
		for i := 0; i < len(level); i += 2 {
			if i+1 == len(level) {
				level[n] = level[i]
			} else {
				copy(buf[len(labelFold):], level[i][:])
				copy(buf[len(labelFold)+32:], level[i+1][:])
				level[n] = sha256.Sum256(buf[:])
			}
			n++
		}
		level = level[:n]
	}
	return level[0]
}
