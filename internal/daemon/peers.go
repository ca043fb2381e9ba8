package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/exchange"
	"github.com/sealdisk/sealdisk/internal/handover"
	"github.com/sealdisk/sealdisk/internal/home"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// peersPatience is how long the end of a daemon waits for answers that peers are getting.
const peersPatience = 5 * time.Second

// meetPeers opens the book of peers and makes this host's dealings with them.
func (d *Daemon) meetPeers(a *anchor.Anchor) (err error) {
	d.book = peer.NewBook(d.host.Peers())
	d.peers, err = exchange.New(exchange.Options{
		Store: d.store, Shared: d.shared, Anchor: a, Key: d.host.Key, Identities: d.host.Identities(), Recipients: d.host.Recipients, Admins: d.host.Admins,
		Book: d.book, Names: peersNames{d}, Growing: d.growing, SourceTimeout: cmp.Or(d.opts.SourceTimeout, defaultSourceTimeout), Guests: d.opts.Guests, Metrics: d.counts, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.gauges()
	d.peers.Resume(d.opts.Persistent)
	return nil
}

// defaultSourceTimeout is how long a reader waits for what is missing.
const defaultSourceTimeout = time.Minute

// fetch brings what is missing of an image that is not whole.
func (d *Daemon) fetch(ctx context.Context, id blockstore.ImageID, ref blockstore.SmallRef) error {
	if d.peers == nil {
		return fmt.Errorf("object %v: %w", ref.ID, blockstore.ErrNotFound)
	}
	return d.peers.Fetch(ctx, id, ref)
}

func (d *Daemon) fill(ctx context.Context, c *call, r FillRequest) (any, error) {
	e, _, err := d.findWhole(r.Name)
	if err != nil {
		return nil, err
	}
	// Without a daemon that stays there is nobody to do it later.
	return Nothing{}, d.peers.Fill(ctx, e.Image, r.Wait || !d.opts.Persistent, c.progress)
}

// Listen answers peers on l until ctx ends.
func (d *Daemon) Listen(ctx context.Context, l net.Listener) error {
	if d.locked != nil {
		return d.locked
	}
	return d.peers.Listen(ctx, l)
}

// peersNames shows the catalogue to package exchange.
type peersNames struct{ d *Daemon }

var _ exchange.Names = peersNames{}

// Lookup implements exchange.Names.
func (n peersNames) Lookup(ref string) (record.Entry, error) {
	e, err := n.d.names.find(ref)
	var failure *Error
	if errors.As(err, &failure) && failure.Code == CodeNotFound {
		failure.cause = transfer.ErrNoImage
	}
	return e, err
}

// All implements exchange.Names.
func (n peersNames) All() []record.Entry { return n.d.names.list() }

// Reserve implements exchange.Names.
func (n peersNames) Reserve(name string) (func(), error) { return n.d.names.reserve(name) }

// Add implements exchange.Names.
func (n peersNames) Add(ctx context.Context, e record.Entry) error { return n.d.names.add(ctx, e) }

// Relabel implements exchange.Names.
func (n peersNames) Relabel(ctx context.Context, id blockstore.ImageID, labels map[string]string) error {
	return n.d.names.relabel(ctx, id, labels)
}

// Change implements exchange.Names.
func (n peersNames) Change(ctx context.Context, id blockstore.ImageID, work func(*image.Disk) error) error {
	return n.d.with(ctx, diskKey{id: id}, holds, work)
}

// Yield implements exchange.Names. Who reads the image here reads on.
func (n peersNames) Yield(ctx context.Context, id blockstore.ImageID, to [32]byte, check func(blockstore.ImageID) error) error {
	gave := func(id blockstore.ImageID) (bool, error) {
		chain, err := lease.Load(n.d.store, id)
		return err == nil && chain.Newest().Holder == to, err
	}
	given, err := gave(id)
	if err != nil {
		return err
	}
	if given { // and the answer was lost, or it went with another
		n.d.writers.Gone(id, peer.FingerprintOf(to))
		return nil
	}
	with := func(id blockstore.ImageID, work func(*image.Disk) error) error {
		if given, err := gave(id); given || err != nil {
			return err
		}
		disk, release, err := n.d.disks.acquire(ctx, diskKey{id: id}, holds)
		if err != nil {
			return err
		}
		err = work(disk)
		if rerr := release(context.WithoutCancel(ctx)); rerr != nil && err != nil {
			err = errors.Join(err, rerr) // given, it stays so: release has told the log
		}
		return err
	}
	ready := func(id blockstore.ImageID) error { // what could fail for want of room
		return with(id, func(disk *image.Disk) error {
			if !disk.ReadOnly() {
				if err := disk.Commit(ctx); err != nil {
					return err
				}
			}
			return check(id)
		})
	}
	return n.d.writers.Yield(id, peer.FingerprintOf(to), ready, func(id blockstore.ImageID) error {
		return with(id, func(disk *image.Disk) error {
			if disk.ReadOnly() { // another host's, or it has failed
				return n.d.shared.Grant(ctx, id, to)
			}
			return disk.Yield(ctx, to)
		})
	})
}

// Group implements exchange.Names.
func (n peersNames) Group(id blockstore.ImageID) []blockstore.ImageID { return n.d.writers.Group(id) }

// Written implements exchange.Names.
func (n peersNames) Written(id blockstore.ImageID) int64 { return n.d.writers.Written(id) }

// Mounted implements exchange.Names.
func (n peersNames) Mounted(file string) (blockstore.ImageID, error) {
	dirs, _ := n.d.mounts.dirs()
	if !slices.Contains(dirs, filepath.Dir(file)) {
		return blockstore.ImageID{}, fmt.Errorf("it is in no mount of this store: %w", transfer.ErrNoImage)
	}
	e, err := n.d.names.find(filepath.Base(file))
	return e.Image, err
}

// Gone implements exchange.Names.
func (n peersNames) Gone(id blockstore.ImageID, to peer.Fingerprint) { n.d.writers.Gone(id, to) }

// Arm implements exchange.Names.
func (n peersNames) Arm(ids []blockstore.ImageID, to peer.Fingerprint, timeout time.Duration, offer func(ctx context.Context)) (*handover.Armed, error) {
	return n.d.writers.Arm(ids, to, timeout, offer)
}

// Changed implements exchange.Names.
func (n peersNames) Changed(id blockstore.ImageID) {
	e, err := n.d.names.find(id.String())
	if err != nil {
		return // removed meanwhile
	}
	n.d.changed(diskKey{id: id}, e.Name)
}

// isReplica tells an image that came without keys.
func isReplica(e record.Entry) bool { return e.Labels[exchange.LabelNoKeys] != "" }

// publicHead gives what anyone may read of an image's head.
func (d *Daemon) publicHead(id blockstore.ImageID) (blockstore.CommitID, *blockstore.CommitRecord, error) {
	head, raw, err := d.store.Head(id)
	if err != nil {
		return head, nil, err
	}
	c, err := blockstore.ParseCommit(raw)
	return head, c, err
}

// publicSnapshots counts the snapshots of a commit.
func (d *Daemon) publicSnapshots(c *blockstore.CommitRecord) (n int, err error) {
	if c.Snapshots == nil {
		return 0, nil
	}
	err = d.store.Get(context.Background(), c.Snapshots.ID, func(b []byte) error {
		h, _, _, err := blockstore.ParseRecord(b)
		if err != nil {
			return err
		}
		list, err := blockstore.ParseSnapshotPublic(h.Public)
		n = len(list)
		return err
	})
	return n, err
}

// replicaInfo describes an image of which this host has no keys.
func (d *Daemon) replicaInfo(e record.Entry, key diskKey) (any, error) {
	if key.snapshot != "" {
		return nil, fmt.Errorf("%s@%s: its snapshots have no names here: %w", e.Name, key.snapshot, crypto.ErrNoIdentity)
	}
	head, c, err := d.publicHead(e.Image)
	if err != nil {
		return nil, err
	}
	n, err := d.publicSnapshots(c)
	if err != nil {
		return nil, err
	}
	out := Info{
		Name: e.Name, ID: e.Image.String(), NoKeys: true, Epochs: len(c.Epochs), Recipients: []string{}, Snapshots: make([]SnapshotInfo, n),
		Commit: CommitInfo{ID: head.String(), Era: uint64(c.Era), Term: uint64(c.Term), Seq: uint64(c.Sequence)},
	}
	if c.Root != nil {
		out.Stored = int64(c.Root.Subtree)
	}
	return out, d.whose(e, &out)
}

// whole fails for an image that is not whole here.
func (d *Daemon) whole(e record.Entry) error {
	if d.peers.Partial(e.Image) {
		return fail(CodeInUse, "sealdisk fill --wait "+e.Name+" brings the rest", "%s is not whole here yet", e.Name)
	}
	return nil
}

// whose fills in who may write an image and where it came from.
func (d *Daemon) whose(e record.Entry, out *Info) error {
	chain, err := lease.Load(d.store, e.Image)
	if err != nil {
		return err
	}
	holder := peer.FingerprintOf(chain.Newest().Holder)
	out.Holder, out.HolderName = holder.String(), d.hostName(holder)
	if s, partial := d.peers.Status(e.Image); partial {
		out.Missing = &MissingInfo{Came: s.Done, Total: s.Total, Sources: s.Sources, Waited: int64(s.Waited)}
	}
	out.Origin = e.Labels[exchange.LabelOrigin]
	if key, err := peer.ParseFingerprint(out.Origin); err == nil {
		if p, err := d.book.Pinned(key); err == nil {
			out.Origin = p.Name
		}
	}
	return nil
}

func (d *Daemon) listPeers(context.Context, *call, Nothing) (any, error) {
	list, err := d.book.List()
	if err != nil {
		return nil, err
	}
	out := Peers{Fingerprint: peer.FingerprintOf(d.host.Key.Public()).String(), Peers: []Peer{}}
	for _, p := range list {
		roles := map[string]string{}
		for key, r := range p.Roles {
			if e, err := d.names.find(key); err == nil {
				key = e.Name
			}
			roles[key] = string(r)
		}
		out.Peers = append(out.Peers, Peer{
			Name: p.Name, Address: p.Address, Fingerprint: p.Key.String(), Roles: roles,
			Connections: p.Quota.Connections, Rate: p.Quota.Rate, Stored: p.Quota.Stored,
		})
	}
	return out, nil
}

func (d *Daemon) addPeer(_ context.Context, _ *call, r Peer) (any, error) {
	key, err := peer.ParseFingerprint(r.Fingerprint)
	if err != nil {
		return nil, err
	}
	if key == peer.FingerprintOf(d.host.Key.Public()) {
		return nil, fail(CodeUsage, "give the fingerprint of the other host: sealdisk peer ls there shows it", "this is the fingerprint of this host")
	}
	return Nothing{}, d.book.Add(peer.Peer{Name: r.Name, Address: r.Address, Key: key})
}

func (d *Daemon) removePeer(_ context.Context, _ *call, r NameRequest) (any, error) {
	return Nothing{}, d.book.Remove(r.Name)
}

// allowPeer gives a role. It goes with the image, not with its name, if that is here.
func (d *Daemon) allowPeer(_ context.Context, _ *call, r PeerAllowRequest) (any, error) {
	role, err := peer.ParseRole(r.Role)
	if err != nil {
		return nil, err
	}
	keys := []string{}
	for _, name := range r.Images {
		if e, err := d.names.find(name); err == nil {
			name = e.Image.String()
		} else if err := checkName("image", name); err != nil {
			return nil, err
		}
		keys = append(keys, name)
	}
	if len(keys) == 0 {
		keys = []string{peer.AllImages}
	}
	return Nothing{}, d.book.Update(r.Name, func(p *peer.Peer) {
		for _, key := range keys {
			p.Roles[key] = role
		}
		if r.Connections != nil {
			p.Quota.Connections = *r.Connections
		}
		if r.Rate != nil {
			p.Quota.Rate = *r.Rate
		}
		if r.Stored != nil {
			p.Quota.Stored = *r.Stored
		}
	})
}

func (d *Daemon) pull(ctx context.Context, c *call, r PullRequest) (any, error) {
	if err := checkName("image", r.Name); err != nil {
		return nil, err
	}
	if len(r.Peers) == 0 {
		return nil, fail(CodeUsage, "", "no peer is named")
	}
	p := exchange.Pull{
		Peers: r.Peers, Remote: r.Remote, Snapshot: r.Snapshot, Name: r.Name, NoKeys: r.NoKeys, Follow: r.Follow, Lazy: r.Lazy, Prefetch: !r.NoPrefetch,
		Rollback: blockstore.Sequence(r.Rollback), Bandwidth: r.Bandwidth, Progress: c.progress, Note: c.note,
	}
	if r.ID != "" {
		id, err := blockstore.ParseImageID(r.ID)
		if err != nil {
			return nil, fail(CodeUsage, "an id is 64 hex digits", "daemon: %w", err)
		}
		p.Image = id
	}
	if !r.NoKeys {
		if err := d.host.Unlock(); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	got, err := d.peers.Pull(ctx, p)
	if err == nil && r.Lazy && !d.opts.Persistent {
		c.note("no daemon runs here that would go on: waiting for the rest")
		err = d.peers.Fill(ctx, got.Image, true, c.progress)
	}
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", r.Name, err)
	}
	at := got.Position
	return Pulled{
		Name: got.Name, ID: got.Image.String(), Era: uint64(at.Era), Term: uint64(at.Term), Seq: uint64(at.Sequence), Unchanged: got.Unchanged,
		NoKeys: got.NoKeys, Objects: got.Objects, Bytes: got.Bytes, Wire: got.Wire, Duration: int64(time.Since(began)),
	}, nil
}

// bandwidth bounds what runs for an image.
func (d *Daemon) bandwidth(_ context.Context, _ *call, r BandwidthRequest) (any, error) {
	n := d.peers.SetBandwidth(r.Name, r.Rate)
	if n == 0 {
		return nil, fail(CodeNotFound, "", "no pull or push of %s runs", r.Name)
	}
	return Bounded{Running: n}, nil
}

func (d *Daemon) push(ctx context.Context, c *call, r PushRequest) (any, error) {
	if r.Snapshot != "" {
		if err := checkName("image", r.As); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	got, err := d.peers.Push(ctx, exchange.Push{Name: r.Name, Snapshot: r.Snapshot, As: r.As, Peer: r.Peer, Follow: r.Follow, Bandwidth: r.Bandwidth, Progress: c.progress, Note: c.note})
	if err != nil {
		return nil, fmt.Errorf("push %s: %w", r.Name, err)
	}
	return Pushed{Name: got.Name, Wire: got.Wire, Duration: int64(time.Since(began))}, nil
}

// leases tells who has written an image.
func (d *Daemon) leases(_ context.Context, _ *call, r NameRequest) (any, error) {
	e, _, err := d.findWhole(r.Name)
	if err != nil {
		return nil, err
	}
	chain, err := lease.Load(d.store, e.Image)
	if err != nil {
		return nil, err
	}
	out := Leases{Name: e.Name, Terms: []LeaseTerm{}}
	for _, l := range chain {
		holder := peer.FingerprintOf(l.Holder)
		t := LeaseTerm{Era: uint64(l.Era), Term: uint64(l.Term), Holder: holder.String(), HolderName: d.hostName(holder)}
		if l.LastCommit != nil {
			t.Last = l.LastCommit.String()
		}
		out.Terms = append(out.Terms, t)
	}
	return out, nil
}

// hostName is what a host is called here; "" if it is not known.
func (d *Daemon) hostName(key peer.Fingerprint) string {
	if key == peer.FingerprintOf(d.host.Key.Public()) {
		return "this host"
	}
	if p, err := d.book.Pinned(key); err == nil {
		return p.Name
	}
	return ""
}

// takeLease makes this host the one that writes an image, without asking the one that does.
func (d *Daemon) takeLease(ctx context.Context, _ *call, r TakeLeaseRequest) (any, error) {
	e, key, err := d.findWhole(r.Name)
	if err != nil {
		return nil, err
	}
	if err := d.host.Unlock(); err != nil {
		return nil, err
	}
	var admins []age.Identity
	if r.Identity != "" {
		if admins, err = home.ReadIdentities(r.Identity); err != nil {
			return nil, err
		}
	}
	err = d.peers.TakeLease(ctx, e.Image, func() error { return d.shared.TakeLease(ctx, e.Image, admins...) })
	if errors.Is(err, crypto.ErrNoIdentity) {
		return nil, fail(CodeNoKey, "--identity FILE names the identity of one of its admins", "this host is no admin of %s: %w", e.Name, err)
	}
	if err != nil {
		return nil, err
	}
	d.log.Warn("the lease was taken by force", "image", e.Name)
	d.changed(key, e.Name)
	return d.leases(ctx, nil, NameRequest{Name: r.Name})
}
