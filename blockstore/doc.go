// Package blockstore keeps sealed objects, signed commits and leases, the sealed
// catalogue and journal files in one directory, and gives their space back.
//
// Everything here is sealed or public: the package never sees a key or a plaintext
// byte, and checks no signature. What it does check is shape: every parser rejects
// what docs/format.md says a reader must reject, bounds what it allocates by the
// length of its input, and re-encodes to the same bytes what it accepts.
//
// Words. An object is sealed bytes named by their SHA-256. A commit and a lease are
// signed records of an image; the head is an image's newest commit. A journal is a
// file of sealed writes beside Badger. Dead bytes are those of deleted objects that
// still lie in Badger's value log.
//
// Invariants. What a call made is durable when it returns nil. Absent
// ([ErrNotFound]), corrupt ([ErrCorrupt]) and out of space ([ErrNoSpace]) are three
// answers. After a write or fsync failed, or Badger logged an error, the store has
// failed: every later call returns [ErrFailed]. All methods of [Store] may be
// called concurrently.
package blockstore
