package blockstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"
)

// Object is sealed bytes and their id.
type Object struct {
	ID    ObjectID
	Bytes []byte // 1 byte to 1 MiB + 64 KiB

	lent bool // Bytes are used again once they are stored
}

// counts is our own account of objects: Badger's knows of dead bytes only what it
// has compacted.
type counts struct {
	objects atomic.Int64
	live    atomic.Int64 // bytes of objects that are there
	dead    atomic.Int64 // bytes in value logs that no key leads to; an estimate

	deleting sync.Mutex // held from finding objects until they are gone: each is counted once
}

func (c *counts) put(size int64) {
	c.objects.Add(1)
	c.live.Add(size)
}

func (c *counts) removed(size int64) {
	c.objects.Add(-1)
	c.live.Add(-size)
	c.dead.Add(size)
}

// count takes stock when the store is opened: one pass over the keys.
func (s *Store) count() error {
	var n, live int64
	err := s.keys(context.Background(), []byte("o"), func(it item) error {
		n++
		live += it.size
		return nil
	})
	if err != nil {
		return err
	}
	s.counts.objects.Store(n)
	s.counts.live.Store(live)
	return s.recountDead()
}

// stored is about what an object occupies in Badger: key with version, header, checksum.
func stored(o Object) int64 { return int64(len(o.Bytes)) + 33 + 8 + 10 + 4 }

// PutObjects stores objects and returns when all of them are durable. It does not
// hash: the caller answers for each id being the SHA-256 of the bytes. An object that
// is there already with the same bytes is not written again; a different, so corrupt,
// one is replaced. Large calls are split into batches of 8 MiB; after an error some
// of them may have been stored. [ErrNoSpace]: refused before the reserve was touched.
// Bytes must not change before PutObjects returns.
func (s *Store) PutObjects(ctx context.Context, objs []Object) error {
	if err := s.Err(); err != nil {
		return err
	}
	for i := range objs {
		if n := len(objs[i].Bytes); n == 0 || n > maxObject {
			return fmt.Errorf("blockstore: put %v: %d bytes, want 1 to %d", objs[i].ID, n, maxObject)
		}
	}
	for len(objs) > 0 {
		if err := s.throttle(ctx); err != nil {
			return err
		}
		n, size := 0, 0
		for n < len(objs) && (n == 0 || size+len(objs[n].Bytes) <= maxBatch) {
			size += len(objs[n].Bytes)
			n++
		}
		if err := s.putBatch(ctx, objs[:n]); err != nil {
			return err
		}
		objs = objs[n:]
	}
	return nil
}

