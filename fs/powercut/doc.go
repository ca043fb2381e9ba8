// Package powercut is a file system for tests that forgets what was not synced. It keeps its files
// in memory behind a FUSE mount; [FS.Cut] gives the file system as a disk would hold it after the
// power went.
//
// The rules are those that POSIX gives, no kinder, and what journalling file systems keep beyond
// them only where it is about order:
//
//   - fsync and fdatasync of a file, and msync of its mapping, make its content and its size
//     durable. They say nothing about its name.
//   - A page of 4 KiB that was written and not synced is, after the cut, any of the versions that it
//     had since the last sync, the one before included; or it is torn, 512 bytes being the unit.
//     Pages are independent of each other.
//   - The size is any that the file had since the last sync. What lay behind a truncation that
//     survived does not come back, and nothing that came after one that did not is there.
//   - A file is cut off no sooner than the names that changed before it, anywhere: journalling file
//     systems keep changes of names and sizes in order.
//   - fsync of a folder makes the names in it durable. Of the other changes of names a prefix
//     survives, for each folder its own; a rename is one change, of both its folders.
//
// It is for tests alone: everything is in memory, and permissions are not looked at.
//
// The process that serves a mount must not use it itself.
package powercut
