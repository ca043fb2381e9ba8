package main

import (
	"context"
	"time"
)

// When something comes in between.
const (
	early   = "before it copies"
	copying = "while it copies"
	armed   = "while armed"
	memory  = "while the memory goes (--qmp)"
	offered = "between offer and claim"
	granted = "after the grant (--lazy)"
)

// Where the guest is in the end.
const (
	runsHere     = "runs at the source"
	runsThere    = "runs at the destination"
	failsHere    = "stopped at the source, as its disk has gone"
	failsThere   = "stopped at the destination, as its disk has gone"
	heldThere    = "paused at the destination"
	heldBoth     = "paused on both"
	goneHere     = "gone; its disk is at the source"
	goneAnywhere = "gone; its disk is where it is opened first"
	goneThere    = "gone; its disk is at the destination"
)

// What sealdisk migrate says.
const (
	went         = "handover … fill"
	onlyArmed    = "armed"
	ended        = "the connection broke … start it again (sealdisk serve, or systemd does)"
	disconnected = "the connection failed before it was done … the same command goes on where it was"
	noRoom       = "refused by the peer: no space left … the disks have not moved"
	noKeys       = "refused by the peer: that host has no keys of the image … the disks have not moved"
	noRole       = "refused by the peer: it may not bring that image … the disks have not moved"
	newerLease   = "refused by the peer: it does not hold the lease of that image any more … the disks have not moved"
	stopped      = "interrupted"
	movedAlready = "the disks are the peer's now, b, and not whole there yet … the guest belongs there"
	failed       = "qemu: the migration failed … the guest runs on where it was"
)

// What is to be done.
const (
	nothing     = "nothing"
	sameAgain   = "the same command again"
	serveHere   = "`sealdisk serve` at the source, and start the guest there: it boots as after a power cut"
	serveThere  = "`sealdisk serve` at the destination, and start the guest there: it boots as after a power cut"
	serveAgain  = "`sealdisk serve` at the destination, then the same command again"
	bootHere    = "start the guest at the source"
	bootThere   = "start the guest at the destination"
	boot        = "start the guest where it is to run"
	contSource  = "QMP `cont` at the source"
	contTarget  = "QMP `cont` at the destination"
	serveCont   = "`sealdisk serve` at the source, then QMP `cont` at the destination"
	forceCont   = "`sealdisk lease take --force NAME` at the destination, then QMP `cont` there"
	roomCont    = "free space at the destination, then QMP `cont` there"
	roomAgain   = "free space at the destination, then the same command again"
	cutFor30    = 30 * time.Second
	brokenLink  = "the link is cut for 30 s"
	sourceDies  = "the source's daemon is killed"
	destDies    = "the destination's daemon is killed"
	fullDisk    = "the destination's disk is full"
	qemuDies    = "the source's QEMU is killed"
	targetDies  = "the destination's QEMU is killed"
	interrupted = "the command is interrupted"
	cancelling  = "`migrate_cancel`"
)

