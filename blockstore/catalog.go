package blockstore

import (
	"context"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// Catalogue returns the sealed catalogue record. [ErrNotFound]: none was put yet.
func (s *Store) Catalogue() ([]byte, error) {
	return s.read("catalogue", keyCatalogue(), "")
}

// PutCatalogue replaces the sealed catalogue record, durably.
func (s *Store) PutCatalogue(ctx context.Context, raw []byte) error {
	h, _, _, err := ParseRecord(raw)
	if err != nil {
		return err
	}
	if h.Kind != KindCatalogue || StoreID(h.Epoch) != s.id || len(h.Public) != 0 {
		return corrupt("catalogue", "%v of store %x with %d public bytes", h.Kind, h.Epoch, len(h.Public))
	}
	err = s.transact(ctx, int64(len(raw))+256, true, func(txn *badger.Txn) error { return txn.Set(keyCatalogue(), raw) })
	if err != nil {
		return fmt.Errorf("blockstore: catalogue: %w", err)
	}
	return nil
}
