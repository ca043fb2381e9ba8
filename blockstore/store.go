package blockstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore/valuelog"
)

// Options of a store. The zero value is usable.
type Options struct {
	Logger  *slog.Logger     // nil: nothing is logged
	Reserve int64            // bytes kept allocated against a full disk; 0: 256 MiB
	Now     func() time.Time // nil: time.Now
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Reserve <= 0 {
		o.Reserve = 256 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Store is one open store directory (docs/format.md §10). All methods may be called
// concurrently; Close waits for none of them and must come last.
type Store struct {
	id   StoreID
	dir  string
	opt  Options
	lock *os.File
	hold *os.File // Badger's folder, locked as Badger does it
	db   *badger.DB

	failed   atomic.Pointer[error] // why the store stopped
	stranded atomic.Bool           // a fault inside Badger may have left one of its locks held
	closed   atomic.Bool

	inflight    *semaphore.Weighted // bytes handed to Badger and not yet durable
	unwritten   atomic.Int64        // the same, for the space keeper
	space       space
	mapped      mapped
	files       valuelog.Files
	dirSync     dirSync
	counts      counts
	gc          gcState
	writing     sync.RWMutex // held shared by writers, exclusive to rewrite a value log
	reclaiming  sync.Mutex
	dropping    []string     // value logs that Badger deletes when the last iterator is closed; guarded by reclaiming
	journalSize atomic.Int64 // of the files that the pool is for, in bytes
	passes      passes
	wake        chan struct{} // reclaim may have something to do
	stop        context.CancelFunc
	background  sync.WaitGroup
}

const (
	formatVersion = 1
	formatMagic   = "sealdisk"
	formatSize    = len(formatMagic) + 4 + 16
	maxBatch      = 8 << 20 // larger ones are slower, and each is one unit of loss of time on a full disk
	maxInflight   = 32 << 20
)

// Create makes an empty store in dir, which must be absent, empty, or left over from
// a Create that did not finish. [ErrExists]: it is a store already.
func Create(dir string, o Options) error {
	o = o.withDefaults()
	if err := checkVirgin(dir); err != nil {
		return err
	}
	for _, d := range []string{dir, filepath.Join(dir, "badger"), filepath.Join(dir, "journal")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("blockstore: create: %w", err)
		}
	}
	lock, err := takeLock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	var sp space
	if err := sp.open(dir, o.Reserve); err != nil {
		return err
	}
	defer sp.close()
	if sp.have < sp.want {
		return fmt.Errorf("blockstore: create: reserve of %d bytes: %w", sp.want, ErrNoSpace)
	}
	s := &Store{dir: dir, opt: o}
	if s.db, err = s.openBadger(); err != nil {
		return err
	}
	err = s.writeFormat()
	if cerr := s.db.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("blockstore: create: %w", cerr)
	}
	if err != nil {
		return err
	}
	for _, d := range []string{filepath.Join(dir, "badger"), dir, filepath.Dir(filepath.Clean(dir))} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// checkVirgin refuses a directory that holds anything that Create does not make.
func checkVirgin(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("blockstore: create: %w", err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "badger", "journal", "reserve", "lock", "lost+found":
		default:
			return fmt.Errorf("blockstore: create: %s is not empty and no store (it has %q)", dir, e.Name())
		}
	}
	return nil
}

func (s *Store) writeFormat() error {
	switch _, err := s.readFormat(); {
	case err == nil:
		return fmt.Errorf("blockstore: create: %s: %w", s.dir, ErrExists)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	v := binary.BigEndian.AppendUint32([]byte(formatMagic), formatVersion)
	var id StoreID
	rand.Read(id[:])
	err := s.db.Update(func(txn *badger.Txn) error { return txn.Set(keyFormat(), append(v, id[:]...)) })
	if err != nil {
		return fmt.Errorf("blockstore: create: %w", err)
	}
	return s.Err()
}

// readFormat reads the `f` key, before anything else of a store is believed.
func (s *Store) readFormat() (StoreID, error) {
	var id StoreID
	err := s.view("store format", keyFormat(), "", func(b []byte) error {
		if len(b) < len(formatMagic)+4 || string(b[:len(formatMagic)]) != formatMagic {
			return corrupt("store format", "% x", b[:min(len(b), 32)])
		}
		if v := binary.BigEndian.Uint32(b[len(formatMagic):]); v != formatVersion {
			return fmt.Errorf("blockstore: open: %w: store of version %d, known is %d", ErrFormat, v, formatVersion)
		}
		if len(b) != formatSize {
			return corrupt("store format", "%d bytes", len(b))
		}
		copy(id[:], b[len(formatMagic)+4:])
		return nil
	})
	return id, err
}

// Open opens the store in dir for this process alone. It fails with [InUseError] if
// another process has it, [ErrNotFound] if dir is no store, [ErrFormat] if it is of a
// version that this program does not know, and [ErrCorrupt] if Badger cannot read it.
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "badger", "MANIFEST")); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, missingManifest(dir)
		}
		return nil, fmt.Errorf("blockstore: open: %w", err)
	}
	s := &Store{
		dir: dir, opt: o.withDefaults(),
		inflight: semaphore.NewWeighted(maxInflight),
		wake:     make(chan struct{}, 1),
		mapped:   mapped{wake: make(chan struct{}, 1)},
	}
	var err error
	if s.lock, err = takeLock(dir); err != nil {
		return nil, err
	}
	if s.hold, err = takeBadgerLock(filepath.Join(dir, "badger")); err != nil {
		s.lock.Close()
		return nil, err
	}
	if err := s.openLocked(); err != nil {
		if s.db != nil {
			s.db.Close()
		}
		s.space.close()
		s.hold.Close()
		s.lock.Close()
		return nil, err
	}
	bg, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.background.Go(func() { s.keepSpace(bg) })
	s.background.Go(func() { s.reclaimLoop(bg) })
	s.background.Go(func() { s.keepMapped(bg) })
	return s, nil
}

