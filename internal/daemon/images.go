package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/picture"
)

// operations is the table of the API.
func (d *Daemon) operations() map[string]operation {
	return map[string]operation{
		OpStatus:     typed(d.status),
		OpImport:     keyed(d, d.importImage),
		OpExport:     keyed(d, d.export),
		OpList:       keyed(d, d.list),
		OpNames:      keyed(d, d.listNames),
		OpInfo:       keyed(d, d.info),
		OpRemove:     keyed(d, d.remove),
		OpRename:     keyed(d, d.rename),
		OpResize:     keyed(d, d.resize),
		OpMount:      keyed(d, d.mount),
		OpUnmount:    typed(d.unmount),
		OpWait:       typed(d.waitMount),
		OpSnapshot:   keyed(d, d.snapshot),
		OpClone:      keyed(d, d.clone),
		OpRecipients: keyed(d, d.recipients),
		OpVerify:     typed(d.verify),
		OpCollect:    keyed(d, d.collect),
		OpStats:      typed(d.stats),
		OpPeers:      keyed(d, d.listPeers),
		OpPeerAdd:    keyed(d, d.addPeer),
		OpPeerRemove: keyed(d, d.removePeer),
		OpPeerAllow:  keyed(d, d.allowPeer),
		OpPull:       keyed(d, d.pull),
		OpPush:       keyed(d, d.push),
		OpFill:       keyed(d, d.fill),
		OpBandwidth:  keyed(d, d.bandwidth),
		OpDeps:       keyed(d, d.deps),
		OpMigrate:    keyed(d, d.migrate),
		OpLease:      keyed(d, d.leases),
		OpTakeLease:  keyed(d, d.takeLease),
	}
}

// keyed is typed for operations that need the host's keys.
func keyed[R any](d *Daemon, run func(ctx context.Context, c *call, r R) (any, error)) operation {
	return func(ctx context.Context, c *call) (any, error) {
		if d.locked != nil {
			return nil, d.locked
		}
		return typed(run)(ctx, c)
	}
}

func (d *Daemon) status(_ context.Context, _ *call, _ Nothing) (any, error) {
	dirs, over := d.mounts.dirs()
	return Status{PID: os.Getpid(), Command: d.opts.Command, Persistent: d.opts.Persistent, Ending: over, Mounts: dirs}, nil
}

// find resolves NAME or NAME@SNAP. That the snapshot exists is found out when
// it is opened.
func (d *Daemon) find(s string) (record.Entry, diskKey, error) {
	name, snapshot, err := splitName(s)
	if err != nil {
		return record.Entry{}, diskKey{}, err
	}
	e, err := d.names.find(name)
	return e, diskKey{id: e.Image, snapshot: snapshot}, err
}

// findWhole is find where a snapshot makes no sense.
func (d *Daemon) findWhole(s string) (record.Entry, diskKey, error) {
	e, key, err := d.find(s)
	if err == nil && key.snapshot != "" {
		err = fail(CodeUsage, "", "%q is a snapshot; this works on images only", s)
	}
	return e, key, err
}

// with runs work on a disk, which it opens, or shares with the mounts.
func (d *Daemon) with(ctx context.Context, key diskKey, u use, work func(*image.Disk) error) error {
	disk, release, err := d.disks.acquire(ctx, key, u)
	if err != nil {
		return err
	}
	return errors.Join(work(disk), release(ctx))
}

// changed makes mounts and listings see what an operation did to an image.
func (d *Daemon) changed(key diskKey, names ...string) {
	d.looks.forget(key)
	for _, n := range names {
		d.mounts.invalidate(n)
	}
}

