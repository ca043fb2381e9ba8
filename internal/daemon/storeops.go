package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/audit"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/exchange"
)

func (d *Daemon) mount(ctx context.Context, _ *call, r MountRequest) (any, error) {
	if !filepath.IsAbs(r.Dir) {
		return nil, fail(CodeUsage, "", "path %q is not absolute", r.Dir)
	}
	return Nothing{}, d.mounts.mount(ctx, r)
}

// waitMount returns when nothing is mounted at a folder.
func (d *Daemon) waitMount(ctx context.Context, _ *call, r UnmountRequest) (any, error) {
	return Nothing{}, d.mounts.waitFor(ctx, r.Dir)
}

func (d *Daemon) unmount(ctx context.Context, _ *call, r UnmountRequest) (any, error) {
	return Nothing{}, d.mounts.unmount(ctx, r.Dir, r.Force)
}

// verify checks images and reports each fault as an event.
func (d *Daemon) verify(ctx context.Context, c *call, r VerifyRequest) (any, error) {
	if !r.NoKeys {
		if d.locked != nil {
			return nil, d.locked
		}
		if err := d.host.Unlock(); err != nil {
			return nil, err
		}
	}
	ids, err := d.toVerify(r.Name)
	if err != nil {
		return nil, err
	}
	if err := d.growing.Acquire(ctx, 1); err != nil { // the collector waits
		return nil, err
	}
	defer d.growing.Release(1)
	out := Verified{Images: []string{}}
	var faults atomic.Int64
	for _, id := range ids {
		name := d.nameOf(id)
		out.Images = append(out.Images, name)
		var absent atomic.Int64
		partial := d.locked == nil && d.peers.Partial(id)
		report := func(f audit.Fault) {
			if partial && errors.Is(f.Cause, blockstore.ErrNotFound) {
				absent.Add(1)
				return
			}
			faults.Add(1)
			c.emit(Event{Fault: &FaultEvent{
				Image: name, Snapshot: f.Snapshot, Offset: f.Offset, Length: f.Length, Object: f.Object, Cause: f.Cause.Error(),
			}})
		}
		if r.NoKeys {
			err = d.audit(ctx, id, report, c.progress)
		} else {
			err = d.shared.Verify(ctx, id, report, c.progress)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if n := absent.Load(); n > 0 {
			c.note("%s is not whole here: %d objects, or what is below them, have not come yet", name, n)
		}
	}
	out.Faults = faults.Load()
	return out, nil
}

// audit checks an image without keys; if it is in use here, what it looks at stays.
func (d *Daemon) audit(ctx context.Context, id blockstore.ImageID, report func(audit.Fault), p audit.Progress) error {
	if d.shared != nil {
		defer d.shared.Guard(id)()
	}
	return audit.Public(ctx, d.store, id, report, p)
}

// toVerify lists one image, by name or id, or all that the store holds.
func (d *Daemon) toVerify(name string) ([]blockstore.ImageID, error) {
	if name == "" {
		ids, err := d.store.Images()
		if err != nil {
			return nil, fmt.Errorf("daemon: %w", err)
		}
		return ids, nil
	}
	if d.locked == nil {
		e, err := d.names.find(name)
		return []blockstore.ImageID{e.Image}, err
	}
	id, err := blockstore.ParseImageID(name)
	if err != nil {
		return nil, fail(CodeNoKey, "give the image's id instead; verify --no-keys without a name shows ids", "names cannot be read: %w", d.locked)
	}
	if _, _, err := d.store.Head(id); err != nil {
		return nil, fail(CodeNotFound, "", "no image %s: %w", name, err)
	}
	return []blockstore.ImageID{id}, nil
}

func (d *Daemon) nameOf(id blockstore.ImageID) string {
	if d.locked == nil {
		if e, err := d.names.find(id.String()); err == nil {
			return e.Name
		}
	}
	return id.String()
}

// collect drops what nothing refers to and gives the space back. It waits for
// what is being made: its objects have no name yet.
func (d *Daemon) collect(ctx context.Context, c *call, _ Nothing) (any, error) {
	if err := d.aloneGrowing(ctx, c); err != nil {
		return nil, err
	}
	defer d.growing.Release(allGrowing)
	began := time.Now()
	orphans, err := d.dropOrphans(ctx)
	if err != nil {
		return nil, err
	}
	got, err := d.store.Collect(ctx, blockstore.CollectOptions{
		Partial:  d.peers.Partial,
		Progress: func(s blockstore.CollectStats) { c.progress(s.Marked+s.Swept, 0) },
	})
	if err != nil {
		return nil, fmt.Errorf("daemon: collect: %w", err)
	}
	d.peers.Collected()
	freed, err := d.store.Reclaim(ctx)
	if err != nil {
		return nil, fmt.Errorf("daemon: reclaim: %w", err)
	}
	now, err := d.store.Stats()
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	return Collected{
		Objects: got.Swept, Bytes: got.SweptBytes, Orphans: orphans, Freed: freed, FileSize: now.FileBytes, Live: now.LiveBytes,
		Commits: got.Commits, Absent: got.Absent, Duration: int64(time.Since(began)),
	}, nil
}

// aloneGrowing waits until nothing is imported, copied or lent. It does not stand in line:
// whoever came after it would have to wait as well, for as long as a peer likes.
func (d *Daemon) aloneGrowing(ctx context.Context, c *call) error {
	told := false
	tick := time.NewTicker(growingStep)
	defer tick.Stop()
	for !d.growing.TryAcquire(allGrowing) {
		if !told {
			c.note("waiting for imports and transfers to end")
			told = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// growingStep is how often a collection looks whether it may begin.
const growingStep = 50 * time.Millisecond

// dropOrphans removes images without a name: those whose making, or whose
// removal, was cut short. The catalogue is whole, or the store would be locked.
func (d *Daemon) dropOrphans(ctx context.Context) (n int64, err error) {
	ids, err := d.store.Images()
	if err != nil {
		return 0, fmt.Errorf("daemon: %w", err)
	}
	for _, id := range ids {
		if _, err := d.names.find(id.String()); err == nil {
			continue
		}
		if err := d.drop(ctx, id); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// maxTimeout of a close: QEMU answers nobody meanwhile.
const maxTimeout = 30 * time.Second

// migrate hands images over to a peer.
func (d *Daemon) migrate(ctx context.Context, c *call, r MigrateRequest) (any, error) {
	if len(r.Names) == 0 {
		return nil, fail(CodeUsage, "", "no image is named")
	}
	if time.Duration(r.Timeout) > maxTimeout || r.Timeout < 0 {
		return nil, fail(CodeUsage, "", "--handover-timeout is at most %v", maxTimeout)
	}
	m := exchange.Migration{
		Names: r.Names, Peer: r.Peer, Lazy: r.Lazy, PreCopy: r.PreCopy, DryRun: r.DryRun, Bandwidth: r.Bandwidth, Timeout: time.Duration(r.Timeout),
		Stage: c.stage, Progress: c.progress, Note: c.note,
	}
	if r.QMP != "" {
		m.Guest = &exchange.Guest{Monitor: r.QMP, There: r.PeerQMP, Downtime: time.Duration(r.MaxDowntime)}
	}
	if err := d.host.Unlock(); err != nil {
		return nil, err
	}
	began := time.Now()
	got, err := d.peers.Migrate(ctx, m)
	if err != nil {
		return nil, migrateFailed(err)
	}
	out := Migrated{
		Names: r.Names, Peer: r.Peer, Phases: []MigratedPhase{}, Rounds: []MigratedRound{}, Freed: []string{}, Wire: got.Wire, Armed: int64(got.Armed), Offer: int64(got.Offer),
		Fill: int64(got.Fill), Duration: int64(time.Since(began)),
	}
	for _, p := range got.Phases {
		out.Phases = append(out.Phases, MigratedPhase{Phase: p.Phase, Duration: int64(p.Took)})
	}
	for _, round := range got.Rounds {
		out.Rounds = append(out.Rounds, MigratedRound{Bytes: round.Bytes, Duration: int64(round.Took), Sealing: int64(round.Sealed)})
	}
	if g := got.Guest; g != nil {
		out.Guest = &MigratedGuest{Downtime: int64(g.Downtime), Paused: int64(g.Paused), Duration: int64(g.Total), Memory: g.Bytes}
	}
	if !r.Keep && !r.DryRun {
		out.Freed = d.freeMoved(ctx, c, r.Names)
	}
	return out, nil
}

// migrateFailed says what is to be done after a migration that failed.
func migrateFailed(err error) error {
	out := *AsError(fmt.Errorf("migrate: %w", err))
	switch {
	case errors.Is(err, exchange.ErrMoved):
		out.Hint = "the guest belongs there; what is missing comes by itself when both hosts are up"
	case out.Hint == "":
		out.Hint = "the disks have not moved, and what runs on them goes on here; once the reason has gone, the same command begins anew"
	}
	return &out
}

// freePatience is how long a QEMU whose guest has gone may still have the disk open.
const freePatience = 3 * time.Second

// freeMoved removes images that another host has as a whole, and the lease of, once nobody
// here reads them any more. It gives the names of those that are gone.
func (d *Daemon) freeMoved(ctx context.Context, c *call, names []string) (freed []string) {
	freed = []string{}
	patience, cancel := context.WithTimeout(ctx, freePatience) // for all together
	defer cancel()
	tick := time.NewTicker(growingStep)
	defer tick.Stop()
	for _, name := range names {
		e, err := d.names.find(name)
		for err == nil {
			err = d.removeImage(ctx, e, func() error { return d.checkMoved(e) })
			if !errors.Is(err, image.ErrInUse) {
				break
			}
			select {
			case <-tick.C:
				err = nil
				continue
			case <-patience.Done():
			}
		}
		if err != nil {
			c.note("this host keeps its copy of %s, read-only: %v; sealdisk rm %s frees it", name, err, name)
			continue
		}
		freed = append(freed, e.Name)
	}
	return freed
}

// checkMoved fails if this host may write an image: it has come back; or if a peer fetches it from here.
func (d *Daemon) checkMoved(e record.Entry) error {
	chain, err := lease.Load(d.store, e.Image)
	if err == nil && chain.Newest().Holder == d.host.Key.Public() {
		err = fmt.Errorf("%s: this host has its lease: %w", e.Name, image.ErrExists)
	}
	if err == nil && d.shared.Guarded(e.Image) {
		err = fmt.Errorf("a peer fetches %s from here: %w", e.Name, image.ErrInUse)
	}
	return err
}

// rememberGiven has the anchor keep of an image that is about to be removed that this host gave
// its lease away, if it did: a chain that ends before that would make it a second writer, and
// comes from whoever was not told. What cannot be read is remembered as it is.
func (d *Daemon) rememberGiven(id blockstore.ImageID) (given bool, err error) {
	chain, err := lease.Load(d.store, id)
	if err != nil {
		return !errors.Is(err, blockstore.ErrNotFound), nil
	}
	us, newest := d.host.Key.Public(), chain.Newest()
	if newest.Holder == us || !slices.ContainsFunc(chain, func(l lease.Link) bool { return l.Holder == us }) {
		return false, nil
	}
	head, raw, err := d.store.Head(id)
	if err != nil {
		return true, nil
	}
	c, err := blockstore.ParseCommit(raw)
	if err != nil {
		return true, nil
	}
	// As if the new holder had committed already; it does that before it writes.
	mark := anchor.Mark{Era: newest.Era, Term: newest.Term, Sequence: c.Sequence, Commit: head}
	if old, seen, err := d.names.anchor.Load(id); err != nil || seen && old.Position().Compare(mark.Position()) >= 0 {
		return true, err
	}
	return true, d.names.anchor.Save(id, mark)
}

func (d *Daemon) stats(_ context.Context, _ *call, _ Nothing) (any, error) {
	s, err := d.store.Stats()
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	available, total, err := d.store.Free()
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	images, err := d.store.Images()
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	dirs, _ := d.mounts.dirs()
	return Stats{
		Store: d.opts.Store, ID: d.store.ID().String(), Images: len(images), Objects: s.Objects, Live: s.LiveBytes, Dead: s.DeadBytes,
		Files: s.FileBytes, Available: available, Total: total, Mounts: dirs, PID: os.Getpid(),
	}, nil
}
