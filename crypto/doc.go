// Package crypto seals and opens bytes, wraps keys to recipients, and signs.
//
// It knows keys and nothing else: it reads and writes no file, logs nothing,
// and does not know what a record looks like. docs/format.md §2 and §6 are its
// specification; the paper's algorithms II (PAKG, the key schedule) and the
// key half of III and V (VMDE, VMDD) are here.
//
// Words: an [Epoch] is one random secret from which keys are derived; its
// [MasterKey] confirms it and opens nothing. A [Keyring] is an image's epochs,
// sealed with age to its recipients. A [Sealer] seals one stream of frames under
// one [Key]; an [Opener] opens single frames of it.
//
// What must stay true:
//
//   - No caller passes a nonce. A nonce is the frame's number and whether it is
//     the last, and every stream has a key of its own.
//   - An authentication failure is [ErrAuth] and nothing more precise.
//   - Types that hold a secret print as "redacted" with fmt, slog and JSON.
//   - Nothing from outside is allocated, derived or hashed before it is bounded.
package crypto
