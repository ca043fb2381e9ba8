package blockstore

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

var errSoon = errors.New("blockstore: not written yet")

type Options struct {
	Logger  *slog.Logger     // nil: discard
	Reserve int64            // bytes kept allocated for a full disk; 0: 256 MiB
	Now     func() time.Time // nil: time.Now
}

func Create(dir string, o Options) error                              { return errSoon }
func Open(ctx context.Context, dir string, o Options) (*Store, error) { return nil, errSoon }

type Store struct{}

func (s *Store) ID() StoreID  { return StoreID{} }
func (s *Store) Dir() string  { return "" }
func (s *Store) Err() error   { return errSoon } // nil, or why the store failed
func (s *Store) Close() error { return errSoon }

type Object struct {
	ID    ObjectID
	Bytes []byte
}

func (s *Store) PutObjects(ctx context.Context, objs []Object) error                 { return errSoon }
func (s *Store) Get(ctx context.Context, id ObjectID, fn func(b []byte) error) error { return errSoon }
func (s *Store) Has(id ObjectID) (bool, error)                                       { return false, errSoon }
func (s *Store) Size(id ObjectID) (int64, error)                                     { return 0, errSoon }
func (s *Store) DeleteObjects(ctx context.Context, ids []ObjectID) error             { return errSoon }
func (s *Store) Objects(ctx context.Context, fn func(id ObjectID, size int64) error) error {
	return errSoon
}                                                                        // ascending ids
func (s *Store) MarkComplete(ctx context.Context, ids ...ObjectID) error { return errSoon } // `w` marks
func (s *Store) IsComplete(id ObjectID) (bool, error)                    { return false, errSoon }

func (s *Store) PutCommit(ctx context.Context, image ImageID, raw []byte) (CommitID, error) {
	return CommitID{}, errSoon
} // commit and head, one durable transaction
func (s *Store) AddCommit(ctx context.Context, image ImageID, raw []byte) (CommitID, error) {
	return CommitID{}, errSoon
}                                                                              // commit only, head stays
func (s *Store) SetHead(ctx context.Context, image ImageID, id CommitID) error { return errSoon }
func (s *Store) Head(image ImageID) (CommitID, []byte, error)                  { return CommitID{}, nil, errSoon }
func (s *Store) Commit(image ImageID, id CommitID) ([]byte, error)             { return nil, errSoon }
func (s *Store) Commits(image ImageID) ([]CommitID, error)                     { return nil, errSoon }
func (s *Store) Images() ([]ImageID, error)                                    { return nil, errSoon }
func (s *Store) DeleteCommits(ctx context.Context, image ImageID, ids ...CommitID) error {
	return errSoon
}
func (s *Store) RemoveImage(ctx context.Context, image ImageID) error      { return errSoon }            // head, commits, leases, journals
func (s *Store) PutLease(ctx context.Context, raw []byte) (LeaseID, error) { return LeaseID{}, errSoon } // another record for the (era, term): ErrExists
func (s *Store) Leases(image ImageID) ([][]byte, error)                    { return nil, errSoon }       // ascending era, term

func (s *Store) Catalogue() ([]byte, error)                         { return nil, errSoon }
func (s *Store) PutCatalogue(ctx context.Context, raw []byte) error { return errSoon }

const JournalHeaderSize = 4096

type Journal struct{}

// size is what is preallocated, header included.
func (s *Store) CreateJournal(image ImageID, n JournalNumber, header []byte, size int64) (*Journal, error) {
	return nil, errSoon
}
func (j *Journal) Append(b []byte) (off int64, err error) { return 0, errSoon }
func (j *Journal) Sync() error                            { return errSoon }
func (j *Journal) Close() error                           { return errSoon }

type JournalReader struct{}

func (r *JournalReader) ReadAt(p []byte, off int64) (int, error) { return 0, errSoon }
func (r *JournalReader) Size() int64                             { return 0 }
func (r *JournalReader) Close() error                            { return errSoon }

func (s *Store) Journals(image ImageID) ([]JournalNumber, error) { return nil, errSoon }
func (s *Store) OpenJournal(image ImageID, n JournalNumber) (*JournalReader, error) {
	return nil, errSoon
}
func (s *Store) RemoveJournal(image ImageID, n JournalNumber) error { return errSoon }

// Root is a commit to keep, with all it reaches.
type Root struct {
	Image   ImageID
	Commit  CommitID
	Partial bool // its objects may be absent
}
type CollectOptions struct {
	Pins     []Root             // beside heads and what their tables name
	Partial  func(ImageID) bool // may objects of this image be absent? nil: none
	Progress func(CollectStats) // may be nil
}
type CollectStats struct {
	Marked, Swept int64 // objects
	SweptBytes    int64
	Commits       int64 // commits removed
	Absent        int64 // references of partial images that are not here
}

func (s *Store) Collect(ctx context.Context, o CollectOptions) (CollectStats, error) {
	return CollectStats{}, errSoon
}
func (s *Store) Reclaim(ctx context.Context) (freed int64, err error) { return 0, errSoon }

type Stats struct {
	Objects, LiveBytes, DeadBytes, FileBytes int64
}

func (s *Store) Stats() (Stats, error)                 { return Stats{}, errSoon }
func (s *Store) Free() (avail, total int64, err error) { return 0, 0, errSoon } // bytes after the reserve; of the file system
