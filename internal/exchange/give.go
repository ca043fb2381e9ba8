package exchange

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/internal/handover"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// boundFill bounds what a peer fetches over connections of its own, which it does to fill an image
// that has moved there, until done.
func (x *Exchange) boundFill(key peer.Fingerprint, rate *peer.Rate) (done func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fills[key] == nil {
		x.fills[key] = map[*peer.Rate]struct{}{}
	}
	x.fills[key][rate] = struct{}{}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		rate.Set(0) // connections that have it go on without
		if delete(x.fills[key], rate); len(x.fills[key]) == 0 {
			delete(x.fills, key)
		}
	}
}

// fillRates are the bounds of a peer that fills images.
func (x *Exchange) fillRates(key peer.Fingerprint) []*peer.Rate {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Collect(maps.Keys(x.fills[key]))
}

// Stage is where a migration stands: at the beginning of a phase, or after a round.
type Stage struct {
	Phase    string
	Round    int           // 0: the phase begins
	Bytes    int64         // of the round, over the network
	Took     time.Duration // that the round took
	Rate     int64         // bytes per second
	Dirty    int64         // bytes per second that were written since the one before
	Downtime time.Duration // that the disks would add to the guest's, were they handed over now
}

// PhaseTime is how long a phase took.
type PhaseTime struct {
	Phase string
	Took  time.Duration
}

// enter begins a phase.
func (mv *Moving) enter(phase string) {
	mv.leave()
	mv.mu.Lock()
	mv.out.Phases = append(mv.out.Phases, PhaseTime{Phase: phase})
	mv.phase = time.Now()
	mv.mu.Unlock()
	mv.m.Stage(Stage{Phase: phase})
}

// leave notes how long the phase took.
func (mv *Moving) leave() {
	mv.mu.Lock()
	defer mv.mu.Unlock()
	if n := len(mv.out.Phases); n > 0 {
		mv.out.Phases[n-1].Took = time.Since(mv.phase)
	}
}

// written is how many bytes were written to all images so far.
func (mv *Moving) written() (n int64) {
	for _, d := range mv.disks {
		n += mv.x.Names.Written(d.entry.Image)
	}
	return n
}

// tell tells of a round. The next one has to bring what is written during this one and the pause
// after it.
func (mv *Moving) tell(phase string, n int, r Round) {
	perSecond := func(n int64, took time.Duration) int64 { return int64(float64(n) / max(took.Seconds(), 1e-3)) }
	now, written := time.Now(), mv.written()
	mv.mu.Lock()
	dirty := perSecond(written-mv.toldOf, now.Sub(mv.told))
	mv.told, mv.toldOf = now, written
	mv.mu.Unlock()
	s := Stage{Phase: phase, Round: n, Bytes: r.Bytes, Took: r.Took, Rate: perSecond(r.Bytes, r.Took), Dirty: dirty}
	next := float64(dirty) * (r.Took + keepPause).Seconds()
	s.Downtime = time.Duration(float64(r.Took) * min(1, next/float64(max(r.Bytes, 1))))
	mv.m.Stage(s)
}

// gone says whether the destination has the leases of all images.
func (mv *Moving) gone() bool {
	for _, d := range mv.disks {
		chain, err := lease.Load(mv.x.Store, d.entry.Image)
		if err != nil || peer.FingerprintOf(chain.Newest().Holder) != mv.to.Key {
			return false
		}
	}
	return true
}

