package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/sealdisk/sealdisk/blockstore/valuelog"
)

// Badger learns which bytes of a value log are dead when it compacts the keys that led
// to them, and deletes only files it knows to be dead enough. So: push the deletions
// out of the memtable, compact, drop what is dead; empty what is mostly dead, and again.
const (
	reclaimLeast  = 64 << 20
	reclaimPart   = 2       // or half of what lives
	shortLeast    = 1 << 30 // room is short below this
	shortPart     = 16      // or below a sixteenth of what lives
	almostAllDead = 0.9
	discardRatio  = 0.3 // a value log is emptied once so much of it is dead
	emptyMost     = 16  // value logs, before Badger is asked to drop them
	// Writers wait for a pass of reclaim at one and a half times the live bytes, so that
	// the files stay below three times.
	throttleLeast = 256 << 20
)

// passes lets writers wait for the reclaim loop.
type passes struct {
	mu     sync.Mutex
	done   chan struct{} // closed after the pass that is running or will be next
	futile int64         // dead bytes that are no reason for a pass: the last one left as many
}

func (p *passes) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done = make(chan struct{})
	}
	return p.done
}

func (p *passes) ended(left int64) {
	p.mu.Lock()
	p.futile = left + reclaimLeast/2
	p.mu.Unlock()
	p.wake()
}

// wake lets who waits look again.
func (p *passes) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done != nil {
		close(p.done)
		p.done = nil
	}
}

func (p *passes) worth(dead int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return dead > p.futile
}

func (s *Store) wakeReclaim() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) reclaimLoop(ctx context.Context) {
	defer s.passes.ended(math.MaxInt64 / 2) // nobody waits for a loop that is gone
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		dead := s.counts.dead.Load()
		if dead <= s.deadMost() || !s.passes.worth(dead) || s.stranded.Load() {
			s.passes.wake() // who saw more dead bytes looks again
			continue
		}
		if _, err := s.reclaimTo(ctx, s.deadKept); err != nil && ctx.Err() == nil {
			s.opt.Logger.Warn("reclaim", "error", err)
		}
		s.passes.ended(s.counts.dead.Load())
	}
}

// deadMost is how many dead bytes are no reason to collect value logs: hardly any when
// room is short.
func (s *Store) deadMost() int64 {
	if s.short() {
		return reclaimLeast
	}
	return max(reclaimLeast, s.counts.live.Load()/reclaimPart)
}

func (s *Store) short() bool {
	avail, _, err := s.Free()
	return err == nil && avail < max(shortLeast, s.counts.live.Load()/shortPart)
}

// deadKept is how many a pass leaves: the value logs that are most dead come first, and
// what lives in the others goes on dying.
func (s *Store) deadKept() int64 { return s.deadMost() / 8 * 7 }

// throttle makes a writer wait for reclaim when dead bytes grow faster than they are
// given back, unless reclaim cannot help.
func (s *Store) throttle(ctx context.Context) error {
	for {
		done := s.passes.next()
		dead := s.counts.dead.Load()
		if dead <= max(throttleLeast, s.counts.live.Load()*3/2) || !s.passes.worth(dead) || s.stranded.Load() {
			return nil
		}
		s.wakeReclaim()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
		}
	}
}

// Reclaim gives the space of dead bytes back to the file system, as far as Badger can
// find them, and returns how many bytes its value logs shrank by. It runs beside reads and
// writes; the store also does so by itself, as far as need be, when more than 64 MiB and
// half of the live bytes are dead. [ErrNoSpace]: not even the reserve holds what must be moved.
func (s *Store) Reclaim(ctx context.Context) (freed int64, err error) {
	return s.reclaimTo(ctx, func() int64 { return 0 })
}

// reclaimTo is Reclaim that leaves so many dead bytes.
func (s *Store) reclaimTo(ctx context.Context, keep func() int64) (freed int64, err error) {
	s.reclaiming.Lock()
	defer s.reclaiming.Unlock()
	before, err := s.vlogBytes()
	if err != nil {
		return 0, err
	}
	if err := s.reclaim(ctx, keep); err != nil {
		return 0, err
	}
	after, err := s.vlogBytes()
	if err != nil {
		return 0, err
	}
	return max(0, before-after), s.recountDead()
}

