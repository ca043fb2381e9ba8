// Package plan decides which sectors of an image are sealed together. It is
// the paper's algorithm I, VDSS: the image is cut into equal blocks whose size
// follows from the transmission ratio of the link; a block that depends on its
// neighbour is merged with it; what is left are independent segments.
//
// Words: a sector is 4 KiB, a block is the planning grid (a power of two from
// 64 KiB to 1 MiB), a region is 16 MiB. A block that holds no data is a hole
// and is not planned. A segment is one or more runs of data sectors.
//
// What must stay true:
//
//   - The segments of a region hold each of its data sectors exactly once and
//     no other sector, at most 1 MiB of them, and never cross the region.
//   - Two blocks are merged only if some [Analyser] says [Depends] of the
//     boundary between them and none says [Never].
//   - A plan is a function of the region's data runs and of the analysers'
//     answers. The order of calls and what other regions hold do not matter.
//
// Merging is greedy from the left and starts afresh at each region, at each
// hole and at each boundary that no analyser joins. That gives the fewest
// segments that the limit allows, and the segments of a large file begin where
// the file begins, so its first mebibyte is one segment, not two. What changes
// in one region never moves the cuts of another.
//
// The analysers are [Allocation], [Trace], and what [Analyse] finds in the
// image itself: partition tables and ext2, ext3 and ext4 file systems. The
// image is hostile input. Whatever it holds, work and memory are bounded by
// its size; a structure that is not valid gives no information and is no
// error; a plan made from wrong information is a slower plan, never wrong data.
//
// Partition tables are parsed here and not by diskfs/go-diskfs: as of 1.9.4 it
// allocates the GPT entry array by a product of two numbers from the disk
// before it checks either, does not follow extended MBR partitions, and wants
// an fs.File with Seek where an io.ReaderAt is what there is.
package plan
