// Command guest is the only program of the virtual machine that scripts/migrate-test moves: its
// init. It writes blocks all over its disks (package marks), remembers in its memory what is
// where, and compares when it is told to.
//
// Kernel command line: guest.rate=BYTES writes as much a second to each disk (0: none),
// guest.seed=NUMBER makes what it writes unlike what others write, guest.disks=COUNT. On the serial
// line it says READY, a line "HB COUNT WRITES FLUSHED" ten times a second (the generation up to
// which all is durable on the first disk), twice a second "TIMES WRITE FLUSH" (how long those of the first
// disk took so far, package latency), and answers "verify" with VERIFIED and the number of
// blocks, or BAD and why.
package main
