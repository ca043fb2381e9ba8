package blockstore

import (
	"context"
	"sync"
)

const gatherBytes = 8 << 20 // of objects, before they go to the store

// Batch gathers objects into bounded batches. Whoever fills a batch stores it, so
// sealing and storing overlap and memory stays bounded. Safe for concurrent use.
type Batch struct {
	store *Store
	mu    sync.Mutex // guards what follows
	batch []Object
	bytes int
}

// NewBatch begins an empty batch.
func NewBatch(s *Store) *Batch { return &Batch{store: s} }

// Add takes objects; they are durable after Flush, or sooner.
func (b *Batch) Add(ctx context.Context, objects ...Object) error {
	for _, o := range objects {
		var full []Object
		b.mu.Lock()
		b.batch = append(b.batch, o)
		b.bytes += len(o.Bytes)
		if b.bytes >= gatherBytes {
			full, b.batch, b.bytes = b.batch, nil, 0
		}
		b.mu.Unlock()
		if full != nil {
			if err := b.store.PutObjects(ctx, full); err != nil {
				return err
			}
		}
	}
	return nil
}

// AddSmall takes one object and gives its reference.
func (b *Batch) AddSmall(ctx context.Context, raw []byte) (SmallRef, error) {
	o := Object{ID: IDOf(raw), Bytes: raw}
	return SmallRef{ID: o.ID, Length: uint32(len(raw))}, b.Add(ctx, o)
}

// Flush stores the rest. Nobody may add meanwhile.
func (b *Batch) Flush(ctx context.Context) error {
	b.mu.Lock()
	rest := b.batch
	b.batch, b.bytes = nil, 0
	b.mu.Unlock()
	if len(rest) == 0 {
		return nil
	}
	return b.store.PutObjects(ctx, rest)
}
