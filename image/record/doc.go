// Package record turns Go values into sealed bytes and back: segments, map nodes,
// commits, snapshot tables, dependency maps, journal records and the catalogue.
//
// It holds no state and does no I/O. All functions and all methods of values are
// safe for concurrent use, except those of [JournalSealer] and [JournalScanner],
// which each belong to one goroutine.
//
// Words. To seal is to encrypt and authenticate; to open is to check and decrypt.
// A segment is the sealed data of one or more runs of sectors of one region; a
// frame is the smallest part of it that opens alone. A leaf maps the sectors of a
// region to segments, an inner node its children; a patch is a leaf over a base leaf.
//
// Invariants. What does not follow docs/format.md is refused: with
// blockstore.ErrCorrupt for bytes of the wrong shape, with crypto.ErrAuth for bytes
// that nobody with the key wrote, with blockstore.ErrFormat for a version that is
// not known. No input panics, and memory is bounded before it is allocated. What
// opens and is sealed again has the same plaintext.
//
// Ids are the caller's: nodes, tables and maps must be checked against their id
// before they are opened, and a commit's signature against its lease.
package record