// handOver arms the handover and returns when all leases have gone; guest is what went wrong
// with the guest though they have.
func (mv *Moving) handOver(ctx context.Context) (guest, err error) {
	var ids []blockstore.ImageID
	for _, d := range mv.disks {
		ids = append(ids, d.entry.Image)
	}
	armed, err := mv.x.Names.Arm(ids, mv.to.Key, mv.m.Timeout, mv.offer)
	if err != nil {
		return nil, err
	}
	for _, id := range ids { // it may have gone before it was armed
		if mine, err := mv.x.holds(id); err == nil && !mine {
			mv.x.Names.Gone(id, mv.to.Key)
		}
	}
	mv.enter(PhaseArmed)
	began := time.Now()
	guest, err = mv.waitGiven(ctx, armed, len(ids))
	armed.Disarm() // none is being given any more
	switch left := len(ids) - armed.Count(); {
	case left == len(ids):
		return nil, err
	case left > 0:
		return nil, fmt.Errorf("%w, %s, as far as %d of %d; the others go there when they are opened for writing there: %w", ErrMoved, mv.to.Name, len(ids)-left, len(ids), err)
	}
	mv.enter(PhaseHandover)
	mv.mu.Lock()
	mv.out.Armed = time.Since(began)
	mv.mu.Unlock()
	return guest, nil
}

// waitGiven lets the guest be moved, and returns when all leases have gone or that fails.
func (mv *Moving) waitGiven(ctx context.Context, armed *handover.Armed, left int) (guest, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	driven := make(chan error, 1)
	var driver sync.WaitGroup
	if mv.m.Guest != nil {
		driver.Go(func() {
			guest = mv.drive(ctx)
			driven <- guest
		})
	}
	moving, still := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { mv.keepClose(moving) })
	err = mv.untilGiven(ctx, armed, left, driven)
	still()
	if err != nil {
		cancel() // the guest stays
	}
	driver.Wait()
	keeping.Wait()
	return guest, err
}

// keepPause is how long keepClose waits at least between two rounds.
const keepPause = 200 * time.Millisecond

// keepClose goes on copying while the handover is armed, so that little is left for the moment
// when the guest stands still; it takes a third of the time at most.
func (mv *Moving) keepClose(ctx context.Context) {
	pause := keepPause
	for n := 1; ; n++ {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		if r, err := mv.round(ctx); err != nil {
			mv.x.Log.Debug("a round while armed", "err", err) // whoever waits for the handover learns why
		} else {
			mv.tell(PhaseArmed, n, r)
		}
		pause = max(keepPause, 2*time.Since(began))
	}
}

func (mv *Moving) untilGiven(ctx context.Context, armed *handover.Armed, left int, driven <-chan error) error {
	var late <-chan time.Time
	for left > 0 {
		select {
		case <-armed.Given():
			left--
		case err := <-driven:
			if err != nil {
				return err
			}
			late = time.After(claimTimeout)
		case <-late:
			return fmt.Errorf("%w: its memory has gone to %s, which has not opened its disks", ErrHeld, mv.to.Name)
		case <-mv.lost:
			return mv.whyLost()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// whyLost gives the error of a push that failed.
func (mv *Moving) whyLost() error {
	for _, d := range mv.disks {
		select {
		case <-d.ended:
			if d.err != nil {
				return fmt.Errorf("%s: %w", d.entry.Name, d.err)
			}
		default:
		}
	}
	return fmt.Errorf("the destination has ended it: %w", transfer.ErrConnection)
}

// lastRound is a round while the guest stands still. What there is no time for comes after the
// handover, unless all is to come before.
func (mv *Moving) lastRound(ctx context.Context) error {
	mv.release()
	wait := mv.m.Timeout
	if !mv.m.PreCopy {
		wait = min(wait, lastWait)
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := mv.sync(limited)
	switch {
	case err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
		return err
	case mv.m.PreCopy:
		return fmt.Errorf("%w: %v were not enough for what its disks had changed last", ErrGuest, wait)
	}
	mv.m.Note("%v were not enough for the last round: what is missing comes after the handover", wait)
	return nil
}

// offer is called while nobody writes: the destination gets the last state, so that it has it if this
// host is lost before the destination claims it.
func (mv *Moving) offer(ctx context.Context) {
	began := time.Now()
	if err := mv.lastRound(ctx); err != nil {
		mv.x.Log.Warn("the destination does not have the last state yet", "err", err)
	}
	mv.mu.Lock()
	mv.out.Offer = time.Since(began)
	mv.mu.Unlock()
}