var faults = []fault{
	{fullDisk, early, runsHere, noRoom, roomAgain, []step{fillDestination, refused, (*faulty).stays, freeDestination, (*faulty).again}},
	{"wrong key: the destination cannot open the image", early, runsHere, noKeys, "put the right identity there, then the same command again",
		[]step{wrongIdentity, refused, (*faulty).stays, rightIdentity, (*faulty).again}},
	{"wrong key: what is new is not sealed to the destination, which has an older state", early, runsThere, went, nothing,
		[]step{knows, dropRecipient, (*faulty).armed, (*faulty).moves}},
	{"refused lease: the destination takes none from that host", early, runsHere, noRole, "`sealdisk peer allow SOURCE host` at the destination",
		[]step{allow("b", "a", "replica"), refused, (*faulty).stays, allow("b", "a", "host"), (*faulty).again}},
	{"refused lease: the destination has a newer one, taken by force", early, runsHere, newerLease, "decide which state is the image: `sealdisk lease show NAME` on both",
		[]step{knows, takeLease, refused, func(f *faulty, ctx context.Context) error { return f.source.runs(ctx) }}},

	{sourceDies, copying, failsHere, ended, serveHere, []step{(*faulty).copying, killSource, (*faulty).gaveUp, stoppedHere, restartSource, bootsHere}},
	{destDies, copying, runsHere, disconnected, serveAgain, []step{(*faulty).copying, killDestination, (*faulty).gaveUp, restartDestination, (*faulty).stays, (*faulty).again}},
	{qemuDies, copying, goneHere, went, bootHere, []step{(*faulty).copying, crashSource, bootsHere, noLimit, (*faulty).untilArmed, (*faulty).moves}},
	{brokenLink, copying, runsHere, disconnected, sameAgain, []step{(*faulty).copying, cutFor(cutFor30), (*faulty).gaveUp, (*faulty).stays, (*faulty).again}},
	{fullDisk, copying, runsHere, noRoom, roomAgain, []step{(*faulty).copying, fillDestination, (*faulty).gaveUp, (*faulty).stays, freeDestination, (*faulty).again}},
	{interrupted, copying, runsHere, stopped, sameAgain, []step{(*faulty).copying, (*faulty).interrupt, (*faulty).stays, (*faulty).again}},

	{sourceDies, armed, failsHere, ended, serveHere, []step{(*faulty).armed, killSource, (*faulty).gaveUp, stoppedHere, restartSource, bootsHere}},
	{destDies, armed, runsHere, disconnected, serveAgain, []step{(*faulty).armed, killDestination, (*faulty).gaveUp, restartDestination, (*faulty).stays, (*faulty).again}},
	{qemuDies, armed, goneAnywhere, went, boot, []step{(*faulty).armed, crashSource, bootsThere, (*faulty).went}},
	{targetDies, armed, runsHere, went, nothing, []step{(*faulty).armed, waits, crashDestination, handToNobody, (*faulty).stays, (*faulty).moves}},
	{"the link is cut for 1 s", armed, runsHere, went, nothing, []step{(*faulty).armed, cutFor(time.Second), (*faulty).stays, (*faulty).moves}},
	{brokenLink, armed, runsHere, disconnected, sameAgain, []step{(*faulty).armed, cutFor(cutFor30), (*faulty).gaveUp, (*faulty).stays, (*faulty).again}},
	{"the link is cut for good", armed, runsHere, disconnected, sameAgain, []step{(*faulty).armed, linkDown, (*faulty).gaveUp, linkUp, (*faulty).stays, (*faulty).again}},
	{fullDisk, armed, runsHere, noRoom, roomAgain, []step{(*faulty).armed, fillDestination, (*faulty).gaveUp, (*faulty).stays, freeDestination, (*faulty).again}},
	{"refused lease: `peer allow` takes the role away", armed, heldBoth, onlyArmed, contSource,
		[]step{(*faulty).armed, allow("a", "b", "replica"), waits, handOver, contFails, contHere, (*faulty).stays, allow("a", "b", "host")}},
	{interrupted, armed, runsHere, stopped, sameAgain, []step{(*faulty).armed, (*faulty).interrupt, (*faulty).stays, (*faulty).again}},
	{cancelling, armed, runsHere, went, nothing, []step{(*faulty).armed, cancelled, (*faulty).stays, (*faulty).moves}},

	{sourceDies, memory, failsHere, ended, serveHere, []step{(*faulty).driven, killSource, (*faulty).gaveUp, stoppedHere, restartSource, bootsHere}},
	{destDies, memory, runsHere, disconnected, serveAgain, []step{(*faulty).driven, killDestination, (*faulty).gaveUp, restartDestination, (*faulty).stays}},
	{targetDies, memory, runsHere, failed, sameAgain, []step{(*faulty).driven, crashDestination, (*faulty).gaveUp, (*faulty).stays}},
	{brokenLink, memory, runsHere, failed, sameAgain, []step{(*faulty).driven, cutFor(cutFor30), (*faulty).gaveUp, (*faulty).stays}},
	{interrupted, memory, runsHere, stopped, sameAgain, []step{(*faulty).driven, (*faulty).interrupt, (*faulty).stays}},
	{cancelling, memory, runsHere, failed, sameAgain, []step{(*faulty).driven, cancelDriven, (*faulty).gaveUp, (*faulty).stays}},

	{sourceDies, offered, heldThere, ended, serveCont, []step{(*faulty).offered, killSource, (*faulty).gaveUp, contFails, restartSource, contThere, (*faulty).runsThere}},
	{"the source is lost", offered, heldThere, ended, forceCont, []step{(*faulty).offered, killSource, (*faulty).gaveUp, contFails, takeLease, contThere, (*faulty).verifies, restartSource}},
	{destDies, offered, heldBoth, disconnected, contSource, []step{(*faulty).offered, killDestination, (*faulty).gaveUp, contHere, restartDestination, (*faulty).stays}},
	{targetDies, offered, "paused at the source", onlyArmed, contSource, []step{(*faulty).offered, crashDestination, contHere, (*faulty).stays}},
	{"the link is cut for good", offered, heldThere, went, contTarget, []step{(*faulty).offered, linkDown, contFails, linkUp, contThere, (*faulty).runsThere}},
	{fullDisk, offered, heldThere, went, roomCont, []step{(*faulty).offered, fillDestination, contFails, freeDestination, contThere, (*faulty).runsThere}},

	{sourceDies, granted, runsThere, ended, "`sealdisk serve` at the source: what is missing comes", []step{(*faulty).granted, killSource, (*faulty).gaveUp, restartSource, noLimit, (*faulty).verifies, (*faulty).whole}},
	{destDies, granted, failsThere, movedAlready, serveThere, []step{(*faulty).granted, killDestination, (*faulty).gaveUp, stoppedThere, restartDestination, noLimit, bootsThere, (*faulty).whole}},
	{targetDies, granted, goneThere, went, bootThere, []step{(*faulty).granted, crashDestination, noLimit, bootsThere, (*faulty).went}},
	{brokenLink, granted, runsThere, went, nothing, []step{(*faulty).granted, cutFor(cutFor30), noLimit, (*faulty).verifies, (*faulty).whole}},
	{"the link is cut for longer than --source-timeout", granted, "stopped at the destination, if it reads what is missing", movedAlready, contTarget,
		[]step{(*faulty).granted, linkDown, (*faulty).reads, stoppedThere, linkUp, noLimit, contThere, (*faulty).verifies, (*faulty).whole}},
}