// reclaim drops value logs that are dead and empties those that are most dead, in turn.
func (s *Store) reclaim(ctx context.Context, keep func() int64) error {
	m := mover{s: s, emptied: make(map[string]bool), room: make([]byte, 0, maxBatch)}
	for first := true; ; first = false {
		if err := errors.Join(ctx.Err(), s.Err()); err != nil {
			return err
		}
		if s.stranded.Load() {
			return fmt.Errorf("blockstore: reclaim: %w after a fault on the disk", ErrFailed)
		}
		if s.stillDropping() {
			return nil
		}
		dropped, err := s.dropDead(ctx, &m)
		if err != nil || len(s.dropping) > 0 {
			return err
		}
		excess := s.counts.dead.Load() - keep()
		if excess <= 0 || dropped == 0 && !first {
			return nil
		}
		if s.short() {
			excess = 1 // the room of one is wanted for the next
		}
		if n, err := s.empty(ctx, &m, discardRatio, excess); n == 0 {
			return err
		}
	}
}

// stillDropping says whether a value log that was dropped is there yet: an iterator is open. Nothing
// can be given back then, and Badger must not be asked for that value log again.
func (s *Store) stillDropping() bool {
	s.dropping = slices.DeleteFunc(s.dropping, func(path string) bool {
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist)
	})
	return len(s.dropping) > 0
}

// dropDead lets Badger find out what is dead, and delete the value logs in which nothing
// lives. It would also move what lives, but each entry with an fsync of its own.
func (s *Store) dropDead(ctx context.Context, m *mover) (dropped int, err error) {
	if err := s.flushMemtable(ctx); err != nil {
		return 0, err
	}
	if err := s.db.Flatten(1); err != nil { // a level that another compaction holds; the next pass has it
		s.opt.Logger.Debug("flatten", "error", err)
	}
	_, failed := s.empty(ctx, m, almostAllDead, math.MaxInt64)
	for ; ; dropped++ {
		if err := errors.Join(ctx.Err(), s.Err()); err != nil {
			return dropped, err
		}
		// Badger takes the one with most dead bytes. It may know of few in one that is empty:
		// what a crash has left was never anybody's.
		list, err := valuelog.MostDead(s.dirSync.path, discardRatio)
		if err != nil {
			return dropped, err
		}
		if len(list) == 0 || !m.emptied[list[0].Path] {
			break
		}
		err = s.collectVlog(discardRatio)
		if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) {
			break
		}
		if err != nil {
			return dropped, s.fail(fmt.Errorf("badger: collect a value log: %w", err))
		}
		if s.dropping = append(s.dropping, list[0].Path); s.stillDropping() {
			break
		}
	}
	if err := errors.Join(s.Err(), s.recountDead()); err != nil {
		return dropped, err
	}
	s.passes.wake() // perhaps that is enough for who waits
	if dropped == 0 {
		return 0, failed
	}
	return dropped, nil
}

// empty empties value logs of which a part is dead, the most dead first, until excess dead
// bytes were in them, and returns how many.
func (s *Store) empty(ctx context.Context, m *mover, part float64, excess int64) (emptied int, err error) {
	list, err := valuelog.MostDead(s.dirSync.path, part)
	if err != nil {
		return 0, err
	}
	for _, log := range list {
		if emptied == emptyMost || excess <= 0 {
			break
		}
		if m.emptied[log.Path] {
			continue
		}
		err := m.empty(ctx, log.Path)
		if errors.Is(err, valuelog.ErrDamaged) { // what lives in it stays where it is
			s.opt.Logger.Warn("value log is not collected", "error", err)
			if err := valuelog.Overlook(log.Path); err != nil {
				return emptied, err
			}
			continue
		}
		if errors.Is(err, os.ErrNotExist) { // Badger has just deleted it
			continue
		}
		if err != nil {
			return emptied, err
		}
		m.emptied[log.Path] = true
		emptied++
		excess -= log.Dead
	}
	return emptied, nil
}

// mover puts what lives in a value log a second time, in large batches. Then all in it is
// dead, for good.
type mover struct {
	s       *Store
	emptied map[string]bool // paths
	batch   []entry
	room    []byte // for the values of batch
}

type entry struct {
	key, value []byte
	version    uint64
}

