package blockstore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// JournalHeaderSize is the size of a journal's header, and records begin on its
// multiples (docs/format.md §9).
const JournalHeaderSize = 4096

const (
	poolDir     = "pool" // beside the images' folders; no image has such a name
	poolFiles   = 4
	journalStep = 4 << 20 // a journal that outgrows its file grows by this
)

func (s *Store) journalDir(image ImageID) string {
	return filepath.Join(s.dir, "journal", image.String())
}

func (s *Store) pool() string { return filepath.Join(s.dir, "journal", poolDir) }

func journalName(image ImageID, n JournalNumber) string { return image.String() + "/" + n.String() }

// cleanJournals makes the pool and removes what a crash left half made in it.
func (s *Store) cleanJournals() error {
	if err := os.MkdirAll(s.pool(), 0o700); err != nil {
		return fmt.Errorf("blockstore: journal: %w", err)
	}
	fresh, err := filepath.Glob(filepath.Join(s.pool(), "fresh-*"))
	if err != nil {
		return fmt.Errorf("blockstore: journal: %w", err)
	}
	for _, path := range fresh {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("blockstore: journal: %w", err)
		}
	}
	return nil
}

// Journal is a journal that is written. Append and Sync may run concurrently.
type Journal struct {
	s    *Store
	name string
	f    *os.File

	mu     sync.Mutex
	end    int64 // where the next append goes
	size   int64 // allocated and zeroed up to here
	dead   error // after a failed write or sync
	closed bool
}

// CreateJournal makes journal n of an image with the given header (4,096 bytes) and
// size bytes of room, header included, allocated and written once, so that an append
// changes no metadata. The file and its name are durable on return. [ErrExists]: there is
// one. What lies beyond the header may be an older journal's.
func (s *Store) CreateJournal(image ImageID, n JournalNumber, header []byte, size int64) (*Journal, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	if len(header) != JournalHeaderSize || size < JournalHeaderSize || size%JournalHeaderSize != 0 {
		return nil, fmt.Errorf("blockstore: journal: header of %d bytes, size %d", len(header), size)
	}
	dir := s.journalDir(image)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, writeError("journal", err)
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return nil, s.fail(err)
	}
	f, path, err := s.journalFile(size)
	if err != nil {
		return nil, err
	}
	if err := s.placeJournal(f, path, header, filepath.Join(dir, n.String())); err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return &Journal{s: s, name: journalName(image, n), f: f, end: JournalHeaderSize, size: size}, nil
}

// placeJournal writes the header, then gives the file its name: a journal that can be
// found is never without its header.
func (s *Store) placeJournal(f *os.File, from string, header []byte, to string) error {
	if _, err := f.WriteAt(header, 0); err != nil {
		return writeError("journal", err)
	}
	if err := f.Sync(); err != nil {
		return s.fail(fmt.Errorf("journal: %w", err))
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("blockstore: journal %s: %w", to, ErrExists)
	}
	if err != nil {
		return writeError("journal", err)
	}
	if err := syncDir(filepath.Dir(to)); err != nil {
		return s.fail(err)
	}
	return nil
}

// journalFile takes a file of this size from the pool, or makes one there.
func (s *Store) journalFile(size int64) (f *os.File, path string, err error) {
	s.journalSize.Store(size)
	name := make([]byte, 8)
	rand.Read(name)
	path = filepath.Join(s.pool(), "fresh-"+hex.EncodeToString(name))
	retired, err := filepath.Glob(filepath.Join(s.pool(), "retired-*"))
	if err != nil {
		return nil, "", fmt.Errorf("blockstore: journal: %w", err)
	}
	for _, old := range retired {
		st, err := os.Stat(old)
		if err != nil || st.Size() != size || os.Rename(old, path) != nil {
			continue // another caller may have taken it
		}
		if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return nil, "", fmt.Errorf("blockstore: journal: %w", err)
		}
		return f, path, nil
	}
	avail, _, err := s.Free()
	if err != nil {
		return nil, "", err
	}
	if avail < size {
		return nil, "", fmt.Errorf("blockstore: journal: %w", ErrNoSpace)
	}
	if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, "", writeError("journal", err)
	}
	if err = allocate(f, 0, size); err == nil {
		err = zero(f, 0, size)
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return nil, "", err
	}
	return f, path, nil
}

// Append writes b, a multiple of 4,096 bytes, after what was appended before, with one
// write, and returns its offset in the file. It is durable after the next Sync.
// [ErrNoSpace]: nothing was appended, and a later Append may succeed. Any other error
// ends the journal and the store.
func (j *Journal) Append(b []byte) (off int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usableLocked(); err != nil {
		return 0, err
	}
	if len(b)%JournalHeaderSize != 0 {
		return 0, fmt.Errorf("blockstore: journal: append of %d bytes", len(b))
	}
	if need := j.end + int64(len(b)); need > j.size {
		if err := j.growLocked(need); err != nil {
			return 0, err
		}
	}
	if _, err := j.f.WriteAt(b, j.end); err != nil {
		if err = writeError("journal", err); errors.Is(err, ErrNoSpace) {
			return 0, err
		}
		return 0, j.dieLocked(err)
	}
	off = j.end
	j.end += int64(len(b))
	return off, nil
}

