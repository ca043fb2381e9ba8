// Package peer decides whom this host speaks with: the book of pinned peers with their
// roles and quotas, and the mutually authenticated connections to them
// (docs/protocol.md §1 and §2).
//
// A peer is a host key that the user has pinned by its fingerprint. Nobody else gets
// through a handshake, in either direction. Connections have a deadline on every read
// and write, and a bound on their rate.
package peer
