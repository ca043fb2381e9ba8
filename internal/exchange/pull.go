package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// keysMode says what a pull does about keys.
type keysMode int

const (
	keysIfAllowed keysMode = iota // become a recipient if the peer lets us
	keysWanted                    // or fail
	keysNever                     // be a replica
)

// Pull is what to bring, and from where.
type Pull struct {
	Peers     []string // the first tells what there is; all are asked for objects
	Remote    string   // name or id there
	Snapshot  string   // bring this snapshot alone, as an image of this host's own; "": the image
	Name      string   // here
	Image     blockstore.ImageID
	NoKeys    bool
	Lazy      bool // return when it can be used; the rest comes in the background
	Prefetch  bool // with Lazy: what a guest needs first comes first
	Follow    bool // stay in step until ctx ends
	Rollback  blockstore.Sequence
	Bandwidth int64 // bytes per second; 0: no bound
	Progress  func(done, total int64)
	Note      func(format string, args ...any)
}

// Pulled says what a pull brought.
type Pulled struct {
	transfer.Received
	Name      string
	Unchanged bool
	NoKeys    bool  // nothing of it can be opened here
	Wire      int64 // bytes that came over the network
}

// Pull brings an image from peers. What was stored when it is cut is not fetched again. One
// that follows goes on through connections that break, until ctx ends.
func (x *Exchange) Pull(ctx context.Context, p Pull) (out Pulled, err error) {
	defer x.Metrics.Running("pulls")()
	rate, done := x.bound(p.Name, p.Bandwidth)
	defer done()
	err = persist(ctx, p.Follow, p.Note, func() (err error) {
		out, err = x.pull(ctx, p, rate)
		return err
	})
	return out, err
}

// persist runs work again and again while it fails for want of a connection, if it is to
// follow.
func persist(ctx context.Context, follow bool, note func(format string, args ...any), work func() error) error {
	pause := retryLeast
	for {
		began := time.Now()
		err := work()
		if !follow || ctx.Err() != nil || !lostPeer(err) {
			return err
		}
		if time.Since(began) > retryMost {
			pause = retryLeast
		}
		note("%v; trying again", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, retryMost)
	}
}

