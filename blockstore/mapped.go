package blockstore

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/sealdisk/sealdisk/blockstore/valuelog"
)

// Badger reads and writes its value logs through mappings, and their pages would stay in
// this process's memory for good.
const (
	mappedCheck = 32 << 20 // bytes read or written between two looks
	mappedMost  = 40 << 20
)

// mapped keeps the memory of mapped files bounded.
type mapped struct {
	bytes atomic.Int64  // read and written since the last look
	bulk  atomic.Bool   // some of them were written, and will not be read soon
	wake  chan struct{} // there is reason to look
	kept  string        // what was written up to this value log stays in the page cache
	// Held shared by what makes Badger unmap a value log, exclusively to free their pages.
	unmapping sync.RWMutex
}

// touched counts bytes of a value log that were read or written, and says whether it is
// time for a look.
func (m *mapped) touched(n int) bool {
	if m.bytes.Add(int64(n)) < mappedCheck {
		return false
	}
	m.bytes.Store(0)
	return true
}

func (m *mapped) wakeUp() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// looked counts a look at a value. Looks are quick, and who frees their pages in the
// background may not get a core for hundreds of them: so the one that is due does it.
func (s *Store) looked() {
	if !s.mapped.touched(fault) {
		return
	}
	if n, err := valuelog.Resident(); err != nil || n <= mappedMost {
		return
	}
	if !s.mapped.lock(context.Background(), 20) {
		s.mapped.wakeUp()
		return
	}
	defer s.mapped.unmapping.Unlock()
	if err := valuelog.Unmap(s.dirSync.path); err != nil {
		s.opt.Logger.Debug("memory of mapped value logs", "error", err)
	}
}

// closeIterator closes an iterator: the last one deletes what was collected meanwhile.
func (s *Store) closeIterator(it *badger.Iterator) {
	s.mapped.unmapping.RLock()
	defer s.mapped.unmapping.RUnlock()
	it.Close()
	s.files.Prune()
}

// keepMapped frees mapped pages when they are many, until ctx ends.
func (s *Store) keepMapped(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.mapped.wake:
		}
		if err := s.freeMapped(ctx); err != nil && ctx.Err() == nil {
			s.opt.Logger.Debug("memory of mapped value logs", "error", err) // the next look may succeed
		}
	}
}

// freeMapped also takes what was written in bulk out of the page cache: the next bytes
// take its pages, instead of those of what is in use.
func (s *Store) freeMapped(ctx context.Context) error {
	bulk := s.mapped.bulk.Swap(false)
	n, err := valuelog.Resident()
	if err != nil || n <= mappedMost && !bulk {
		return err
	}
	if !s.mapped.lock(ctx, 200) {
		s.mapped.bulk.CompareAndSwap(false, bulk)
		return nil
	}
	defer s.mapped.unmapping.Unlock()
	if err := valuelog.Unmap(s.dirSync.path); err != nil {
		return err
	}
	if bulk {
		s.mapped.kept, err = valuelog.Evict(s.dirSync.path, s.mapped.kept)
	} else {
		s.mapped.kept, err = valuelog.Newest(s.dirSync.path)
	}
	return err
}

// lock takes the lock if nobody holds it for so many milliseconds: who waits for it would hold up all
// reads behind a value log that is rewritten.
func (m *mapped) lock(ctx context.Context, patience int) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range patience {
		if m.unmapping.TryLock() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// Place is where the bytes of an object lie. They never change there; when the store
// has moved them, reading them fails and [Store.Find] finds them again.
type Place = valuelog.Place

// Find tells where the bytes of an object lie, without a look at them: reading at a place
// is cheaper than [Store.Get], and needs neither a page fault nor a read for the bytes
// before. It is false for objects that are not here, or have no place.
func (s *Store) Find(id ObjectID) (p Place, ok bool, err error) {
	if err := s.Err(); err != nil {
		return Place{}, false, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			s.stranded.Store(true)
			err = &CorruptError{What: "object", Key: id.String(), Cause: faultError(r)}
		}
	}()
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(keyObject(id))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return &CorruptError{What: "object", Key: id.String(), Cause: err}
		}
		p, ok = s.files.Pointed(item)
		return nil
	})
	return p, ok, err
}

// Append appends the bytes of an object to dst, for who wants all of them, and not from
// memory: reading in sequence is quicker than [Store.Get] would be. Errors are those of Get.
func (s *Store) Append(ctx context.Context, dst []byte, id ObjectID) ([]byte, error) {
	n := len(dst)
	if p, ok, err := s.Find(id); err == nil && ok && ctx.Err() == nil {
		dst = slices.Grow(dst, p.Size())[:n+p.Size()]
		if p.ReadAt(dst[n:], 0) == nil {
			return dst, nil
		}
	}
	err := s.Get(ctx, id, func(b []byte) error {
		dst = append(dst[:n], b...)
		return nil
	})
	if err != nil {
		return dst[:n], err
	}
	return dst, nil
}
