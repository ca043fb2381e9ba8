package page

// What may be the reason where sealdisk is worse: by the design, not by a profile of these runs.
const (
	slowTotal    = "a commit per round; the destination checks and stores each object durably before the next step, where QEMU writes into a file"
	slowDowntime = "the last commit, and the lease that goes over, are made durable on both sides while the guest stands still"
	slowBytes    = "maps and the headers of objects go with the data, and each round sends again what was written again"
	slowCPU      = "segments are hashed, and checked at the destination; a FUSE mount copies between kernel and daemon, where QEMU has LUKS in its own process"
	slowWrites   = "a write goes to the daemon through the FUSE mount, and on two cores copying takes time from the daemon that serves it"
	slowFlush    = "a flush seals all that was written since the last one into the journal and makes it durable, where LUKS has sealed and written each write before; the commits of the rounds wait for the same device"
)

const compared = "A guest of QEMU %s (TCG, one processor, 128 MB of memory) writes 4 KiB blocks at random places all over its disk, as fast as the case says and it can, and flushes after each 64. It is moved between two hosts, " +
	"each a network namespace with a store or a file of its own, over a link that `tc` bounds both ways. The disk has %.0f MB, %.0f MB of it data that does not compress; it is sealed at the source at the beginning, and the destination has nothing of it. " +
	"At the end each guest compares every block with what it wrote. All contenders of a case run in each round, in turn."

const contenders = "- *sealdisk*: `sealdisk pull` at the destination, whose QEMU needs the file, then `sealdisk migrate --qmp`. *sealdisk --lazy*: both with `--lazy`.\n" +
	"- *QEMU*: its own way, at its best. A raw file with LUKS, `cache=none`, on both sides. `blockdev-mirror` with `sync=full`, `granularity=4096`, `copy-mode=background` to the NBD server of the destination's QEMU, over TLS with x509 certificates on both sides, " +
	"with `detect-zeroes`, so that zeros do not go over the link; once it is in step, `migrate` over TLS with `pause-before-switchover`, at which the mirror is ended. The same bound for the downtime, 30 ms, as sealdisk gives to QEMU. It is given up, for all rounds, when it is not in step within a minute. " +
	"*QEMU, qcow2*: the same with LUKS in qcow2 on both sides, which knows what was never written. A raw file with LUKS does not: the mirror reads all of it and sends, for each 4 KiB that the guest has written, the MB of zeros around it. " +
	"*QEMU, write-blocking*: raw, with `copy-mode=write-blocking`, where *QEMU* cannot be in step: it makes the guest as slow as the link."

const figured = "- *all is there*: from the command until the guest runs at the destination and all data is there. What has to stand at the destination beforehand is not counted for QEMU (an empty LUKS file, the QEMU that waits, its servers); for sealdisk the start of that QEMU is.\n" +
	"- *the guest runs there*: until `RESUME` at the destination. *downtime*: from `STOP` to `RESUME`, as both QEMUs say.\n" +
	"- *over the link*: by the counters of the interface, both ways, memory and disk. A part of the headers is not in them, as the kernel sends large segments over such links.\n" +
	"- *CPU*: of QEMU, daemons and commands on both hosts until all is there; and less what the guest and its disk took before for as many writes.\n" +
	"- *writes/s*, *write*, *flush*: as the guest measures them, in the two seconds before and from the command until all is there. A guest's clock stands still while it does, so the downtime is not in its latencies; it is in its writes/s."
