package exchange

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// Guest is the virtual machine that moves with its disks.
type Guest struct {
	Monitor  string        // path of its QMP socket here
	There    string        // name of the QMP socket of the QEMU at the destination, in the folder that it serves
	Downtime time.Duration // that QEMU aims at; 0: its own
}

// hangUpTimeout is how long the end of a stream may take, and passageTimeout how long its beginning.
const (
	hangUpTimeout  = 10 * time.Second
	passageTimeout = 30 * time.Second
)

// streamName is what QEMU calls its end of the tunnel.
const streamName = "sealdisk"

// claimTimeout is how long a guest that has moved may take to open its disks.
const claimTimeout = 60 * time.Second

// ErrGuest: the guest cannot be moved as it is. ErrHeld: it stands still on both sides.
var (
	ErrGuest = errors.New("the guest cannot be moved")
	ErrHeld  = errors.New("the guest stands still")
)

// drive moves the guest, whose disks are armed.
func (mv *Moving) drive(ctx context.Context) error {
	g := mv.m.Guest
	monitor, err := qemu.Dial(ctx, g.Monitor)
	if err != nil {
		return err
	}
	defer monitor.Close()
	conn, err := mv.passage(ctx, monitor)
	if err != nil {
		return err
	}
	defer conn.Close()
	local, err := monitor.Stream(ctx, streamName)
	if err != nil {
		return err
	}
	carrying, stop := context.WithCancel(ctx)
	defer stop()
	carried := make(chan error, 1)
	go func() { carried <- transfer.Tunnel(carrying, conn, local) }()
	defer mv.release()
	report, err := monitor.Migrate(ctx, qemu.Options{
		URI: "fd:" + streamName, Downtime: g.Downtime, Bandwidth: mv.m.Bandwidth, Progress: mv.memory(),
		Paused: mv.lastRound,
	})
	if err != nil {
		stop()
		<-carried
		return err
	}
	mv.mu.Lock()
	mv.out.Guest = &report
	mv.mu.Unlock()
	select { // QEMU says that all has gone: what remains is that the other side hangs up
	case err = <-carried:
	case <-time.After(hangUpTimeout):
		stop()
		err = <-carried
	}
	mv.x.Log.Info("the stream of the guest's memory has ended", "err", err)
	return nil
}

// memoryStep is how often the way of the memory is told of.
const memoryStep = time.Second

// memory makes stages of what QEMU says of its memory.
func (mv *Moving) memory() func(qemu.Progress) {
	n, next := 0, time.Now().Add(memoryStep)
	return func(p qemu.Progress) {
		mv.m.Progress(p.Done, p.Total)
		mv.share(p)
		if now := time.Now(); now.After(next) {
			n, next = n+1, now.Add(memoryStep)
			mv.m.Stage(Stage{Phase: PhaseMemory, Round: n, Bytes: p.Done, Rate: p.Rate, Dirty: p.Dirty, Downtime: p.Downtime})
		}
	}
}

// What the disks leave to the memory.
const (
	contended = 2 // the memory that the guest writes is more than one of so many parts of what goes
	heldPart  = 8 // then the disks have one of so many parts
	heldLeast = 1 << 20
)

// share lets the memory have most of the link if it does not shrink beside the disks, the rest of
// which can come after the handover: memory cannot.
func (mv *Moving) share(p qemu.Progress) {
	if mv.m.PreCopy || p.Rate == 0 || p.Dirty < p.Rate/contended {
		return
	}
	mv.mu.Lock()
	defer mv.mu.Unlock()
	if mv.held {
		return
	}
	mv.held = true
	mv.hold.Set(max(p.Rate/heldPart, heldLeast))
	mv.m.Note("the guest writes %.1f MB of its memory a second, and %.1f go: its disks wait; if it does not get across all the same, a larger --max-downtime lets it", float64(p.Dirty)/1e6, float64(p.Rate)/1e6)
}

// release ends that, for good: the guest stands still, or does not move.
func (mv *Moving) release() {
	mv.mu.Lock()
	defer mv.mu.Unlock()
	mv.held = true
	mv.hold.Set(0)
}

// checkGuest finds what would keep the guest from moving, before anything is copied.
func (mv *Moving) checkGuest(ctx context.Context) error {
	monitor, err := qemu.Dial(ctx, mv.m.Guest.Monitor)
	if err != nil {
		return err
	}
	status, err := monitor.Status(ctx)
	if err == nil && status != "running" && status != "paused" {
		err = fmt.Errorf("%w: it is %q", ErrGuest, status)
	}
	return errors.Join(err, monitor.Close())
}

