// Package anchor keeps what a host remembers of a store outside of it: the newest
// state of each image and of the catalogue, so that an older one put in its place is
// noticed (docs/format.md §10).
package anchor
