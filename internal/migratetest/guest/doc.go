// Command guest is the only program of the virtual machine that scripts/migrate-test moves: its
// init. It writes blocks of random bytes all over its disk, remembers in its memory what is where,
// and compares when it is told to.
//
// Kernel command line: guest.rate=BYTES writes as much a second (0: none). On the serial line it
// says READY, a line "HB COUNT WRITES" ten times a second, and answers "verify" with VERIFIED and
// the number of blocks, or BAD and why.
package main
