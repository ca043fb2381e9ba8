package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

const (
	valueThreshold = 1 << 10
	vlogFileSize   = 64 << 20
	// Discard statistics, and so reclaimed space, come from compaction alone, and
	// compaction only from full memtables: they must be small.
	memTableSize = 256 << 10
)

// Keys of docs/format.md §10.
func keyFormat() []byte               { return []byte("f") }
func keyCatalogue() []byte            { return []byte("c") }
func keyObject(id ObjectID) []byte    { return append([]byte("o"), id[:]...) }
func keyComplete(id ObjectID) []byte  { return append([]byte("w"), id[:]...) }
func keyHead(image ImageID) []byte    { return append([]byte("h"), image[:]...) }
func keyCommits(image ImageID) []byte { return append([]byte("k"), image[:]...) }
func keyLeases(image ImageID) []byte  { return append([]byte("l"), image[:]...) }
func keyCommit(image ImageID, id CommitID) []byte {
	return append(keyCommits(image), id[:]...)
}

// openBadger opens Badger and turns every way in which it refuses or swallows damage
// into an error.
func (s *Store) openBadger() (db *badger.DB, err error) {
	dir := filepath.Join(s.dir, "badger")
	if err := checkDiscard(dir); err != nil {
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, corrupt("store", "badger: %v", r)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	opt := s.badgerOptions(dir)
	if err := mend(dir, opt); err != nil {
		return nil, err
	}
	if err := checkTables(dir, opt); err != nil {
		return nil, err
	}
	db, err = badger.Open(opt)
	if err != nil {
		return nil, &CorruptError{What: "store", Cause: fmt.Errorf("badger: %w", err)}
	}
	if e := s.failed.Load(); e != nil { // Badger skips a table that it cannot read, and logs it
		db.Close()
		return nil, &CorruptError{What: "store", Cause: *e}
	}
	return db, nil
}

func (s *Store) badgerOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithValueThreshold(valueThreshold).
		WithValueLogFileSize(vlogFileSize).
		WithMemTableSize(memTableSize).
		WithNumLevelZeroTables(1).
		WithNumCompactors(2).
		WithSyncWrites(true).
		WithDetectConflicts(false).
		WithCompression(options.None).
		WithBlockCacheSize(0).                             // blocks are mapped and not compressed
		WithIndexCacheSize(0).                             // a few bytes for each 4 KiB of keys
		WithChecksumVerificationMode(options.OnBlockRead). // and all of them in checkTables
		WithMetricsEnabled(false).
		WithBypassLockGuard(true). // STORE/lock is ours, and says more
		WithLogger(&badgerLog{s: s, log: s.opt.Logger})
}

// checkTables reads every table that the manifest names, whole: in one that is damaged
// Badger would panic where nobody can recover. Tables hold keys and small values only.
func checkTables(dir string, opt badger.Options) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, opt.ExternalMagicVersion, opt)
	if err != nil {
		return &CorruptError{What: "store", Key: badger.ManifestFilename, Cause: err}
	}
	for id := range manifest.Tables {
		if err := checkTable(table.NewFilename(id, dir), opt); err != nil {
			return &CorruptError{What: "store", Key: filepath.Base(table.NewFilename(id, dir)), Cause: err}
		}
	}
	return nil
}

func checkTable(path string, opt badger.Options) (err error) {
	m, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer m.Close(-1)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	if len(m.Data) < 16 {
		return fmt.Errorf("%d bytes", len(m.Data))
	}
	t, err := table.OpenTable(m, table.Options{ReadOnly: true, BlockSize: opt.BlockSize, ChkMode: options.NoVerification})
	if err != nil {
		return err
	}
	return t.VerifyChecksum()
}

