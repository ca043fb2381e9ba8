package storetest

import (
	"fmt"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Record is one key of a store and its value (docs/format.md §10).
type Record struct{ Key, Value []byte }

// Read gives every record of a store that no process has open, by key.
func Read(dir string) ([]Record, error) {
	var list []Record
	err := with(dir, func(db *badger.DB) error {
		return db.View(func(txn *badger.Txn) error {
			it := txn.NewIterator(badger.DefaultIteratorOptions)
			defer it.Close()
			for it.Rewind(); it.Valid(); it.Next() {
				v, err := it.Item().ValueCopy(nil)
				if err != nil {
					return err
				}
				list = append(list, Record{it.Item().KeyCopy(nil), v})
			}
			return nil
		})
	})
	return list, err
}

// Write puts records; one without a value is deleted.
func Write(dir string, records ...Record) error {
	return with(dir, func(db *badger.DB) error {
		return db.Update(func(txn *badger.Txn) error {
			for _, r := range records {
				var err error
				if r.Value == nil {
					err = txn.Delete(r.Key)
				} else {
					err = txn.Set(r.Key, r.Value)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func with(dir string, fn func(db *badger.DB) error) error {
	db, err := badger.Open(badger.DefaultOptions(filepath.Join(dir, "badger")).
		WithValueThreshold(1 << 10).WithValueLogFileSize(64 << 20).WithNumLevelZeroTables(1).
		WithSyncWrites(true).WithCompression(options.None).WithMemTableSize(256 << 10).WithBypassLockGuard(true).WithLogger(nil))
	if err != nil {
		return fmt.Errorf("storetest: %w", err)
	}
	if err := fn(db); err != nil {
		_ = db.Close()
		return fmt.Errorf("storetest: %w", err)
	}
	return db.Close()
}
