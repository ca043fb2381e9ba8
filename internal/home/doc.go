// Package home is the host directory: what a host keeps apart from its stores, its
// identities, host key and who gets the keys of new images (docs/format.md §10 has the
// anchor, which lies there too).
package home