func (m *mover) empty(ctx context.Context, path string) error {
	m.batch, m.room = m.batch[:0], m.room[:0]
	txn := m.s.db.NewTransaction(false) // begun after the file was finished: it sees all of it that lives
	defer txn.Discard()
	err := valuelog.Entries(path, func(e *valuelog.Entry) error {
		if e.Room() > maxBatch {
			return fmt.Errorf("%w: value of %d bytes", valuelog.ErrDamaged, e.Room())
		}
		if len(m.room)+e.Room() > cap(m.room) {
			if err := m.flush(ctx); err != nil {
				return err
			}
		}
		start := len(m.room)
		room, err := e.Append(m.room) // the dead are checked as well: a key may be damaged
		if err != nil {
			return err
		}
		lives, err := m.s.lives(txn, e.Key, room[start:], e.Version)
		if err != nil || !lives {
			return errors.Join(err, ctx.Err())
		}
		m.room = room
		m.batch = append(m.batch, entry{slices.Clone(e.Key), room[start:], e.Version})
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := m.flush(ctx); err != nil {
		return err
	}
	return valuelog.Void(path)
}

// flush writes the batch while nobody else writes: what is deleted must not come back.
func (m *mover) flush(ctx context.Context) error {
	s, size := m.s, int64(len(m.room))
	if size == 0 {
		return nil
	}
	if err := s.inflight.Acquire(ctx, size); err != nil {
		return err
	}
	defer s.inflight.Release(size)
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.space.roomToRewrite(size); err != nil {
		return err
	}
	var moved int64
	err := s.writeLocked(size, false, func() error {
		txn := s.db.NewTransaction(false)
		defer txn.Discard()
		wb := s.db.NewWriteBatch()
		defer wb.Cancel()
		for _, e := range m.batch {
			lives, err := s.lives(txn, e.key, e.value, e.version)
			if err != nil {
				return err
			}
			if !lives {
				continue
			}
			if err := wb.Set(e.key, e.value); err != nil {
				return err
			}
			moved += int64(len(e.key) + len(e.value))
		}
		return wb.Flush()
	})
	s.counts.dead.Add(moved)
	m.batch, m.room = m.batch[:0], m.room[:0]
	return err
}

// collectVlog has Badger collect one value log while nothing else is written: it takes its
// newest version at the start of that without a lock, and moving beside deletions has cost
// it data before. One that was voided takes a moment; readers and journals do not wait.
func (s *Store) collectVlog(ratio float64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mapped.unmapping.RLock()
	defer s.mapped.unmapping.RUnlock()
	defer s.files.Prune()
	return s.db.RunValueLogGC(ratio)
}

// flushMemtable fills the memtable with keys that are deleted in the next one, so that
// it is written out: there is no call for it. Keys `z` carry no meaning.
func (s *Store) flushMemtable(ctx context.Context) error {
	const size = 1000 // below the value threshold: it must go into the memtable
	keys := make([][]byte, memTableSize/size+8)
	for i := range keys {
		keys[i] = binary.BigEndian.AppendUint16([]byte("z"), uint16(i))
	}
	value := make([]byte, size)
	err := s.batch(ctx, memTableSize, false, func(wb *badger.WriteBatch) error {
		for _, key := range keys {
			if err := wb.Set(key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.deleteKeys(ctx, keys); err != nil {
		return err
	}
	return s.awaitFlush(ctx)
}

// awaitFlush waits until the full memtables became tables: their files go then. Under
// load there is always a next one, so it waits no longer than a second.
func (s *Store) awaitFlush(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		files, err := filepath.Glob(filepath.Join(s.dir, "badger", "*.mem"))
		if err != nil || len(files) <= 1 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// vlogBytes is how much is written in all value logs.
func (s *Store) vlogBytes() (int64, error) {
	n, err := valuelog.Written(s.dirSync.path)
	if err != nil {
		return 0, fmt.Errorf("blockstore: %w", err)
	}
	return n, nil
}

// recountDead sets the count of dead bytes right: all that is written and does not live.
func (s *Store) recountDead() error {
	n, err := s.vlogBytes()
	if err == nil {
		s.counts.dead.Store(max(0, n-s.counts.live.Load()))
	}
	return err
}