func (s *Store) putBatch(ctx context.Context, objs []Object) error {
	fresh := make([]Object, 0, len(objs))
	var size int64
	for _, o := range objs {
		old, same, err := s.holds(o)
		if err != nil {
			return err
		}
		if same {
			continue
		}
		if old > 0 {
			s.counts.removed(old)
		}
		fresh = append(fresh, o)
		size += stored(o)
	}
	if len(fresh) == 0 {
		return nil
	}
	err := s.batch(ctx, size, true, func(wb *badger.WriteBatch) error {
		for _, o := range fresh {
			if err := wb.Set(keyObject(o.ID), o.Bytes); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range fresh {
		s.counts.put(stored(o))
	}
	return nil
}

// holds reports whether exactly this object is there; if another one stands in its
// place, old is the size of that. A kept object counts as put for a running collection.
func (s *Store) holds(o Object) (old int64, same bool, err error) {
	s.gc.sweep.RLock()
	defer s.gc.sweep.RUnlock()
	key := keyObject(o.ID)
	old, ok, err := s.exists(key)
	if err != nil || !ok {
		return 0, false, err
	}
	err = s.view("object", key, o.ID.String(), func(b []byte) error {
		same = bytes.Equal(b, o.Bytes)
		return nil
	})
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return 0, false, err
	}
	if same {
		s.gc.touch(o.ID)
	}
	return old, same, nil
}

// Get calls fn with the sealed bytes of an object and returns fn's error. The bytes
// lie in mapped memory that is valid until fn returns; fn must not change them, must
// not block on a network and must not call the store. The bytes are not hashed.
// [ErrNotFound]: absent. [ErrCorrupt]: there and unreadable, a failing disk included.
func (s *Store) Get(ctx context.Context, id ObjectID, fn func(b []byte) error) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.view("object", keyObject(id), id.String(), fn)
}

// Has reports whether an object is there. One that is will be kept by a collection
// that is running, or that starts while a [Hold] is held.
func (s *Store) Has(id ObjectID) (bool, error) {
	_, here, err := s.has(id)
	return here, err
}

// has is Has, and gives about the length of the object.
func (s *Store) has(id ObjectID) (length int64, here bool, err error) {
	if err := s.Err(); err != nil {
		return 0, false, err
	}
	s.gc.sweep.RLock()
	defer s.gc.sweep.RUnlock()
	err = s.item(keyObject(id), func(i *badger.Item) { length, here = i.ValueSize(), true })
	if here && err == nil {
		s.gc.touch(id)
	}
	return length, here, err
}

// lengthSlack is how far the length that Badger tells of a value may be from the real one.
const lengthSlack = 8

// HasOf is Has of an object of which somebody else says how long it is, in bytes: [ErrCorrupt] if the
// one that is here is longer or shorter than that by more than the index leaves open, which is 8.
func (s *Store) HasOf(id ObjectID, length uint32) (bool, error) {
	n, here, err := s.has(id)
	if err != nil || !here {
		return false, err
	}
	if n < int64(length)-lengthSlack || n > int64(length)+lengthSlack {
		return false, corrupt("object", "%v of about %d bytes, said to have %d", id, n, length)
	}
	return true, nil
}

// Size returns the length of an object in bytes, without reading it all.
func (s *Store) Size(id ObjectID) (int64, error) {
	var n int64
	err := s.Get(context.Background(), id, func(b []byte) error {
		n = int64(len(b))
		return nil
	})
	return n, err
}

// Objects calls fn for each object, ascending by id, as of one moment. stored is about
// what it occupies in bytes.
func (s *Store) Objects(ctx context.Context, fn func(id ObjectID, stored int64) error) error {
	if err := s.Err(); err != nil {
		return err
	}
	return s.keys(ctx, []byte("o"), func(it item) error {
		var id ObjectID
		if len(it.key) != 1+len(id) {
			return corrupt("object key", "% x", it.key)
		}
		copy(id[:], it.key[1:])
		return fn(id, it.size)
	})
}

// DeleteObjects removes objects, and before them their complete marks, durably.
// Absent ones are passed over. Their bytes count as dead until they are reclaimed.
// While a collection walks maps it is put off, and not durable on return.
func (s *Store) DeleteObjects(ctx context.Context, ids []ObjectID) error {
	if err := s.Err(); err != nil {
		return err
	}
	if s.gc.postpone(ids, nil) {
		return nil
	}
	for len(ids) > 0 {
		n := min(len(ids), deleteBatch)
		if _, err := s.deleteBatch(ctx, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

const deleteBatch = 4096

// deleteBatch returns the bytes that died.
func (s *Store) deleteBatch(ctx context.Context, ids []ObjectID) (int64, error) {
	s.counts.deleting.Lock()
	defer s.counts.deleting.Unlock()
	var keys [][]byte
	var sizes []int64
	var dead int64
	for _, id := range ids {
		key := keyComplete(id)
		_, marked, err := s.exists(key)
		if err != nil {
			return 0, err
		}
		if marked {
			keys = append(keys, key)
		}
	}
	for _, id := range ids {
		key := keyObject(id)
		size, ok, err := s.exists(key)
		if err != nil {
			return 0, err
		}
		if ok {
			keys = append(keys, key)
			sizes = append(sizes, size)
			dead += size
		}
	}
	if err := s.deleteKeys(ctx, keys); err != nil {
		return 0, err
	}
	for _, size := range sizes {
		s.counts.removed(size)
	}
	s.wakeReclaim()
	return dead, nil
}

// deleteKeys removes keys in this order, durably.
func (s *Store) deleteKeys(ctx context.Context, keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	return s.batch(ctx, int64(64*len(keys)), false, func(wb *badger.WriteBatch) error {
		for _, key := range keys {
			if err := wb.Delete(key); err != nil {
				return err
			}
		}
		return nil
	})
}

// MarkComplete records durably that these nodes and all beneath them are in the store.
func (s *Store) MarkComplete(ctx context.Context, ids ...ObjectID) error {
	return s.batch(ctx, int64(64*len(ids)), true, func(wb *badger.WriteBatch) error {
		for _, id := range ids {
			if err := wb.Set(keyComplete(id), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// Unmark takes the complete mark off nodes, durably.
func (s *Store) Unmark(ctx context.Context, ids ...ObjectID) error {
	if err := s.Err(); err != nil {
		return err
	}
	var keys [][]byte
	for _, id := range ids {
		if _, marked, err := s.exists(keyComplete(id)); err != nil {
			return err
		} else if marked {
			keys = append(keys, keyComplete(id))
		}
	}
	return s.deleteKeys(ctx, keys)
}

// IsComplete reports whether a node is marked as complete.
func (s *Store) IsComplete(id ObjectID) (bool, error) {
	if err := s.Err(); err != nil {
		return false, err
	}
	_, ok, err := s.exists(keyComplete(id))
	return ok, err
}

// Batch gathers objects into bounded batches, and stores one while the next are gathered.
// Safe for concurrent use. Whoever has added to it ends it with Flush, Abort or Wait.
type Batch struct {
	// Bulk: nothing of it will be read soon, so it is kept out of the page cache. Set
	// before the first Add.
	Bulk bool

	ctx   context.Context
	store *Store
	puts  errgroup.Group // under way
	mu    sync.Mutex     // guards what follows
	batch []Object
	bytes int
	done  []ObjectID // handed to the store
	err   error      // of the first put that failed
}

// batchesAhead are stored at once at most; who adds more waits.
const batchesAhead = 2

// NewBatch begins an empty batch. Storing it ends with ctx.
func NewBatch(ctx context.Context, s *Store) *Batch {
	b := &Batch{ctx: ctx, store: s}
	b.puts.SetLimit(batchesAhead)
	return b
}

// Add takes objects; they are durable after Flush, or sooner. The error may be that of
// objects added before.
func (b *Batch) Add(objects ...Object) error {
	for _, o := range objects {
		var full []Object
		b.mu.Lock()
		if b.bytes+len(o.Bytes) > maxBatch {
			full = b.takeLocked()
		}
		b.batch = append(b.batch, o)
		b.bytes += len(o.Bytes)
		err := b.err
		b.mu.Unlock()
		if err != nil {
			return err
		}
		b.put(full)
	}
	return nil
}

// put stores objects beside its caller, or waits for others to be stored.
func (b *Batch) put(full []Object) {
	if len(full) == 0 {
		return
	}
	b.puts.Go(func() error {
		err := b.store.PutObjects(b.ctx, full)
		if err != nil {
			b.mu.Lock()
			b.err = cmp.Or(b.err, err)
			b.mu.Unlock()
			return nil
		}
		giveBack(full)
		if b.Bulk {
			b.store.mapped.bulk.Store(true)
		}
		return nil
	})
}

// Buffer gives room for the bytes of an object of about n bytes, for [Batch.AddBuffer].
func (b *Batch) Buffer(n int) []byte {
	class := bits.Len(uint(n) * 8 / 9)
	if class < leastBuffer || class > mostBuffer {
		return make([]byte, 0, n)
	}
	if p, ok := buffers[class-leastBuffer].Get().(*[]byte); ok {
		return (*p)[:0]
	}
	return make([]byte, 0, bufferSize(class))
}

// Buffers of some classes are used again. One holds a power of two and its seal.
const leastBuffer, mostBuffer = 15, 20

var buffers [mostBuffer - leastBuffer + 1]sync.Pool

func bufferSize(class int) int { return 9 << class / 8 }

// AddBuffer is Add for an object whose bytes are in a Buffer, if they had room there, and
// in nobody else's hands: once they are stored the buffer is used again.
func (b *Batch) AddBuffer(o Object) error {
	o.lent = true
	return b.Add(o)
}

func giveBack(objects []Object) {
	for _, o := range objects {
		n := cap(o.Bytes)
		if class := bits.Len(uint(n)) - 1; o.lent && class >= leastBuffer && class <= mostBuffer && n == bufferSize(class) {
			b := o.Bytes[:0]
			buffers[class-leastBuffer].Put(&b)
		}
	}
}

// AddSmall takes one object and gives its reference.
func (b *Batch) AddSmall(raw []byte) (SmallRef, error) {
	o := Object{ID: IDOf(raw), Bytes: raw}
	return SmallRef{ID: o.ID, Length: uint32(len(raw))}, b.Add(o)
}

// Wait returns when nothing is being stored any more. Nobody may add meanwhile.
func (b *Batch) Wait() { _ = b.puts.Wait() } // the error is in err

// Flush stores the rest and returns when all is durable. Nobody may add meanwhile.
func (b *Batch) Flush() error {
	b.mu.Lock()
	rest := b.takeLocked()
	b.mu.Unlock()
	b.put(rest)
	b.Wait()
	return b.err
}

func (b *Batch) takeLocked() []Object {
	full := b.batch
	b.batch, b.bytes = nil, 0
	for _, o := range full {
		b.done = append(b.done, o.ID)
	}
	return full
}

// Abort deletes what was stored. Only for objects that nothing names. Nobody may add
// meanwhile.
func (b *Batch) Abort(ctx context.Context) error {
	b.Wait()
	b.mu.Lock()
	ids := b.done
	b.batch, b.bytes, b.done = nil, 0, nil
	b.mu.Unlock()
	return b.store.DeleteObjects(ctx, ids)
}
