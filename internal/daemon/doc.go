// Package daemon owns one store: it holds the host's keys, the names of the
// images, the disks that are in use and the mounts, and serves them to commands
// through an HTTP API on the store's control socket.
//
// Its words:
//
//   - The host directory holds what a thief of the store must not get: the age
//     identity, the host key and the anchor.
//   - The catalogue maps names to image ids. It is one sealed record of the store.
//   - An operation is one request of the API, such as "import". It answers with a
//     stream of events, the last of which is its result or its error.
//   - A persistent daemon lives as long as its mounts; a passing one as long as the
//     command that started it. Both serve everyone who may use the socket.
//
// Invariants:
//
//   - One process has the store open. Every command goes through the socket, also
//     in the process that serves it: there is one code path.
//   - The socket is the owner's alone, by its mode and by the peer's user id.
//   - A name enters the catalogue when its image is complete and durable, and
//     leaves it before anything of the image is removed.
//   - An operation whose client has gone stops and leaves nothing behind that
//     anything refers to.
package daemon