func (d *Daemon) list(ctx context.Context, _ *call, _ Nothing) (any, error) {
	out := []Listed{}
	for _, e := range d.names.list() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key := diskKey{id: e.Image}
		l := Listed{Name: e.Name, ID: e.Image.String(), Snapshots: []string{}, InUse: d.disks.held(key), NoKeys: isReplica(e)}
		if l.NoKeys {
			out = append(out, l)
			continue
		}
		at, err := d.look(ctx, key)
		if err != nil {
			l.Error = err.Error()
		} else {
			l.Size, l.Allocated, l.Time = at.size, at.allocated, at.changed
			for _, s := range at.snapshots {
				l.Snapshots = append(l.Snapshots, s.Name)
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// listNames lists names alone, which opens no image.
func (d *Daemon) listNames(context.Context, *call, Nothing) (any, error) {
	names := []string{}
	for _, e := range d.names.list() {
		names = append(names, e.Name)
	}
	return names, nil
}

func (d *Daemon) info(ctx context.Context, _ *call, r NameRequest) (any, error) {
	e, key, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	if isReplica(e) {
		return d.replicaInfo(e, key)
	}
	var in image.Info
	var objects int64
	err = d.with(ctx, key, glance, func(disk *image.Disk) (err error) {
		if in, err = disk.Info(ctx); err != nil {
			return err
		}
		objects, err = disk.Objects(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	out := Info{
		Name: e.Name, ID: e.Image.String(), Size: in.Size, BlockSize: in.BlockSize, Allocated: in.Allocated, Stored: in.Stored,
		Uncommitted: in.Dirty, Objects: objects, Compression: in.Compression.String(), Segments: segmentsOf(in.Plan),
		Commit: CommitInfo{ID: in.Commit.String(), Era: uint64(in.Position.Era), Term: uint64(in.Position.Term), Seq: uint64(in.Position.Sequence), Time: in.Time},
		Epochs: in.Epochs, Recipients: in.Recipients, Weakest: crypto.Weakest(in.Recipients).String(), Snapshots: []SnapshotInfo{},
		Kind: in.Labels["kind"], InUse: d.disks.held(key),
	}
	if key.snapshot != "" {
		out.Name += "@" + key.snapshot
	}
	for _, s := range in.Snapshots {
		out.Snapshots = append(out.Snapshots, SnapshotInfo{Name: s.Name, Time: s.Time, Commit: s.Commit.String()})
	}
	out.Parent = d.parentOf(in)
	return out, d.whose(e, &out)
}

func (d *Daemon) parentOf(in image.Info) *ParentInfo {
	if in.Parent == nil {
		return nil
	}
	out := &ParentInfo{ID: in.Parent.Image.String(), Commit: in.Parent.Commit.String()}
	if p, err := d.names.find(out.ID); err == nil {
		out.Name = p.Name
	}
	return out
}

// deps gives the dependency map of an image.
func (d *Daemon) deps(ctx context.Context, _ *call, r NameRequest) (any, error) {
	_, key, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	out := Deps{Name: r.Name, Startup: []picture.Range{}}
	err = d.with(ctx, key, glance, func(disk *image.Disk) error {
		in, err := disk.Info(ctx)
		if err != nil {
			return err
		}
		list, err := disk.Startup(ctx)
		for _, r := range list {
			out.Startup = append(out.Startup, picture.Range{Offset: r.Offset, Length: r.Length, Burst: r.Burst, Ms: r.Ms})
		}
		out.Size, out.Parent = in.Size, d.parentOf(in)
		return err
	})
	return out, err
}

func segmentsOf(p record.PlanStats) Segments {
	s := Segments{Planned: int64(p.Planned), Merged: int64(p.Merged), Count: int64(p.Count)}
	if p.Planned > 0 {
		s.ReductionPercent = float64(p.Merged) / float64(p.Planned) * 100
	}
	return s
}

func (d *Daemon) remove(ctx context.Context, _ *call, r NameRequest) (any, error) {
	e, key, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	if key.snapshot != "" {
		return Nothing{}, d.removeSnapshot(ctx, e, key)
	}
	return Nothing{}, d.removeImage(ctx, e, func() error {
		if r.Force {
			return nil
		}
		return d.checkBare(ctx, e)
	})
}

// removeImage removes an image that nobody uses, if check, made while nobody can begin to,
// does not fail.
func (d *Daemon) removeImage(ctx context.Context, e record.Entry, check func() error) error {
	leave, err := d.peers.Enter(ctx, e.Image) // a pull would bring it back
	if err != nil {
		return err
	}
	defer leave()
	key := diskKey{id: e.Image}
	release, err := d.disks.claim(key, e.Name)
	if err != nil {
		return err
	}
	defer release()
	if err := check(); err != nil {
		return err
	}
	// The order is docs/format.md §11: the name first.
	if err := d.names.remove(ctx, e.Image); err != nil {
		return err
	}
	d.changed(key, e.Name)
	return d.drop(ctx, e.Image)
}

// checkBare fails if a claimed image has snapshots, or does not say.
func (d *Daemon) checkBare(ctx context.Context, e record.Entry) error {
	snapshots, err := d.snapshotsOf(ctx, e)
	if err != nil {
		failure := AsError(err)
		return &Error{Code: failure.Code, Message: fmt.Sprintf("%s: its snapshots are not known: %v", e.Name, err), Hint: "--force removes it all the same", cause: err}
	}
	if snapshots > 0 {
		return fail(CodeInUse, "--force removes them too", "%s has %d snapshots", e.Name, snapshots)
	}
	return nil
}

// snapshotsOf counts the snapshots of an image that is claimed; it opens it, beside
// disks, unless it is a replica.
func (d *Daemon) snapshotsOf(ctx context.Context, e record.Entry) (n int, err error) {
	if isReplica(e) {
		_, c, err := d.publicHead(e.Image)
		if err != nil {
			return 0, err
		}
		return d.publicSnapshots(c)
	}
	if err := d.host.Unlock(); err != nil {
		return 0, err
	}
	disk, err := d.shared.Open(ctx, e.Image, image.OpenOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, disk.Close(context.WithoutCancel(ctx))) }()
	return len(disk.Snapshots()), nil
}

// drop removes an image that has no name.
func (d *Daemon) drop(ctx context.Context, id blockstore.ImageID) error {
	d.peers.Forget(id)
	given, err := d.rememberGiven(id)
	if err != nil {
		return err
	}
	if err := d.store.RemoveImage(ctx, id); err != nil {
		return fmt.Errorf("daemon: remove image: %w", err)
	}
	if given {
		return nil
	}
	return d.names.anchor.Forget(id)
}

func (d *Daemon) removeSnapshot(ctx context.Context, e record.Entry, key diskKey) error {
	release, err := d.disks.claim(key, e.Name+"@"+key.snapshot)
	if err != nil {
		return err
	}
	defer release()
	head := diskKey{id: e.Image}
	err = d.with(ctx, head, holds, func(disk *image.Disk) error { return disk.RemoveSnapshot(ctx, key.snapshot) })
	d.looks.forget(key)
	d.changed(head, e.Name+"@"+key.snapshot)
	return err
}

func (d *Daemon) rename(ctx context.Context, _ *call, r NewNameRequest) (any, error) {
	e, key, err := d.findWhole(r.Name)
	if err != nil {
		return nil, err
	}
	release, err := d.names.reserve(r.New)
	if err != nil {
		return nil, err
	}
	defer release()
	// The image's own label first: init --recover believes it, and a catalogue
	// that is a step behind is only a name that is a step behind.
	err = d.with(ctx, key, holds, func(disk *image.Disk) error {
		info, err := disk.Info(ctx)
		if err != nil {
			return err
		}
		labels := maps.Clone(info.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels["name"] = r.New
		return disk.SetLabels(ctx, labels)
	})
	if err != nil && !errors.Is(err, image.ErrReadOnly) && !errors.Is(err, crypto.ErrNoIdentity) {
		return nil, err // what others write has another name here only
	}
	if err := d.names.rename(ctx, e.Image, r.New); err != nil {
		return nil, err
	}
	d.changed(key, e.Name, r.New)
	return Nothing{}, nil
}

func (d *Daemon) resize(ctx context.Context, _ *call, r ResizeRequest) (any, error) {
	e, key, err := d.findWhole(r.Name)
	if err != nil {
		return nil, err
	}
	err = d.with(ctx, key, holds, func(disk *image.Disk) error {
		return errors.Join(disk.Resize(ctx, r.Size), disk.Flush(ctx))
	})
	d.changed(key, e.Name)
	return Nothing{}, err
}

func (d *Daemon) snapshot(ctx context.Context, _ *call, r NameRequest) (any, error) {
	e, key, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	if key.snapshot == "" {
		return nil, fail(CodeUsage, "sealdisk snapshot NAME@SNAP", "%q does not say what the snapshot is to be called", r.Name)
	}
	head := diskKey{id: e.Image}
	err = d.with(ctx, head, holds, func(disk *image.Disk) error { return disk.Snapshot(ctx, key.snapshot) })
	if errors.Is(err, image.ErrExists) {
		err = fail(CodeExists, "", "snapshot %s exists already", r.Name)
	}
	d.changed(head, r.Name)
	return Nothing{}, err
}

func (d *Daemon) clone(ctx context.Context, _ *call, r NewNameRequest) (any, error) {
	e, key, err := d.find(r.Name)
	if err != nil {
		return nil, err
	}
	if err := d.whole(e); err != nil {
		return nil, err
	}
	release, err := d.names.reserve(r.New)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.growing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.growing.Release(1)
	id, err := d.makeClone(ctx, key, record.Entry{Name: r.New, Labels: cloneLabels(e.Labels, r.New)}, nil)
	if err != nil {
		return nil, err
	}
	return Imported{Name: r.New, ID: id.String()}, nil
}

func cloneLabels(of map[string]string, name string) map[string]string {
	labels := map[string]string{"name": name}
	if kind := of["kind"]; kind != "" {
		labels["kind"] = kind
	}
	return labels
}

// makeClone clones an image or a snapshot, lets fill change the clone, and lists
// it as e, whose name is reserved. If anything fails there is no clone.
func (d *Daemon) makeClone(ctx context.Context, of diskKey, e record.Entry, fill func(*image.Disk) error) (blockstore.ImageID, error) {
	head := diskKey{id: of.id}
	err := d.with(ctx, head, holds, func(disk *image.Disk) (err error) {
		e.Image, err = disk.Clone(ctx, of.snapshot, image.CreateOptions{
			Labels: e.Labels, Recipients: disk.Recipients(), Admins: d.host.Admins,
		})
		return err
	})
	d.looks.forget(head)
	if err != nil {
		return e.Image, fmt.Errorf("daemon: clone: %w", err)
	}
	if fill != nil {
		err = d.with(ctx, diskKey{id: e.Image}, holds, fill)
	}
	if err == nil {
		err = d.names.add(ctx, e)
	}
	if err != nil {
		err = errors.Join(err, d.drop(context.WithoutCancel(ctx), e.Image))
	}
	d.changed(diskKey{id: e.Image}, e.Name)
	return e.Image, err
}

func (d *Daemon) recipients(ctx context.Context, _ *call, r RecipientsRequest) (any, error) {
	_, key, err := d.findWhole(r.Name)
	if err != nil {
		return nil, err
	}
	if err := crypto.CheckClasses(r.Add, r.AllowClassic); err != nil {
		return nil, err
	}
	out := []Recipient{}
	err = d.with(ctx, key, holds, func(disk *image.Disk) error {
		change := func(now []string) ([]string, error) { return changeRecipients(now, r) }
		if err := disk.SetRecipients(ctx, change); err != nil {
			return err
		}
		for _, s := range disk.Recipients() {
			_, class, _ := crypto.ParseRecipient(s)
			out = append(out, Recipient{s, crypto.Fingerprint(s), class.String(), slices.Contains(d.host.Recipients, s)})
		}
		return nil
	})
	return out, err
}

func changeRecipients(now []string, r RecipientsRequest) ([]string, error) {
	next := slices.Clone(now)
	for _, s := range r.Add {
		if _, _, err := crypto.ParseRecipient(s); err != nil {
			return nil, err
		}
		c, err := crypto.CanonicalRecipient(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(next, c) {
			next = append(next, c)
		}
	}
	for _, s := range r.Remove {
		n := len(next)
		c, _ := crypto.CanonicalRecipient(s)
		next = slices.DeleteFunc(next, func(have string) bool { return have == c || crypto.Fingerprint(have) == s })
		if len(next) == n {
			return nil, fail(CodeNotFound, "sealdisk recipients ls NAME lists them", "%s has no such recipient", r.Name)
		}
	}
	if len(next) == 0 {
		return nil, fail(CodeUsage, "add another recipient first", "nobody could open %s any more", r.Name)
	}
	return next, nil
}