// checkDiscard removes Badger's file of discard statistics if it is not whole: Badger
// ends the process over it, and it holds nothing but hints.
func checkDiscard(dir string) error {
	path := filepath.Join(dir, "DISCARD")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	if discardSound(b) {
		return nil
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	return nil
}

// discardSound: entries {u64 file, u64 bytes} ascend strictly and end with a zero.
func discardSound(b []byte) bool {
	if len(b) < 1<<20 || len(b)%16 != 0 {
		return false
	}
	last := uint64(0)
	for ; len(b) > 0; b = b[16:] {
		fid, dead := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
		if fid == 0 {
			return true
		}
		if fid <= last || fid > math.MaxUint32 || dead > math.MaxUint32 {
			return false
		}
		last = fid
	}
	return false
}

// badgerLog passes Badger's messages on. An error of Badger's means that a write, a
// sync or a compaction failed: the store stops, whatever the caller was told.
type badgerLog struct {
	s   *Store
	log *slog.Logger
}

func (l *badgerLog) Errorf(format string, args ...any) {
	msg := strings.TrimSpace(fmt.Sprintf(format, args...))
	for _, reading := range []string{"Invalid read", "Unable to read", "Key: "} {
		if strings.HasPrefix(msg, reading) { // one bad value; the read returns an error as well
			l.log.Warn("badger: " + msg)
			return
		}
	}
	l.s.fail(errors.New("badger: " + msg))
}

func (l *badgerLog) Warningf(format string, args ...any) { l.emit(slog.LevelWarn, format, args) }
func (l *badgerLog) Infof(format string, args ...any)    { l.emit(slog.LevelDebug, format, args) }
func (l *badgerLog) Debugf(format string, args ...any)   { l.emit(slog.LevelDebug-1, format, args) }

func (l *badgerLog) emit(level slog.Level, format string, args []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, "badger: "+strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}

// fault is what a look at a value may bring into memory, in bytes: a large page.
const fault = 2 << 20

// view calls fn with the value of a key, in Badger's mapped memory. A missing key is
// ErrNotFound; an empty value, an unreadable one and a memory fault are a
// CorruptError of that key. Errors of fn come back as they are.
func (s *Store) view(what string, key []byte, name string, fn func(b []byte) error) (err error) {
	for range 3 { // between look-up and look its value log may have been emptied and dropped
		called := false
		err = s.viewOnce(what, key, name, func(b []byte) error {
			called = true
			return fn(b)
		})
		if called || !errors.Is(err, ErrCorrupt) || s.stranded.Load() {
			break
		}
	}
	s.looked()
	return err
}

func (s *Store) viewOnce(what string, key []byte, name string, fn func(b []byte) error) (err error) {
	inFn := false
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		_, fault := r.(interface{ Addr() uintptr })
		if inFn && !fault {
			panic(r) // the caller's bug
		}
		if !inFn {
			s.stranded.Store(true)
		}
		err = &CorruptError{What: what, Key: name, Cause: faultError(r)}
	}()
	return s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return fmt.Errorf("blockstore: %s %s: %w", what, name, ErrNotFound)
		}
		if err != nil {
			return &CorruptError{What: what, Key: name, Cause: err}
		}
		var fnErr error
		// If the read fails Badger opens an iterator of its own, and closing that can unmap.
		s.mapped.unmapping.RLock()
		held := true
		defer func() {
			if held {
				s.mapped.unmapping.RUnlock()
			}
		}()
		err = item.Value(func(b []byte) error {
			s.mapped.unmapping.RUnlock()
			held = false
			if len(b) == 0 {
				return errors.New("empty value")
			}
			inFn = true
			fnErr = fn(b)
			inFn = false
			return nil
		})
		if err != nil {
			return &CorruptError{What: what, Key: name, Cause: err}
		}
		return fnErr
	})
}

func faultError(r any) error {
	if e, ok := r.(runtime.Error); ok {
		return fmt.Errorf("reading failed: %w", e)
	}
	return fmt.Errorf("reading failed: %v", r)
}

// read is view with a copy of the value.
func (s *Store) read(what string, key []byte, name string) (value []byte, err error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	err = s.view(what, key, name, func(b []byte) error {
		value = append([]byte(nil), b...)
		return nil
	})
	return value, err
}

// item is what a key-only iteration sees. Key is valid during the call.
type item struct {
	key     []byte
	size    int64 // stored bytes, key and framing included
	version uint64
}

// keys calls fn for each key with the prefix, ascending, as of one moment.
func (s *Store) keys(ctx context.Context, prefix []byte, fn func(it item) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(runtime.Error); !ok {
				panic(r)
			}
			s.stranded.Store(true)
			err = &CorruptError{What: "store", Cause: faultError(r)}
		}
	}()
	return s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer s.closeIterator(it)
		for it.Rewind(); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			i := it.Item()
			if err := fn(item{key: i.Key(), size: i.EstimatedSize(), version: i.Version()}); err != nil {
				return err
			}
		}
		return nil
	})
}

// exists reports whether a key is there, and its stored size.
func (s *Store) exists(key []byte) (size int64, ok bool, err error) {
	err = s.item(key, func(i *badger.Item) { size, ok = i.EstimatedSize(), true })
	return size, ok, err
}

