// Package image is where plaintext lives: it turns sealed objects into disks.
//
// A Disk is one image in use on this host: reads go to dirty data, then to the
// cache of opened frames, then through the map to the frames of a segment;
// writes stay in memory until a flush puts them into the journal and a commit
// puts them into the store. docs/architecture.md has the words, docs/format.md
// the bytes and the order of writes.
//
// Invariants: Flush returns nil only when a power cut loses nothing written
// before it; a read gives what was last written or an error; there is one Disk
// with write access to an image in a process, and one process to a store.
package image

import "errors"

// Errors that callers tell apart. What is wrong with stored bytes is
// blockstore.ErrCorrupt or crypto.ErrAuth; what is absent is
// blockstore.ErrNotFound; a full store is blockstore.ErrNoSpace.
var (
	ErrReadOnly   = errors.New("image: read-only")
	ErrClosed     = errors.New("image: closed")
	ErrNotHolder  = errors.New("image: the lease is held by another host")
	ErrRolledBack = errors.New("image: older than what this host has seen")
	ErrFork       = errors.New("image: two histories")
	ErrExists     = errors.New("image: the name is taken")
	ErrNoSnapshot = errors.New("image: no such snapshot")
	ErrShrink     = errors.New("image: a disk cannot shrink")
	ErrTooLarge   = errors.New("image: beyond the end of the disk")
	ErrInUse      = errors.New("image: in use")
	ErrFailed     = errors.New("image: stopped writing after an error")
)
