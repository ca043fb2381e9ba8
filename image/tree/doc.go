// Package tree is the map of an image: a persistent radix tree from region to leaf.
//
// A Tree is one version of the map and never changes; Update makes the next one
// and shares what did not change with it (docs/format.md §5). Every node is
// checked against its id and opened against its place when it is loaded.
package tree
