package image

import (
	"cmp"
	"context"
	"sync"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

const putBytes = 8 << 20 // of objects, gathered before they go to the store

// putter gathers objects into bounded batches. Whoever fills a batch stores it, so
// sealing and storing overlap and memory stays bounded. Safe for concurrent use.
type putter struct {
	store *blockstore.Store
	mu    sync.Mutex // guards what follows
	batch []blockstore.Object
	bytes int
}

func newPutter(s *blockstore.Store) *putter { return &putter{store: s} }

// add takes objects; they are durable after flush, or sooner.
func (p *putter) add(ctx context.Context, objects ...blockstore.Object) error {
	for _, o := range objects {
		var full []blockstore.Object
		p.mu.Lock()
		p.batch = append(p.batch, o)
		p.bytes += len(o.Bytes)
		if p.bytes >= putBytes {
			full, p.batch, p.bytes = p.batch, nil, 0
		}
		p.mu.Unlock()
		if full != nil {
			if err := p.store.PutObjects(ctx, full); err != nil {
				return err
			}
		}
	}
	return nil
}

// small takes one object and gives its reference.
func (p *putter) small(ctx context.Context, b []byte) (blockstore.SmallRef, error) {
	o := blockstore.Object{ID: blockstore.IDOf(b), Bytes: b}
	return blockstore.SmallRef{ID: o.ID, Length: uint32(len(b))}, p.add(ctx, o)
}

// flush stores the rest. Nobody may add meanwhile.
func (p *putter) flush(ctx context.Context) error {
	p.mu.Lock()
	rest := p.batch
	p.batch, p.bytes = nil, 0
	p.mu.Unlock()
	if len(rest) == 0 {
		return nil
	}
	return p.store.PutObjects(ctx, rest)
}

func compare(a, b uint64) int { return cmp.Compare(a, b) }

// masters lists the epochs of a keyring as a commit does.
func masters(k *crypto.Keyring) []blockstore.EpochMaster {
	list := make([]blockstore.EpochMaster, len(k.Epochs))
	for i, e := range k.Epochs {
		list[i] = blockstore.EpochMaster{ID: e.ID(), Master: e.Master()}
	}
	return list
}