// lostPeer tells whether an error is one that a new connection may mend.
func lostPeer(err error) bool {
	var network *net.OpError
	return errors.Is(err, transfer.ErrConnection) || errors.Is(err, transfer.ErrNoSource) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

// pull is Pull over connections that it makes.
func (x *Exchange) pull(ctx context.Context, p Pull, rate *peer.Rate) (Pulled, error) {
	clients, err := x.dialPeers(ctx, p, rate)
	if err != nil {
		return Pulled{}, err
	}
	defer func() {
		for _, c := range clients {
			_ = c.Close() // nothing is under way any more
		}
	}()
	keys := keysWanted
	if p.NoKeys {
		keys = keysNever
	}
	j := &job{x: x, clients: clients, remote: p.Remote, name: p.Name, image: p.Image, keys: keys, lazy: p.Lazy, prefetch: p.Prefetch, rollback: p.Rollback, progress: p.Progress}
	var out Pulled
	for {
		if p.Snapshot != "" {
			out, err = j.clone(ctx, p.Snapshot)
			break
		}
		if out, err = j.run(ctx); err == nil && !p.Lazy { // it may have been partial, and unchanged
			err = x.Fill(ctx, out.Image, true, p.Progress)
		}
		if err != nil || !p.Follow {
			break
		}
		p.Note("%s is at %v", p.Name, out.Position)
		if err = j.wait(ctx, out.Image); err != nil {
			break
		}
	}
	for _, c := range clients {
		in, _ := c.Conn.Traffic()
		out.Wire += in
	}
	if pt := x.partial(out.Image); err == nil && pt != nil && pt.adopt(clients[0]) {
		clients = clients[1:] // who waits for data goes on with it
	}
	return out, err
}

// dialPeers connects to the peers of a pull. One that cannot be reached is missed if it is
// the first.
func (x *Exchange) dialPeers(ctx context.Context, p Pull, rate *peer.Rate) (clients []*transfer.Client, err error) {
	for i, name := range p.Peers {
		at, err := x.Book.Find(name)
		var conn *peer.Conn
		if err == nil {
			conn, err = x.dial(ctx, at, peer.Forward)
		}
		if err != nil && i > 0 {
			p.Note("%v", err)
			continue
		}
		if err != nil {
			for _, c := range clients {
				_ = c.Close()
			}
			return nil, err
		}
		conn.Bound(rate)
		clients = append(clients, transfer.NewClient(conn))
	}
	return clients, nil
}

// job is one pull, or the receiving side of a push, over connections that stand.
type job struct {
	x         *Exchange
	clients   []*transfer.Client
	remote    string             // name or id at the peer
	name      string             // here
	image     blockstore.ImageID // the only one that will do, if not zero
	keys      keysMode
	lazy      bool
	prefetch  bool
	later     bool // what is lazy is not filled before somebody asks for it
	rollback  blockstore.Sequence
	from      *peer.Peer            // whose quota counts: it pushes
	in        *coming               // the handover; nil: there is none
	described *transfer.Description // what the peer has said of the image already; nil: it is asked
	progress  func(done, total int64)
}

// freshTries is how often the head is asked for anew because its peer does not have it
// any more.
const freshTries = 5

// run brings the newest state once.
func (j *job) run(ctx context.Context) (Pulled, error) {
	if err := j.x.Growing.Acquire(ctx, 1); err != nil {
		return Pulled{}, err
	}
	defer j.x.Growing.Release(1)
	have, known, release, err := j.local()
	if err != nil {
		return Pulled{}, err
	}
	defer release()
	for try := 1; ; try++ {
		older := j.described != nil // another connection may have brought a newer state meanwhile
		out, err := j.once(ctx, have, known)
		older = older && (errors.Is(err, image.ErrRolledBack) || errors.Is(err, image.ErrInUse))
		if !older && !errors.Is(err, transfer.ErrAbsent) || try == freshTries {
			return out, err
		}
		j.x.Log.Info("the peer has a newer state by now", "image", j.name, "err", err)
	}
}

// local gives the image that has the name here, or reserves it.
func (j *job) local() (have record.Entry, known bool, release func(), err error) {
	have, err = j.x.Names.Lookup(j.name)
	switch {
	case err == nil && j.image != (blockstore.ImageID{}) && have.Image != j.image:
		return have, false, nil, fmt.Errorf("%s is image %v here, not %v: %w", j.name, have.Image, j.image, image.ErrExists)
	case err == nil:
		return have, true, func() {}, nil
	case !errors.Is(err, transfer.ErrNoImage):
		return have, false, nil, err
	}
	release, err = j.x.Names.Reserve(j.name)
	return record.Entry{Name: j.name}, false, release, err
}

// once describes, becomes a recipient if need be, receives and lists the image.
func (j *job) once(ctx context.Context, have record.Entry, known bool) (Pulled, error) {
	first := j.clients[0]
	var head blockstore.CommitID
	if known {
		id, _, err := j.x.Store.Head(have.Image)
		if err != nil && !errors.Is(err, blockstore.ErrNotFound) {
			return Pulled{}, err
		}
		head = id
		if j.x.Partial(have.Image) && !j.lazy || have.Labels[LabelNoKeys] != "" && j.keys == keysWanted {
			head = blockstore.CommitID{} // there is more to bring than a newer head
		}
	}
	d := j.described
	if j.described = nil; d == nil {
		var err error
		if d, err = first.Describe(ctx, j.remote, head); err != nil {
			return Pulled{}, err
		}
	}
	if d == nil {
		return j.unchanged(have, head)
	}
	if err := j.checkImage(d, have, known); err != nil {
		return Pulled{}, err
	}
	leave, err := j.x.Enter(ctx, d.Image)
	if err != nil {
		return Pulled{}, err
	}
	id := d.Image
	out, err := j.entered(ctx, d, have, known)
	leave()
	if err != nil || j.lazy || j.in != nil { // what fills it has a pin of its own by the time this connection ends
		return out, err
	}
	return out, first.Done(ctx, id)
}

// entered is once, while nobody else brings the image.
func (j *job) entered(ctx context.Context, d *transfer.Description, have record.Entry, known bool) (Pulled, error) {
	id := d.Image
	err := j.checkImage(d, have, known) // again: the lease may have come meanwhile
	if err != nil {
		return Pulled{}, err
	}
	noKeys := have.Labels[LabelNoKeys] != ""
	if !known || noKeys && j.keys == keysWanted || j.in.mustOpen(d) {
		keys := j.keys
		if known && j.in == nil { // a replica stays one if need be
			keys = keysIfAllowed
		}
		if d, noKeys, err = j.obtainKeys(ctx, d, keys); err != nil {
			return Pulled{}, err
		}
		j.in.opens(d)
	}
	out, err := j.receive(ctx, d, id, have, known, noKeys)
	if err != nil {
		return Pulled{}, err
	}
	return out, j.x.arrived(ctx, id)
}

// receive brings what d describes, and lists it as soon as it is the image's state. What is
// to be filled later is known as such before that.
func (j *job) receive(ctx context.Context, d *transfer.Description, id blockstore.ImageID, have record.Entry, known, noKeys bool) (Pulled, error) {
	list := func() error { return j.list(ctx, have, known, id, noKeys) }
	if err := j.x.settleLost(ctx, d); err != nil {
		return Pulled{}, err
	}
	bring := j.x.receiver(j.from).Receive
	if j.lazy {
		bring = j.x.receiver(j.from).Begin
		if !known { // of one that is here little may be missing: who fills it sees
			if err := j.x.mayBring(d, j.from); err != nil {
				return Pulled{}, err
			}
		}
	}
	got, err := bring(ctx, d, j.clients, transfer.ReceiveOptions{
		Image: id, Rollback: j.rollback, Progress: j.progress,
		Install: j.x.unwritten(ctx, d, func(install func() error) error {
			if known && j.lazy {
				if err := list(); err != nil {
					return err
				}
				return install()
			}
			if err := install(); err != nil {
				return err
			}
			return list()
		}),
	})
	j.x.Metrics.Received(got.Objects)
	return Pulled{Received: got, Name: j.name, NoKeys: noKeys}, err
}

func (j *job) unchanged(have record.Entry, head blockstore.CommitID) (Pulled, error) {
	raw, err := j.x.Store.Commit(have.Image, head)
	if err != nil {
		return Pulled{}, err
	}
	c, err := blockstore.ParseCommit(raw)
	if err != nil {
		return Pulled{}, err
	}
	out := Pulled{Name: j.name, Unchanged: true, NoKeys: have.Labels[LabelNoKeys] != ""}
	out.Image, out.Head, out.Position = have.Image, head, c.Position()
	return out, nil
}

// checkImage compares what the peer describes with what is wanted, and sees to it that
// the state of an image that this host writes is not replaced.
func (j *job) checkImage(d *transfer.Description, have record.Entry, known bool) error {
	if known && d.Image != have.Image {
		return fmt.Errorf("%s is image %v here and %v there: %w", j.name, have.Image, d.Image, image.ErrExists)
	}
	if j.image != (blockstore.ImageID{}) && d.Image != j.image {
		return fmt.Errorf("%s is image %v there, not %v: %w", j.remote, d.Image, j.image, transfer.ErrNoImage)
	}
	if e, err := j.x.Names.Lookup(d.Image.String()); err == nil && e.Name != j.name {
		return fmt.Errorf("the image is here as %s: %w", e.Name, image.ErrExists)
	}
	if !known {
		return nil
	}
	chain, err := lease.Load(j.x.Store, d.Image)
	if err != nil {
		return err
	}
	if chain.Newest().Holder == j.x.Key.Public() && len(d.Leases) <= len(chain) {
		return fmt.Errorf("this host writes %s: what is here is the newest: %w", j.name, image.ErrInUse)
	}
	return nil
}

// obtainKeys sees whether this host can open the keyring, and asks the peer to seal the
// image to it if not. It gives the description that is the newest then.
func (j *job) obtainKeys(ctx context.Context, d *transfer.Description, keys keysMode) (_ *transfer.Description, noKeys bool, err error) {
	if keys == keysNever {
		return d, true, nil
	}
	opens, err := j.opens(ctx, d)
	if err != nil || opens {
		return d, false, err
	}
	if err := j.x.ownKeys(d.Image); err != nil {
		if errors.Is(err, crypto.ErrNoIdentity) && keys == keysIfAllowed {
			return d, true, nil
		}
		return nil, false, err
	}
	sealed, err := j.clients[0].AddRecipients(ctx, d.Image, j.x.Recipients)
	if errors.Is(err, transfer.ErrRefused) && keys == keysIfAllowed {
		return d, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("becoming a recipient: %w", err)
	}
	return sealed, false, nil
}

// opens tells whether this host's identities open the keyring that a description names.
func (j *job) opens(ctx context.Context, d *transfer.Description) (bool, error) {
	c, err := blockstore.ParseCommit(d.Head)
	if err != nil {
		return false, err
	}
	if c.Keyring.Length > blockstore.MaxTable {
		return false, fmt.Errorf("keyring of %d bytes: %w", c.Keyring.Length, transfer.ErrProtocol)
	}
	var raw []byte
	err = j.clients[0].Objects(ctx, d.Image, []blockstore.SmallRef{c.Keyring}, nil, func(_ int, b []byte) error {
		raw = bytes.Clone(b)
		return nil
	})
	if err != nil {
		return false, err
	}
	if blockstore.IDOf(raw) != c.Keyring.ID {
		return false, fmt.Errorf("keyring: digest differs: %w", transfer.ErrProtocol)
	}
	_, err = crypto.OpenKeyring(raw, d.Image, j.x.Identities)
	if errors.Is(err, crypto.ErrNoIdentity) {
		return false, nil
	}
	return err == nil, err
}

// list puts an image that came into the catalogue.
func (j *job) list(ctx context.Context, have record.Entry, known bool, id blockstore.ImageID, noKeys bool) error {
	if known { // as it is now: a fill may have ended since
		var err error
		if have, err = j.x.Names.Lookup(id.String()); err != nil {
			return err
		}
	}
	labels := maps.Clone(have.Labels)
	if labels == nil {
		labels = map[string]string{"name": j.name}
	}
	delete(labels, LabelNoKeys)
	if noKeys {
		labels[LabelNoKeys] = "yes"
	}
	delete(labels, LabelSources)
	if j.lazy {
		labels[LabelSources] = j.sources()
	}
	var err error
	switch {
	case !known:
		labels[LabelOrigin] = j.clients[0].Conn.Peer.Key.String()
		err = j.x.Names.Add(ctx, record.Entry{Name: j.name, Image: id, Labels: labels})
	case !maps.Equal(labels, have.Labels):
		err = j.x.Names.Relabel(ctx, id, labels)
	}
	if err != nil {
		return err
	}
	if !j.lazy {
		j.x.Forget(id) // it is whole
		return nil
	}
	p := j.x.begin(record.Entry{Image: id, Labels: labels})
	p.prefetch.Store(j.prefetch)
	if !j.later {
		p.start()
	}
	return nil
}

// sources lists the peers of the job, as LabelSources has them.
func (j *job) sources() string {
	var keys []string
	for _, c := range j.clients {
		keys = append(keys, c.Conn.Peer.Key.String())
	}
	return strings.Join(keys, " ")
}
