package blockstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// PutCommit stores a commit and makes it its image's head, in one transaction that is
// durable on return: the point of no return of docs/format.md §11. The record's shape
// is checked; its signature and its place after the old head are the caller's to check.
func (s *Store) PutCommit(ctx context.Context, image ImageID, raw []byte) (CommitID, error) {
	return s.putCommit(ctx, image, raw, true)
}

// AddCommit stores a commit that is not the head: a snapshot that arrives from a peer.
func (s *Store) AddCommit(ctx context.Context, image ImageID, raw []byte) (CommitID, error) {
	return s.putCommit(ctx, image, raw, false)
}

func (s *Store) putCommit(ctx context.Context, image ImageID, raw []byte, head bool) (CommitID, error) {
	c, err := ParseCommit(raw)
	if err != nil {
		return CommitID{}, err
	}
	if c.Image != image {
		return CommitID{}, corrupt("commit", "of image %v, want %v", c.Image, image)
	}
	id := CommitIDOf(raw)
	s.gc.sweep.RLock()
	defer s.gc.sweep.RUnlock()
	err = s.transact(ctx, int64(len(raw))+256, true, func(txn *badger.Txn) error {
		if err := txn.Set(keyCommit(image, id), raw); err != nil || !head {
			return err
		}
		return txn.Set(keyHead(image), id[:])
	})
	if err != nil {
		return CommitID{}, err
	}
	s.gc.rooted(Root{Image: image, Commit: id})
	return id, nil
}

// SetHead makes a commit that is in the store its image's head, durably.
func (s *Store) SetHead(ctx context.Context, image ImageID, id CommitID) error {
	if err := s.Err(); err != nil {
		return err
	}
	s.gc.sweep.RLock()
	defer s.gc.sweep.RUnlock()
	_, ok, err := s.exists(keyCommit(image, id))
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("blockstore: head: commit %v: %w", id, ErrNotFound)
	}
	err = s.transact(ctx, 256, true, func(txn *badger.Txn) error { return txn.Set(keyHead(image), id[:]) })
	if err != nil {
		return err
	}
	s.gc.rooted(Root{Image: image, Commit: id})
	return nil
}

// Head returns the id and the record of an image's newest commit. [ErrNotFound]: the
// image has no head. A head whose commit is gone is corrupt.
func (s *Store) Head(image ImageID) (CommitID, []byte, error) {
	var last CommitID
	for {
		var id CommitID
		b, err := s.read("head", keyHead(image), image.String())
		if err != nil {
			return CommitID{}, nil, err
		}
		if len(b) != len(id) {
			return CommitID{}, nil, corrupt("head", "%d bytes", len(b))
		}
		copy(id[:], b)
		raw, err := s.Commit(image, id)
		if errors.Is(err, ErrNotFound) && id != last {
			last = id // unless it was replaced meanwhile, it is the same the next time
			continue
		}
		if errors.Is(err, ErrNotFound) {
			return CommitID{}, nil, &CorruptError{What: "head", Key: image.String(), Cause: fmt.Errorf("commit %v is not there", id)}
		}
		if err != nil {
			return CommitID{}, nil, err
		}
		return id, raw, nil
	}
}

// Commit returns the record of a commit, checked against its id.
func (s *Store) Commit(image ImageID, id CommitID) ([]byte, error) {
	raw, err := s.read("commit", keyCommit(image, id), id.String())
	if err != nil {
		return nil, err
	}
	if CommitIDOf(raw) != id {
		return nil, &CorruptError{What: "commit", Key: id.String(), Cause: errors.New("digest differs")}
	}
	return raw, nil
}

// Commits returns the ids of an image's commits, ascending by id.
func (s *Store) Commits(image ImageID) ([]CommitID, error) {
	var ids []CommitID
	prefix := keyCommits(image)
	err := s.list(prefix, 32, func(rest []byte) { ids = append(ids, CommitID(rest)) })
	return ids, err
}

// Images returns the ids of all images that have a head, ascending.
func (s *Store) Images() ([]ImageID, error) {
	var ids []ImageID
	err := s.list([]byte("h"), 32, func(rest []byte) { ids = append(ids, ImageID(rest)) })
	return ids, err
}

