// Package crashtest ends the real program at random moments and looks at what is left.
//
// Its tests build cmd/sealdisk, mount an image, and let another process write to it: records that
// describe themselves, with O_DIRECT and through the page cache, holes too, and fsync. That process
// says over a pipe what it is about to write and which fsync has returned. Beside it snapshots,
// clones and imports come and go and the collector runs. Then the daemon is killed, or the power
// is cut beneath it (package fs/powercut), and it is started again. Held to be true then:
//
//   - the store opens;
//   - each sector holds, whole, what was acknowledged last or something that was tried after it;
//   - each snapshot, clone and import that was acknowledged is there with its content, and none
//     whose removal was acknowledged;
//   - verify finds no fault.
//
// The model keeps for each sector its versions: the first is the one that was acknowledged, the rest
// were tried. A frozen copy of it, which goes on to take what is tried, is what a snapshot or a cut of
// that moment may hold.
//
// The environment says how long it takes: SEALDISK_CRASH_KILLS, SEALDISK_CRASH_CUTS (numbers),
// SEALDISK_CRASH_SEED (for the choices of the parent; 0 is a new one); SEALDISK_CRASH_KEEP is a folder
// for what was on the disk when a store did not come up after a cut.
package crashtest
