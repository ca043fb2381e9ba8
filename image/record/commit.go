package record

import (
	"fmt"
	"math"
	"math/bits"
	"time"
	"unicode/utf8"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// The planning grid: a power of two between these (bytes).
const (
	MinBlockSize = 64 << 10
	MaxBlockSize = RegionSize
)

// PlanStats is what the planner was given and what it found.
type PlanStats struct {
	LinkBits int64         // bits per second of the link; 0: not known
	RTT      time.Duration // of the link, ≥ 0
	Planned  uint64        // blocks
	Merged   uint64        // blocks merged with the one before
	Count    uint64        // segments left
}

// Body is the sealed part of a commit (docs/format.md §7).
type Body struct {
	Size        int64 // bytes of the image, 1 to 2^52
	BlockSize   int64 // bytes, a power of two
	Compression Compression
	Plan        PlanStats
	Time        time.Time // UTC after opening
	Labels      map[string]string
	Floor       blockstore.Position // what was born at or before it is the collector's
}

// Commit is one state of an image: what anyone may read of it and what is sealed.
type Commit struct {
	blockstore.CommitPublic
	Body
}

type bodyWire struct {
	Size        uint64            `cbor:"1,keyasint"`
	BlockSize   uint64            `cbor:"2,keyasint"`
	Compression uint8             `cbor:"3,keyasint"`
	Plan        [5]uint64         `cbor:"4,keyasint"`
	Time        uint64            `cbor:"5,keyasint"`
	Labels      map[string]string `cbor:"6,keyasint"`
	Floor       [3]uint64         `cbor:"7,keyasint"`
}

func (b *Body) encode() ([]byte, error) {
	w, err := b.wire()
	if err != nil {
		return nil, fmt.Errorf("record: seal commit: %w", err)
	}
	return encode("commit", &w)
}

func decodeBody(b []byte) (Body, error) {
	const what = "commit"
	var w bodyWire
	if err := decode(what, b, &w); err != nil {
		return Body{}, err
	}
	body, err := w.body()
	if err != nil {
		return Body{}, &blockstore.CorruptError{What: what, Cause: err}
	}
	return body, nil
}

func (b *Body) wire() (w bodyWire, err error) {
	p := &b.Plan
	if b.Size < 0 || b.BlockSize < 0 || p.LinkBits < 0 || p.RTT < 0 {
		return w, fmt.Errorf("size %d, blocks of %d, link of %d bit/s and %v", b.Size, b.BlockSize, p.LinkBits, p.RTT)
	}
	w = bodyWire{
		Size:        uint64(b.Size),
		BlockSize:   uint64(b.BlockSize),
		Compression: uint8(b.Compression),
		Plan:        [5]uint64{uint64(p.LinkBits), uint64(p.RTT), p.Planned, p.Merged, p.Count},
		Labels:      b.Labels,
		Floor:       [3]uint64{uint64(b.Floor.Era), uint64(b.Floor.Term), uint64(b.Floor.Sequence)},
	}
	if w.Time, err = nanoseconds(b.Time); err != nil {
		return w, err
	}
	return w, w.check()
}

func (w *bodyWire) check() error {
	switch {
	case w.Size < 1 || w.Size > MaxImageSize:
		return fmt.Errorf("size %d", w.Size)
	case w.BlockSize < MinBlockSize || w.BlockSize > MaxBlockSize || bits.OnesCount64(w.BlockSize) != 1:
		return fmt.Errorf("blocks of %d bytes", w.BlockSize)
	case Compression(w.Compression) > S2:
		return fmt.Errorf("%v", Compression(w.Compression))
	case w.Plan[0] > math.MaxInt64 || w.Plan[1] > math.MaxInt64:
		return fmt.Errorf("link of %d bit/s and %d ns", w.Plan[0], w.Plan[1])
	}
	return checkLabels(w.Labels)
}

func checkLabels(labels map[string]string) error {
	for k, v := range labels {
		if k == "" || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("label %q is not text", k)
		}
	}
	return nil
}

func (w *bodyWire) body() (b Body, err error) {
	if err := w.check(); err != nil {
		return b, err
	}
	b = Body{
		Size:        int64(w.Size),
		BlockSize:   int64(w.BlockSize),
		Compression: Compression(w.Compression),
		Plan: PlanStats{
			LinkBits: int64(w.Plan[0]),
			RTT:      time.Duration(w.Plan[1]),
			Planned:  w.Plan[2],
			Merged:   w.Plan[3],
			Count:    w.Plan[4],
		},
		Labels: w.Labels,
		Floor: blockstore.Position{
			Era:      blockstore.Era(w.Floor[0]),
			Term:     blockstore.Term(w.Floor[1]),
			Sequence: blockstore.Sequence(w.Floor[2]),
		},
	}
	b.Time, err = fromNanoseconds(w.Time)
	return b, err
}

// listed reports whether the public part of c lists the epoch.
func listed(c *blockstore.CommitPublic, id crypto.EpochID) bool {
	for i := range c.Epochs {
		if c.Epochs[i].ID == id {
			return true
		}
	}
	return false
}

// Commit seals the body of c and has all of the record signed: sign returns the 64
// bytes of the holder's signature (crypto.SignCommit). The epoch must be one that c
// lists.
func (s Seal) Commit(c *Commit, sign func(b []byte) []byte) ([]byte, error) {
	if !listed(&c.CommitPublic, s.Epoch.ID()) {
		return nil, fmt.Errorf("record: seal commit: it does not list epoch %v", s.Epoch.ID())
	}
	body, err := c.encode()
	if err != nil {
		return nil, err
	}
	public, err := blockstore.EncodeCommitPublic(&c.CommitPublic)
	if err != nil {
		return nil, fmt.Errorf("record: seal commit: %w", err)
	}
	b, err := s.record(blockstore.KindCommit, crypto.NoRegion, crypto.NewSalt(), public, body)
	if err != nil {
		return nil, err
	}
	sig := sign(b)
	if len(sig) != signatureSize {
		return nil, fmt.Errorf("record: seal commit: a signature of %d bytes", len(sig))
	}
	return append(b, sig...), nil
}

// OpenCommit opens a whole commit record. It checks neither the signature nor the
// lease that it was made under.
func OpenCommit(k *crypto.Keyring, raw []byte) (*Commit, error) {
	p, err := blockstore.ParseCommit(raw)
	if err != nil {
		return nil, err
	}
	if !listed(&p.CommitPublic, p.Header.Epoch) {
		return nil, corrupt("commit", "sealed with epoch %x, which it does not list", p.Header.Epoch)
	}
	b, err := openBody(nil, k, p.Header, p.AD, p.Sealed, blockstore.KindCommit, crypto.NoRegion)
	if err != nil {
		return nil, err
	}
	body, err := decodeBody(b)
	if err != nil {
		return nil, err
	}
	return &Commit{CommitPublic: p.CommitPublic, Body: body}, nil
}