func (j *Journal) growLocked(need int64) error {
	step := max(journalStep, need-j.size)
	avail, _, err := j.s.Free()
	if err != nil {
		return err
	}
	if avail < step {
		return fmt.Errorf("blockstore: journal: %w", ErrNoSpace)
	}
	err = allocate(j.f, j.size, step)
	if err == nil {
		err = zero(j.f, j.size, step)
	}
	if err == nil {
		j.size += step
	}
	if err != nil && !errors.Is(err, ErrNoSpace) {
		return j.dieLocked(err)
	}
	return err
}

func (j *Journal) usableLocked() error {
	if j.dead != nil {
		return j.dead
	}
	if j.closed {
		return fmt.Errorf("blockstore: journal %s: %w", j.name, ErrClosed)
	}
	return j.s.Err()
}

func (j *Journal) dieLocked(cause error) error {
	j.dead = j.s.fail(fmt.Errorf("journal %s: %w", j.name, cause))
	return j.dead
}

// Sync makes everything durable that was appended before it was called. It is never
// tried again after a failure: the pages are gone, so the journal and the store end.
func (j *Journal) Sync() error {
	j.mu.Lock()
	err := j.usableLocked()
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := unix.Fdatasync(int(j.f.Fd())); err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.dieLocked(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.dead
}

// Close closes the file and syncs nothing. No Append or Sync may be under way.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return fmt.Errorf("blockstore: journal %s: %w", j.name, ErrClosed)
	}
	j.closed = true
	if err := j.f.Close(); err != nil {
		return fmt.Errorf("blockstore: journal: %w", err)
	}
	return nil
}

// JournalReader reads a journal file.
type JournalReader struct {
	f    *os.File
	size int64
}

// OpenJournal opens a journal for reading. [ErrNotFound]: there is none.
func (s *Store) OpenJournal(image ImageID, n JournalNumber) (*JournalReader, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(s.journalDir(image), n.String()))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("blockstore: journal %s: %w", journalName(image, n), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("blockstore: journal: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("blockstore: journal: %w", err)
	}
	return &JournalReader{f: f, size: st.Size()}, nil
}

// ReadAt is an io.ReaderAt over the whole file, header included.
func (r *JournalReader) ReadAt(p []byte, off int64) (int, error) { return r.f.ReadAt(p, off) }

// Size is the size of the file in bytes; records end somewhere before it.
func (r *JournalReader) Size() int64 { return r.size }

// Close closes the file.
func (r *JournalReader) Close() error { return r.f.Close() }

// Journals returns the numbers of an image's journals, ascending.
func (s *Store) Journals(image ImageID) ([]JournalNumber, error) {
	if err := s.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.journalDir(image))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("blockstore: journal: %w", err)
	}
	var ns []JournalNumber
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 16, 64)
		if err != nil || JournalNumber(n).String() != e.Name() {
			return nil, &CorruptError{What: "journal folder", Key: image.String(), Cause: fmt.Errorf("it has %q", e.Name())}
		}
		ns = append(ns, JournalNumber(n))
	}
	slices.Sort(ns)
	return ns, nil
}

// RemoveJournal removes a journal durably; its file may serve again. It must not be
// open. [ErrNotFound]: there is none.
func (s *Store) RemoveJournal(image ImageID, n JournalNumber) error {
	if err := s.Err(); err != nil {
		return err
	}
	path := filepath.Join(s.journalDir(image), n.String())
	retired, err := filepath.Glob(filepath.Join(s.pool(), "retired-*"))
	if err != nil {
		return fmt.Errorf("blockstore: journal: %w", err)
	}
	st, err := os.Stat(path)
	if err == nil && len(retired) < poolFiles && st.Size() == s.journalSize.Load() { // another size would serve nobody
		name := make([]byte, 8)
		rand.Read(name)
		err = os.Rename(path, filepath.Join(s.pool(), "retired-"+hex.EncodeToString(name)))
	} else {
		err = os.Remove(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("blockstore: journal %s: %w", journalName(image, n), ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("blockstore: journal: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return s.fail(err)
	}
	return nil
}

// removeJournals removes all journals of an image, and its folder.
func (s *Store) removeJournals(image ImageID) error {
	ns, err := s.Journals(image)
	if err != nil {
		return err
	}
	for _, n := range ns {
		if err := s.RemoveJournal(image, n); err != nil {
			return err
		}
	}
	if err := os.Remove(s.journalDir(image)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("blockstore: journal: %w", err)
	}
	if err := syncDir(filepath.Join(s.dir, "journal")); err != nil {
		return s.fail(err)
	}
	return nil
}