// passage asks the destination for a way to its QEMU.
func (mv *Moving) passage(ctx context.Context, monitor *qemu.Monitor) (*peer.Conn, error) {
	here, err := monitor.Version(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := mv.x.dial(ctx, mv.to, peer.Tunnel)
	if err != nil {
		return nil, err
	}
	mv.tunnel.Store(conn)
	rate, unbound := mv.x.bound(mv.disks[0].entry.Name, mv.m.Bandwidth)
	conn.Bound(rate)
	context.AfterFunc(ctx, unbound)
	p := transfer.Passage{Version: transfer.Version, Image: mv.disks[0].entry.Image, Guest: mv.m.Guest.There}
	asking, cancel := context.WithTimeout(ctx, passageTimeout)
	defer cancel()
	stop := context.AfterFunc(asking, func() { _ = conn.Close() })
	opened, err := p.Ask(conn)
	if err != nil || !stop() {
		return nil, errors.Join(err, asking.Err(), conn.Close())
	}
	var there qemu.Version
	if _, err := fmt.Sscanf(opened.QEMU, "%d.%d.%d", &there.Major, &there.Minor, &there.Micro); err != nil {
		return nil, errors.Join(fmt.Errorf("version %q: %w", opened.QEMU, transfer.ErrProtocol), conn.Close())
	}
	if there.Older(here) {
		return nil, errors.Join(fmt.Errorf("%w: QEMU is %v there and %v here", ErrGuest, there, here), conn.Close())
	}
	return conn, nil
}

// guestName is what a QMP socket may be called.
var guestName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// receiveGuest carries the memory of a guest to a QEMU of this host that waits for it.
func (x *Exchange) receiveGuest(ctx context.Context, conn *peer.Conn) {
	defer x.Metrics.Running("guests")()
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	late := time.AfterFunc(passageTimeout, cancel)
	p, err := transfer.ReadPassage(conn)
	if err != nil {
		x.Log.Warn("a tunnel that leads nowhere", "peer", conn.Peer.Name, "err", err)
		return
	}
	local, err := x.admitGuest(ctx, conn, p)
	if !late.Stop() || err != nil {
		// Which of the reasons it is, is none of the peer's business.
		x.Metrics.Refused("guest")
		x.Log.Warn("a guest was refused", "peer", conn.Peer.Name, "guest", p.Guest, "err", err)
		if err := (transfer.Opened{Refused: "no QEMU of that name waits for a guest here with the disks that are being handed over; the log there has more"}).Answer(conn); err != nil {
			x.Log.Info("the peer was not told", "peer", conn.Peer.Name, "err", err)
		}
		return
	}
	err = transfer.Tunnel(ctx, conn, local)
	x.Log.Info("the memory of a guest has come", "peer", conn.Peer.Name, "guest", p.Guest, "err", err)
}

// admitGuest gives the stream to a QEMU that waits for a guest, if the peer may give it one: it
// is handing over all the disks that this QEMU has.
func (x *Exchange) admitGuest(ctx context.Context, conn *peer.Conn, p transfer.Passage) (net.Conn, error) {
	in := x.coming(p.Image)
	if in == nil || in.client.Conn.Peer.Key != conn.Peer.Key || !in.guest.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("image %v is not being handed over, or has a guest: %w", p.Image, transfer.ErrRefused)
	}
	admitted := false
	defer func() { in.guest.Store(admitted) }()
	if x.Guests == "" || !guestName.MatchString(p.Guest) {
		return nil, fmt.Errorf("no folder of monitors was named (serve --guests), or %q is no name of one: %w", p.Guest, transfer.ErrRefused)
	}
	monitor, err := qemu.Dial(ctx, filepath.Join(x.Guests, p.Guest))
	if err != nil {
		return nil, err
	}
	defer monitor.Close()
	if err := x.ownsDisks(ctx, conn, monitor); err != nil {
		return nil, err
	}
	version, err := monitor.Version(ctx)
	if err != nil {
		return nil, err
	}
	local, err := monitor.Stream(ctx, streamName)
	if err != nil {
		return nil, err
	}
	if err = monitor.Incoming(ctx, "fd:"+streamName); err == nil {
		err = (transfer.Opened{QEMU: version.String()}).Answer(conn)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("was it started with -incoming defer? %w", err), local.Close())
	}
	admitted = true
	return local, nil
}

// ownsDisks fails if a QEMU has a disk that is not being handed over by the peer, from whom its
// memory is to come: whoever has the memory has the disks.
func (x *Exchange) ownsDisks(ctx context.Context, conn *peer.Conn, monitor *qemu.Monitor) error {
	disks, err := monitor.Disks(ctx)
	if err != nil {
		return err
	}
	if len(disks) == 0 {
		return fmt.Errorf("it has no disk: %w", transfer.ErrRefused)
	}
	for _, file := range disks {
		id, err := x.Names.Mounted(file)
		if err != nil {
			return fmt.Errorf("its disk %s: %w: %w", file, transfer.ErrRefused, err)
		}
		from, err := x.Book.Pinned(conn.Peer.Key)
		if err != nil {
			return err
		}
		e, err := x.Names.Lookup(id.String())
		if err != nil {
			return err
		}
		if in := x.coming(id); in == nil || in.client.Conn.Peer.Key != conn.Peer.Key || rank(role(from, e)) < rank(peer.Host) {
			return fmt.Errorf("its disk %s is not being handed over: %w", file, transfer.ErrRefused)
		}
	}
	return nil
}
