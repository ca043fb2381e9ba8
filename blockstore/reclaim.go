package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/sealdisk/sealdisk/blockstore/valuelog"
)

// Badger learns which bytes of a value log are dead when it compacts the keys that led
// to them, and rewrites only files it knows to be dead enough. So: push the deletions
// out of the memtable, compact, then collect value logs.
const (
	reclaimLeast  = 64 << 20
	reclaimPart   = 2       // or half of what lives
	shortLeast    = 1 << 30 // room is short below this
	shortPart     = 16      // or below a sixteenth of what lives
	almostAllDead = 0.9
	discardRatio  = 0.3 // a value log is rewritten once so much of it is dead
	// Writers wait for a pass of reclaim at one and a half times the live bytes, so that
	// the files stay below three times.
	throttleLeast = 256 << 20
	recountPart   = 256
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
		if _, err := s.reclaimUntil(ctx, s.deadEnough); err != nil && ctx.Err() == nil {
			s.opt.Logger.Warn("reclaim", "error", err)
		}
		s.passes.ended(s.counts.dead.Load())
	}
}

// deadMost is how many dead bytes are no reason to collect value logs: hardly any when
// room is short.
func (s *Store) deadMost() int64 {
	live := s.counts.live.Load()
	if avail, _, err := s.Free(); err == nil && avail < max(shortLeast, live/shortPart) {
		return reclaimLeast
	}
	return max(reclaimLeast, live/reclaimPart)
}

// deadEnough ends a pass well below that and not sooner or later: the value logs that are
// most dead come first, and what is left of the others goes on dying.
func (s *Store) deadEnough() bool { return s.counts.dead.Load() <= s.deadMost()/4*3 }

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
	return s.reclaimUntil(ctx, func() bool { return false })
}

// reclaimUntil is Reclaim that ends as soon as enough says so.
func (s *Store) reclaimUntil(ctx context.Context, enough func() bool) (freed int64, err error) {
	s.reclaiming.Lock()
	defer s.reclaiming.Unlock()
	before, err := s.vlogBytes()
	if err != nil {
		return 0, err
	}
	if err := s.reclaim(ctx, enough); err != nil {
		return 0, err
	}
	after, err := s.vlogBytes()
	if err != nil {
		return 0, err
	}
	return max(0, before-after), s.recountDead()
}

func (s *Store) reclaim(ctx context.Context, enough func() bool) error {
	if err := s.Err(); err != nil {
		return err
	}
	if s.stranded.Load() {
		return fmt.Errorf("blockstore: reclaim: %w after a fault on the disk", ErrFailed)
	}
	if err := s.flushMemtable(ctx); err != nil {
		return err
	}
	if err := s.db.Flatten(1); err != nil { // a level that another compaction holds; the next pass has it
		s.opt.Logger.Debug("flatten", "error", err)
	}
	// First what needs hardly any room: it may make the room for the rest.
	for _, pass := range []struct {
		ratio float64
		room  int64
	}{{almostAllDead, lastResort + vlogFileSize/10}, {discardRatio, headroom/2 + vlogFileSize*7/10}} {
		if err := s.collectVlogs(ctx, pass.ratio, pass.room, enough); err != nil {
			return err
		}
	}
	return nil
}

// collectVlogs rewrites value logs, the most dead first, until none is dead enough or enough
// says so; room is what one may take.
func (s *Store) collectVlogs(ctx context.Context, ratio float64, room int64, enough func() bool) error {
	_ = valuelog.InSequence(s.dirSync.path) // as Badger reads them now; a hint
	defer func() { _ = valuelog.Scattered(s.dirSync.path) }()
	for n := int64(1); !enough(); n++ {
		if err := errors.Join(ctx.Err(), s.Err()); err != nil {
			return err
		}
		if err := s.space.roomToRewrite(room); err != nil {
			return err
		}
		err := s.collectVlog(ratio)
		if ferr := s.freeMapped(ctx); ferr != nil { // what it read, before the next one
			s.opt.Logger.Debug("memory of mapped value logs", "error", ferr)
		}
		if errors.Is(err, badger.ErrNoRewrite) || errors.Is(err, badger.ErrRejected) {
			return s.Err()
		}
		if err != nil {
			return s.fail(fmt.Errorf("badger: collect a value log: %w", err))
		}
		// Counting looks at all of them: with thousands it waits for a few collected ones.
		if files := (s.counts.live.Load() + s.counts.dead.Load()) / vlogFileSize; n%(1+files/recountPart) != 0 {
			continue
		}
		if err := s.recountDead(); err != nil {
			return err
		}
		s.passes.wake() // perhaps that is enough for who waits
	}
	return nil
}

// collectVlog rewrites one value log while nothing else is written: Badger takes its
// newest version at the start of a rewrite without a lock, and rewriting beside
// deletions has cost it data before. A file holds 64 MiB, so writers wait for a fraction
// of a second; readers and journals do not.
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

// roomToRewrite makes room for the live part of one value log, out of the reserve if
// need be: that is one of the things it is for.
func (p *space) roomToRewrite(need int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = time.Now()
	avail, _, err := p.free()
	if err != nil {
		return err
	}
	if avail < need && p.have > 0 {
		if err := p.resize(max(0, p.have-(need-avail))); err != nil {
			return err
		}
		if avail, _, err = p.free(); err != nil {
			return err
		}
	}
	if avail < need {
		return fmt.Errorf("blockstore: reclaim: %w", ErrNoSpace)
	}
	return p.allocateVlog(need/2, avail)
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

// touched counts bytes of a value log that were read or written.
func (m *mapped) touched(n int) {
	if m.bytes.Add(int64(n)) < mappedCheck {
		return
	}
	m.bytes.Store(0)
	select {
	case m.wake <- struct{}{}:
	default:
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
	if !s.mapped.lock(ctx) {
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

// lock takes the lock if nobody holds it for long: who waits for it would hold up all
// reads behind a value log that is rewritten.
func (m *mapped) lock(ctx context.Context) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 200 {
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
