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