// list calls fn with the part after prefix, of n bytes, of each key.
func (s *Store) list(prefix []byte, n int, fn func(rest []byte)) error {
	if err := s.Err(); err != nil {
		return err
	}
	return s.keys(context.Background(), prefix, func(it item) error {
		if len(it.key) != len(prefix)+n {
			return corrupt("key", "% x", it.key)
		}
		fn(it.key[len(prefix):])
		return nil
	})
}

// DeleteCommits removes commits durably; absent ones are passed over. The head
// must not be among them.
func (s *Store) DeleteCommits(ctx context.Context, image ImageID, ids ...CommitID) error {
	if err := s.Err(); err != nil {
		return err
	}
	head, err := s.read("head", keyHead(image), image.String())
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	var keys [][]byte
	var roots []Root
	for _, id := range ids {
		if bytes.Equal(head, id[:]) {
			return fmt.Errorf("blockstore: delete commit %v: it is the head", id)
		}
		keys = append(keys, keyCommit(image, id))
		roots = append(roots, Root{Image: image, Commit: id})
	}
	if s.gc.postpone(nil, roots) {
		return nil
	}
	return s.deleteKeys(ctx, keys)
}

// RemoveImage removes, durably and in this order, the head, the commits, the leases
// and the journals of an image. Its objects are the collector's. Repeating it is harmless.
func (s *Store) RemoveImage(ctx context.Context, image ImageID) error {
	if err := s.Err(); err != nil {
		return err
	}
	keys := [][]byte{keyHead(image)}
	for _, prefix := range [][]byte{keyCommits(image), keyLeases(image)} {
		err := s.keys(ctx, prefix, func(it item) error {
			keys = append(keys, append([]byte(nil), it.key...))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := s.deleteKeys(ctx, keys); err != nil {
		return err
	}
	return s.removeJournals(image)
}

func keyLease(image ImageID, era Era, term Term) []byte {
	key := binary.BigEndian.AppendUint64(keyLeases(image), uint64(era))
	return binary.BigEndian.AppendUint64(key, uint64(term))
}

// PutLease stores a lease record durably. Its shape is checked, its signature and
// chain are the caller's to check. [ErrExists]: there is a different record for its era
// and term, which stays. The same record again is no error.
func (s *Store) PutLease(ctx context.Context, raw []byte) (LeaseID, error) {
	l, err := ParseLease(raw)
	if err != nil {
		return LeaseID{}, err
	}
	id, key := LeaseIDOf(raw), keyLease(l.Image, l.Era, l.Term)
	s.gc.leases.Lock() // two records for one term must not both find the place empty
	defer s.gc.leases.Unlock()
	old, err := s.read("lease", key, l.Image.String())
	switch {
	case err == nil && bytes.Equal(old, raw):
		return id, nil
	case err == nil:
		return LeaseID{}, fmt.Errorf("blockstore: lease of era %d, term %d: %w: %v", l.Era, l.Term, ErrExists, LeaseIDOf(old))
	case !errors.Is(err, ErrNotFound):
		return LeaseID{}, err
	}
	return id, s.transact(ctx, int64(len(raw))+256, true, func(txn *badger.Txn) error { return txn.Set(key, raw) })
}

// adoptAtOnce is how many lease records go into one transaction with a commit.
const adoptAtOnce = 64

// Adopt makes a chain of leases, the whole of it in order, and unless raw is nil a commit
// those of an image, durably and in one transaction: a head never stands without the lease
// of its term, nor a lease without the head that it goes on from. (Of a chain with more
// than 64 records that are new the first ones come before.) Records that are not in the
// chain go: it was replaced by force. The rest is as with [Store.PutCommit] and [Store.PutLease].
func (s *Store) Adopt(ctx context.Context, image ImageID, leases [][]byte, raw []byte) error {
	var id CommitID
	if raw != nil {
		c, err := ParseCommit(raw)
		if err != nil {
			return err
		}
		if c.Image != image {
			return corrupt("commit", "of image %v, want %v", c.Image, image)
		}
		id = CommitIDOf(raw)
	}
	for _, raw := range leases {
		l, err := ParseLease(raw)
		if err != nil {
			return err
		}
		if l.Image != image {
			return corrupt("lease", "of image %v, want %v", l.Image, image)
		}
	}
	s.gc.leases.Lock()
	defer s.gc.leases.Unlock()
	missing, gone, err := s.compareLeases(image, leases)
	if err != nil {
		return err
	}
	for len(missing) > adoptAtOnce {
		if err := s.adopt(ctx, missing[:adoptAtOnce], nil, nil, image, id); err != nil {
			return err
		}
		missing = missing[adoptAtOnce:]
	}
	s.gc.sweep.RLock()
	defer s.gc.sweep.RUnlock()
	if err := s.adopt(ctx, missing, gone, raw, image, id); err != nil {
		return err
	}
	if raw != nil {
		s.gc.rooted(Root{Image: image, Commit: id})
	}
	return nil
}

// compareLeases gives the records of a chain that are not there, and the keys of those that
// are and are not in it.
func (s *Store) compareLeases(image ImageID, leases [][]byte) (missing [][]byte, gone [][]byte, err error) {
	have, err := s.Leases(image)
	if err != nil {
		return nil, nil, err
	}
	for _, raw := range leases {
		if !slices.ContainsFunc(have, func(old []byte) bool { return bytes.Equal(old, raw) }) {
			missing = append(missing, raw)
		}
	}
	for _, old := range have {
		if slices.ContainsFunc(leases, func(raw []byte) bool { return bytes.Equal(old, raw) }) {
			continue
		}
		l, err := ParseLease(old)
		if err != nil {
			return nil, nil, err
		}
		gone = append(gone, keyLease(l.Image, l.Era, l.Term))
	}
	return missing, gone, nil
}

func (s *Store) adopt(ctx context.Context, leases, gone [][]byte, raw []byte, image ImageID, id CommitID) error {
	size := int64(len(raw)) + 512 + 64*int64(len(gone))
	for _, l := range leases {
		size += int64(len(l)) + 256
	}
	return s.transact(ctx, size, true, func(txn *badger.Txn) error {
		for _, key := range gone {
			if err := txn.Delete(key); err != nil {
				return err
			}
		}
		for _, raw := range leases {
			l, err := ParseLease(raw)
			if err != nil {
				return err
			}
			if err := txn.Set(keyLease(l.Image, l.Era, l.Term), raw); err != nil {
				return err
			}
		}
		if raw == nil {
			return nil
		}
		if err := txn.Set(keyCommit(image, id), raw); err != nil {
			return err
		}
		return txn.Set(keyHead(image), id[:])
	})
}

// Leases returns the lease records of an image, ascending by era and term. Each is
// checked to stand in its place.
func (s *Store) Leases(image ImageID) ([][]byte, error) {
	prefix := keyLeases(image)
	var keys [][]byte
	err := s.list(prefix, 16, func(rest []byte) {
		keys = append(keys, append(append([]byte(nil), prefix...), rest...))
	})
	if err != nil {
		return nil, err
	}
	var raws [][]byte
	for _, key := range keys {
		raw, err := s.read("lease", key, image.String())
		if err != nil {
			return nil, err
		}
		l, err := ParseLease(raw)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(keyLease(l.Image, l.Era, l.Term), key) {
			return nil, &CorruptError{What: "lease", Key: image.String(), Cause: errors.New("it stands in another's place")}
		}
		raws = append(raws, raw)
	}
	return raws, nil
}

// Catalogue returns the sealed catalogue record. [ErrNotFound]: none was put yet.
func (s *Store) Catalogue() ([]byte, error) {
	return s.read("catalogue", keyCatalogue(), "")
}

// PutCatalogue replaces the sealed catalogue record, durably. It may use the room that
// is kept for deletions: on a full store an image must be removable.
func (s *Store) PutCatalogue(ctx context.Context, raw []byte) error {
	h, _, _, err := ParseRecord(raw)
	if err != nil {
		return err
	}
	if h.Kind != KindCatalogue || StoreID(h.Epoch) != s.id || len(h.Public) != 0 {
		return corrupt("catalogue", "%v of store %x with %d public bytes", h.Kind, h.Epoch, len(h.Public))
	}
	err = s.transact(ctx, int64(len(raw))+256, false, func(txn *badger.Txn) error { return txn.Set(keyCatalogue(), raw) })
	if err != nil {
		return fmt.Errorf("blockstore: catalogue: %w", err)
	}
	return nil
}
