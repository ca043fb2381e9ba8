package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"github.com/sealdisk/sealdisk/blockstore"
)

// Version is that of the protocol; a peer with another one is refused.
const Version = 1

// Limits that docs/protocol.md §3 fixes.
const (
	maxRequestIDs  = 1024     // ids of one request
	maxRequestData = 4 << 20  // bytes of objects that one request asks for, unless it is one object
	maxLeases      = 4096     // records of a chain
	maxDescription = 16 << 20 // bytes
	maxReport      = 64 << 10
)

// Errors of the protocol.
var (
	// ErrProtocol: the peer broke a rule of docs/protocol.md.
	ErrProtocol = errors.New("the peer broke the protocol")
	// ErrRefused: the peer does not do it, or not for us.
	ErrRefused = errors.New("refused by the peer")
	// ErrConnection: the connection has broken, or the peer has refused this host.
	ErrConnection = errors.New("the connection failed")
	// ErrNoImage: the peer has no such image, or none for us.
	ErrNoImage = errors.New("the peer has no such image")
	// ErrAbsent: the peer does not have an object that its map names.
	ErrAbsent = errors.New("the peer lacks an object")
)

// Description is what a peer says of an image before anything is copied.
type Description struct {
	Version uint64             `cbor:"1,keyasint"`
	Image   blockstore.ImageID `cbor:"2,keyasint"`
	Leases  [][]byte           `cbor:"3,keyasint"` // the whole chain, in order
	Head    []byte             `cbor:"4,keyasint"` // the commit, signature included
}

// Claim asks for the lease of an image, or whether it would be given.
type Claim struct {
	// Keyrings are those that who asks has opened, of images that may come with it. The lease of one
	// that has another keyring by now is refused; one that is not named here is not looked at.
	Keyrings []Keyring `cbor:"1,keyasint"`
	// Ask: nothing is given. The answer is the image as it is, or a refusal.
	Ask bool `cbor:"2,keyasint,omitempty"`
}

// Keyring is that of an image.
type Keyring struct {
	Image blockstore.ImageID  `cbor:"1,keyasint"`
	ID    blockstore.ObjectID `cbor:"2,keyasint"`
}

// Check fails with [ErrRefused] if an image is named with another keyring than its head, which is
// in the store, has.
func (c Claim) Check(store *blockstore.Store, id blockstore.ImageID) error {
	for _, k := range c.Keyrings {
		if k.Image != id {
			continue
		}
		_, raw, err := store.Head(id)
		if err != nil {
			return err
		}
		head, err := blockstore.ParseCommit(raw)
		if err != nil {
			return err
		}
		if head.Keyring.ID != k.ID {
			return fmt.Errorf("%w: the keys of image %v have changed: once that host has opened them it may ask again", ErrRefused, id)
		}
	}
	return nil
}

// Offer is what a pushing host wants pulled.
type Offer struct {
	Version uint64             `cbor:"1,keyasint"`
	Image   blockstore.ImageID `cbor:"2,keyasint"`
	Name    string             `cbor:"3,keyasint"`
	Follow  bool               `cbor:"4,keyasint"` // stay in step until the connection ends
	// Snapshot is the only state that is to come, as an image of its own with that Name; "": the image.
	Snapshot string `cbor:"5,keyasint"`
	// Handover says that the image's lease is to follow: who pulls stays in step until it has it.
	Handover bool `cbor:"6,keyasint"`
	Lazy     bool `cbor:"7,keyasint"` // with Handover: the map is enough, the rest may come after it
	Check    bool `cbor:"8,keyasint"` // with Handover: only say whether it could be done
	Whole    bool `cbor:"9,keyasint"` // with Handover: the lease is of use only with all of the data
}

// Report is how the pull that an offer asked for goes.
type Report struct {
	Done    int64  `cbor:"1,keyasint"` // sealed bytes that are there
	Total   int64  `cbor:"2,keyasint"`
	State   string `cbor:"3,keyasint"` // "running", "done", "failed"
	Message string `cbor:"4,keyasint"` // why it failed
	// Sequence is that of the state that is there, with State At.
	Sequence blockstore.Sequence `cbor:"5,keyasint"`
}

// States of a Report.
const (
	Running = "running"
	At      = "at"
	Done    = "done"
	Failed  = "failed"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, MaxNestedLevels: 4, MaxArrayElements: maxLeases, MaxMapPairs: 16,
	}.DecMode())
)

// decode reads a message of at most most bytes and no byte after it.
func decode(r io.Reader, most int64, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > most {
		return fmt.Errorf("message of more than %d bytes: %w", most, ErrProtocol)
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("message: %w: %w", ErrProtocol, err)
	}
	again, err := encMode.Marshal(v)
	if err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("message is not deterministic CBOR: %w", ErrProtocol)
	}
	return nil
}

func checkVersion(v uint64) error {
	if v != Version {
		return fmt.Errorf("protocol version %d, this is %d: %w", v, Version, blockstore.ErrFormat)
	}
	return nil
}

// Objects and commits travel as u32 length ‖ bytes, in the order in which they were
// asked for; length 0 says that it is not there.

// readLength reads the length before an item.
func readLength(r io.Reader) (int, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, cut(err)
	}
	return int(binary.BigEndian.Uint32(b[:])), nil
}

// cut tells an answer that ended early from one that has ended.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
