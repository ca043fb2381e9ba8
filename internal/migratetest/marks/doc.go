// Package marks says what the guest of scripts/migrate-test writes, so that the guest, from its
// memory, and whoever reads the disk afterwards, from a number alone, can tell what must be there.
//
// Writes are counted: generation 1, 2, 3, …; each goes to one block, which follows from it. A block
// holds its number, the generation and bytes that follow from both and from the seed of the disk.
package marks