// item calls fn with what the index has of a key, if it is there.
func (s *Store) item(key []byte, fn func(*badger.Item)) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			s.stranded.Store(true)
			err = &CorruptError{What: "store", Cause: faultError(r)}
		}
	}()
	return s.db.View(func(txn *badger.Txn) error {
		i, err := txn.Get(key)
		switch {
		case err == nil:
			fn(i)
		case !errors.Is(err, badger.ErrKeyNotFound):
			return &CorruptError{What: "store", Cause: err}
		}
		return nil
	})
}

// lives reports whether an entry of a value log is what its key has now. Badger has given
// a version twice if a crash took the first back. Objects and commits are named by what
// they are; for all else the value is compared.
func (s *Store) lives(txn *badger.Txn, key, value []byte, version uint64) (lives bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			s.stranded.Store(true)
			err = &CorruptError{What: "store", Cause: faultError(r)}
		}
	}()
	i, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, &CorruptError{What: "store", Cause: err}
	}
	if i.Version() != version || key[0] == 'o' || key[0] == 'k' {
		return i.Version() == version, nil
	}
	s.mapped.unmapping.RLock() // as in viewOnce
	defer s.mapped.unmapping.RUnlock()
	err = i.Value(func(b []byte) error {
		lives = bytes.Equal(b, value)
		return nil
	})
	return lives, err
}

// version returns Badger's clock: what is put from now on has a higher version.
func (s *Store) version() uint64 {
	txn := s.db.NewTransaction(false)
	defer txn.Discard()
	return txn.ReadTs()
}

// batch writes through fill, at most maxBatch bytes, and returns when all of it is
// durable. It is not atomic; it keeps the order. spend is false for deletions, which
// a nearly full disk must still allow.
func (s *Store) batch(ctx context.Context, bytes int64, spend bool, fill func(wb *badger.WriteBatch) error) error {
	return s.write(ctx, bytes, spend, func() error {
		wb := s.db.NewWriteBatch()
		defer wb.Cancel()
		if err := fill(wb); err != nil {
			return err
		}
		return wb.Flush()
	})
}

// transact writes through fill atomically and durably.
func (s *Store) transact(ctx context.Context, bytes int64, spend bool, fill func(txn *badger.Txn) error) error {
	return s.write(ctx, bytes, spend, func() error {
		txn := s.db.NewTransaction(true)
		defer txn.Discard()
		if err := fill(txn); err != nil {
			return err
		}
		return txn.Commit()
	})
}

func (s *Store) write(ctx context.Context, bytes int64, spend bool, do func() error) error {
	if err := s.Err(); err != nil {
		return err
	}
	weight := min(max(bytes, 1), maxInflight)
	if err := s.inflight.Acquire(ctx, weight); err != nil {
		return err
	}
	defer s.inflight.Release(weight)
	s.unwritten.Add(bytes)
	defer s.unwritten.Add(-bytes)
	s.writing.RLock()
	defer s.writing.RUnlock()
	return s.writeLocked(bytes, spend, do)
}

// writeLocked is write by who holds writing, shared or not, and a part of inflight.
func (s *Store) writeLocked(bytes int64, spend bool, do func() error) (err error) {
	if err := s.space.admit(s.unwritten.Load(), spend); err != nil {
		s.wakeReclaim() // there may be dead bytes to give back
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			s.stranded.Store(true)
			err = s.fail(fmt.Errorf("badger: %v", r))
		}
	}()
	if err := do(); err != nil {
		return s.fail(fmt.Errorf("badger: %w", err))
	}
	if s.mapped.touched(int(bytes)) {
		s.mapped.wakeUp()
	}
	if err := s.dirSync.sync(); err != nil {
		return s.fail(err)
	}
	return s.Err() // Badger only logs a failed sync of a value log
}

// dirSync makes names durable: Badger syncs a directory after creating a file in it,
// but does not wait for that.
type dirSync struct {
	path string
	mu   sync.Mutex
	seen time.Time // modification time of the directory when it was last synced
}

func (d *dirSync) sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	st, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("blockstore: %w", err)
	}
	if st.ModTime().Equal(d.seen) {
		return nil
	}
	if err := syncDir(d.path); err != nil {
		return err
	}
	// Time stamps are coarse: one that is still fresh may hide a later change.
	if d.seen = st.ModTime(); time.Since(d.seen) < 50*time.Millisecond {
		d.seen = time.Time{}
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("blockstore: sync: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("blockstore: sync %s: %w", path, err)
	}
	return nil
}
