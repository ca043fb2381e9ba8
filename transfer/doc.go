// Package transfer moves sealed images between hosts (docs/protocol.md). It never sees a
// plaintext byte and needs no key but the host's own.
//
// All copying is done by the receiver: it asks a peer for the description of an image,
// walks the map as far as it lacks it, and asks for the objects that are missing. What
// arrives is checked against its id, length and place before it is stored, and a node is
// marked as complete once all beneath it is durable; so every step can be cut, repeated,
// or served by another peer, and nothing that was stored is fetched again. A push is a
// pull over a connection that the sender opened.
//
// Words. A description is what a peer says of an image: lease chain and head. A state is
// a commit with all that it reaches. A [Client] asks, a [Server] answers.
//
// Invariants. A head is put only when its state, and those of its snapshots, are
// complete. A state older than the anchor's is refused ([image.ErrRolledBack]). Memory is
// bounded whatever a peer sends: by the requests under way and the depth of a map.
package transfer
