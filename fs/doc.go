// Package fs shows images as ordinary files: one flat folder, DIR/NAME for an
// image and DIR/NAME@SNAP, read-only, for a snapshot. It is the only package
// that speaks FUSE. Handlers translate a request and hand it to a [Disk]; what
// an image is, who may write it and when it is durable is decided below.
//
// Words: a node is a name that the kernel knows; a handle is one open(2) of it.
// A handle opened with O_DIRECT is direct, any other is cached: its reads and
// writes go through the kernel's page cache, which writes through at once.
//
// Invariants:
//
//   - What a handle reads is what any handle of the mount last wrote. The kernel
//     drops cached pages before a direct write and this package drops them again
//     after it, because a cached read between the two may have brought old bytes
//     back. So no direct write is answered while a page older than it is cached.
//   - fsync, fdatasync, O_SYNC and O_DSYNC return after [Disk.Flush] has.
//   - An error becomes an errno in errno.go and nowhere else; what is not in its
//     table is EIO. No error on a read ever looks like zeros, or like "no such file".
//   - Every handle that [Library.Open] gave is released exactly once, also when
//     the mount is cut off.
//   - Nothing is created, removed or renamed through the mount.
//
// The server must not touch files of its own mounts: a page fault or a blocking
// call may wait for the very thread that would answer it.
package fs
