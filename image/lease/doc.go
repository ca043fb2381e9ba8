// Package lease checks who may write an image: the chain of its lease records and the
// commits signed under them, with public keys alone (docs/format.md §8).
package lease