// missingManifest tells a store whose Badger lost its manifest from no store at all.
func missingManifest(dir string) error {
	if files, _ := filepath.Glob(filepath.Join(dir, "badger", "*.vlog")); len(files) > 0 {
		return corrupt("store", "%s has value logs and no manifest", dir)
	}
	return fmt.Errorf("blockstore: open: no store in %s: %w", dir, ErrNotFound)
}

func (s *Store) openLocked() (err error) {
	if err := os.MkdirAll(filepath.Join(s.dir, "journal"), 0o700); err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	if err := s.space.open(s.dir, s.opt.Reserve); err != nil {
		return err
	}
	if s.space.have < s.space.want {
		s.opt.Logger.Warn("the disk is too full for the whole reserve", "want", s.space.want, "have", s.space.have)
	}
	if room, err := s.space.roomToClose(); err != nil {
		return err
	} else if !room {
		return fmt.Errorf("blockstore: open: not even the reserve is left: %w", ErrNoSpace)
	}
	s.dirSync.path = filepath.Join(s.dir, "badger")
	s.files.Dir = s.dirSync.path
	if s.db, err = s.openBadger(); err != nil {
		return err
	}
	if s.id, err = s.readFormat(); err != nil {
		if errors.Is(err, ErrNotFound) {
			return corrupt("store", "the format key is gone")
		}
		return err
	}
	if err := s.count(); err != nil {
		return err
	}
	if s.mapped.kept, err = valuelog.Newest(s.dirSync.path); err != nil {
		return fmt.Errorf("blockstore: open: %w", err)
	}
	_ = valuelog.Scattered(s.dirSync.path) // a hint
	return s.cleanJournals()
}

// ID returns the store's id.
func (s *Store) ID() StoreID { return s.id }

// Dir returns the store's directory, as it was given to Open.
func (s *Store) Dir() string { return s.dir }

// Err returns nil, or why the store stopped: an [ErrFailed] or [ErrClosed].
func (s *Store) Err() error {
	if e := s.failed.Load(); e != nil {
		return *e
	}
	if s.closed.Load() {
		return fmt.Errorf("blockstore: %w", ErrClosed)
	}
	return nil
}

// fail stops the store. The first cause stays.
func (s *Store) fail(cause error) error {
	err := fmt.Errorf("blockstore: %w: %w", ErrFailed, cause)
	if s.failed.CompareAndSwap(nil, &err) {
		s.opt.Logger.Error("store stopped", "cause", cause)
	}
	return s.Err()
}

// Close ends background work and releases the store. Everything acknowledged is
// durable already; Close only shortens the next Open.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return fmt.Errorf("blockstore: %w", ErrClosed)
	}
	s.stop()
	s.background.Wait()
	s.files.Close()
	var err error
	// A lock that a fault left held inside Badger would hang its Close for ever.
	// What it would write then was durable before.
	// Nor may it write tables where there is no room for them.
	if avail, ferr := s.space.roomToClose(); ferr == nil && avail && !s.stranded.Load() {
		err = s.db.Close()
	}
	s.space.close()
	s.hold.Close()
	if cerr := s.lock.Close(); err == nil {
		err = cerr
	}
	if e := s.failed.Load(); e != nil {
		return *e
	}
	if err != nil {
		return fmt.Errorf("blockstore: close: %w", err)
	}
	return nil
}

// takeLock locks STORE/lock for this process and notes in it who that is.
func takeLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("blockstore: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, holderOf(path)
		}
		return nil, fmt.Errorf("blockstore: lock: %w", err)
	}
	// The name of the program alone: its arguments name images.
	note := fmt.Sprintf("%d\n%s\n", os.Getpid(), filepath.Base(os.Args[0]))
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(note), 0)
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) { // the note is a courtesy; a full disk must still open
		f.Close()
		return nil, fmt.Errorf("blockstore: lock: %w", err)
	}
	return f, nil
}

// takeBadgerLock locks Badger's folder as Badger itself would, so that no other program
// that has Badger in it uses the store beside us.
func takeBadgerLock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("blockstore: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, holderOf(filepath.Join(dir, "LOCK")) // where Badger notes its process
		}
		return nil, fmt.Errorf("blockstore: lock: %w", err)
	}
	return f, nil
}

func holderOf(path string) *InUseError {
	e := &InUseError{Holder: path}
	b, err := os.ReadFile(path)
	if err != nil {
		return e
	}
	pid, command, _ := strings.Cut(string(b), "\n")
	if e.PID, err = strconv.Atoi(pid); err != nil {
		e.PID = 0
	}
	e.Command = strings.TrimSpace(command)
	return e
}
