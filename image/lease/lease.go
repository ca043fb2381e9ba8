package lease

import (
	"errors"
	"fmt"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// Link is one record of a lease chain.
type Link struct {
	blockstore.Lease
	ID blockstore.LeaseID
}

// Chain is an image's lease records from the first on, each checked.
type Chain []Link

// Load reads and checks the lease chain of an image (docs/format.md §8).
func Load(st *blockstore.Store, id blockstore.ImageID) (Chain, error) {
	raws, err := st.Leases(id)
	if err != nil {
		return nil, err
	}
	return Parse(id, raws)
}

// Parse checks the records of an image's lease chain, in order.
func Parse(id blockstore.ImageID, raws [][]byte) (Chain, error) {
	var chain Chain
	for _, raw := range raws {
		r, err := blockstore.ParseLease(raw)
		if err != nil {
			return nil, err
		}
		if chain, err = chain.extend(id, r, blockstore.LeaseIDOf(raw)); err != nil {
			return nil, err
		}
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("lease: %w", blockstore.ErrNotFound)
	}
	return chain, nil
}

// Newest is the record that says who holds the lease now.
func (c Chain) Newest() Link { return c[len(c)-1] }

// ErrSuperseded: a commit was signed by a former holder after the term had ended.
var ErrSuperseded = errors.New("signed after its holder had given the lease away")

// CheckHead is Check for the newest commit: it belongs to the newest term, or it is the
// one that ended the term before ([ErrSuperseded]).
func (c Chain) CheckHead(image blockstore.ImageID, id blockstore.CommitID, raw []byte) (*blockstore.CommitPublic, error) {
	public, term, err := c.Check(image, id, raw)
	if err != nil {
		return nil, err
	}
	newest := c.Newest()
	if term.ID != newest.ID && (newest.LastCommit == nil || *newest.LastCommit != id) {
		return nil, fmt.Errorf("commit %v: %w", id, ErrSuperseded)
	}
	return public, nil
}

// extend checks one record against the chain before it.
func (c Chain) extend(image blockstore.ImageID, r *blockstore.LeaseRecord, id blockstore.LeaseID) (Chain, error) {
	bad := func(why string) error {
		return &blockstore.CorruptError{What: "lease", Key: id.String(), Cause: errors.New(why)}
	}
	if r.Image != image {
		return nil, bad("of another image")
	}
	signer := [32]byte(image)
	if len(c) == 0 {
		if r.Previous != nil {
			return nil, bad("the chain does not begin with a first record")
		}
	} else {
		last := c[len(c)-1]
		switch {
		case r.Previous == nil || *r.Previous != last.ID:
			return nil, bad("does not follow the record before it")
		case r.Term != last.Term+1 || r.Era < last.Era:
			return nil, bad("era or term out of order")
		case r.Era == last.Era:
			signer = last.Holder
		}
	}
	if !crypto.Verify(signer, crypto.SignLease, r.Signed, r.Signature) {
		return nil, bad("signature")
	}
	return append(c, Link{Lease: r.Lease, ID: id}), nil
}

// Check checks a commit of the image: shape, digest, lease, signature.
func (c Chain) Check(image blockstore.ImageID, id blockstore.CommitID, raw []byte) (*blockstore.CommitPublic, Link, error) {
	bad := func(why string) (*blockstore.CommitPublic, Link, error) {
		return nil, Link{}, &blockstore.CorruptError{What: "commit", Key: id.String(), Cause: errors.New(why)}
	}
	r, err := blockstore.ParseCommit(raw)
	if err != nil {
		return nil, Link{}, err
	}
	if blockstore.CommitIDOf(raw) != id {
		return bad("digest differs")
	}
	if r.Image != image {
		return bad("of another image")
	}
	for _, l := range c {
		if l.ID != r.CommitPublic.Lease {
			continue
		}
		if l.Era != r.Era || l.Term != r.Term {
			return bad("era or term is not its lease's")
		}
		if !crypto.Verify(l.Holder, crypto.SignCommit, r.Signed, r.Signature) {
			return bad("signature")
		}
		return &r.CommitPublic, l, nil
	}
	return bad("its lease is not in the chain")
}

// Sign encodes a lease and signs it.
func Sign(l *blockstore.Lease, sign func(what string, b []byte) [64]byte) ([]byte, error) {
	b, err := blockstore.EncodeLease(l)
	if err != nil {
		return nil, err
	}
	sig := sign(crypto.SignLease, b)
	return append(b, sig[:]...), nil
}
