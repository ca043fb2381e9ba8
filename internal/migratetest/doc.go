// Command migratetest moves real guests between hosts in network namespaces of their own and looks
// whether their disks are what they wrote: no block lost, torn, stale or foreign. scripts/migrate-test
// runs it.
//
// A guest (package guest, the init of a Debian kernel under QEMU's TCG) writes random blocks with
// fsync to a sealed image that is mounted on host a, while sealdisk migrate hands the image to host
// b, which has the other QEMU. Either sealdisk moves the guest too (driven), or this program does,
// with a plain migrate command and no other word to sealdisk (transparent).
//
// All namespaces, processes and files are this program's own, and are taken down at its end.
package main
