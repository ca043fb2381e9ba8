// Package convert carries disk images into and out of a store: it reads a
// format.Source region by region, plans and seals what it finds, and writes a
// disk out again.
//
// Its words: a region is 16 MiB, the unit of work; a span is a run of whole
// sectors of one region. Regions are read, sealed and stored by a few workers at
// once, each with one region in memory, so that reading, sealing and storing
// overlap and memory is bounded whatever the size of the image.
//
// Invariants:
//
//   - A sector that is all zeros is never stored; it reads as zeros from the map.
//   - A source that cannot be read to its end is an error, never zeros.
//   - An import that fails or is cancelled leaves nothing that anything refers to.
//     An update that is cancelled leaves a disk of which each sector is old or
//     new; the same update again completes it.
package convert
