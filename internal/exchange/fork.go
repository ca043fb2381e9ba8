package exchange

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// LabelFork says which state of which image an image keeps, "ID COMMIT", that the image has lost.
const LabelFork = "local.fork-of"

// lost says whether the head here, which this host wrote, is not what d goes on from, which
// was checked: the lease was taken by force. Mine is the term in which this host wrote last;
// over, whether d ends it.
func (x *Exchange) lost(d *transfer.Description) (mine lease.Link, over, lost bool, err error) {
	ours, err := lease.Load(x.Store, d.Image)
	if err != nil {
		return mine, false, false, ignoreAbsent(err)
	}
	theirs, err := lease.Parse(d.Image, d.Leases)
	if err != nil {
		return mine, false, false, err
	}
	head, raw, err := x.Store.Head(d.Image)
	if err != nil {
		return mine, false, false, ignoreAbsent(err)
	}
	if _, mine, err = ours.Check(d.Image, head, raw); err != nil || mine.Holder != x.Key.Public() {
		return mine, false, false, err
	}
	i := slices.IndexFunc(ours, func(l lease.Link) bool { return l.ID == mine.ID })
	switch {
	case i >= len(theirs): // it is an older chain
		return mine, false, false, nil
	case theirs[i].ID != mine.ID: // the term itself is not in it
		return mine, true, true, nil
	case i+1 == len(theirs):
		return mine, false, false, nil
	}
	last := theirs[i+1].LastCommit
	return mine, true, last == nil || *last != head, nil
}

// settleLost commits what this host has in journals alone, if d ends its term.
func (x *Exchange) settleLost(ctx context.Context, d *transfer.Description) error {
	mine, err := x.holds(d.Image)
	if err != nil || !mine {
		return err
	}
	if _, over, _, err := x.lost(d); err != nil || !over {
		return err
	}
	_, err = x.commit(ctx, d.Image)
	return err
}

// keepLost keeps what this host wrote in a term that ended without it as an image of its own.
// Nobody may write the image meanwhile.
func (x *Exchange) keepLost(ctx context.Context, d *transfer.Description) error {
	term, over, lost, err := x.lost(d)
	if err != nil || !over {
		return err
	}
	mine, err := x.holds(d.Image)
	if err != nil {
		return err
	}
	head, raw, err := x.Store.Head(d.Image)
	if err != nil {
		return err
	}
	if mine {
		if err := x.unjournaled(d.Image, raw); err != nil {
			return err
		}
	}
	if !lost {
		return nil
	}
	if x.Partial(d.Image) {
		return fmt.Errorf("another host has taken the lease, and what this one wrote cannot be kept before the image is whole: %w", image.ErrInUse)
	}
	e, err := x.Names.Lookup(d.Image.String())
	if err != nil {
		return err
	}
	label := d.Image.String() + " " + head.String()
	name, kept := x.forkName(e.Name, fmt.Sprintf("-fork-%d.%d", term.Era, term.Term), label)
	if kept {
		return nil
	}
	return x.fork(ctx, e, raw, name, label)
}

// unjournaled fails if a head is not all that was written.
func (x *Exchange) unjournaled(id blockstore.ImageID, raw []byte) error {
	c, err := blockstore.ParseCommit(raw)
	if err != nil {
		return err
	}
	numbers, err := x.Store.Journals(id)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if n > c.Absorbed {
			return fmt.Errorf("image %v: journal %v is in no commit yet: %w", id, n, image.ErrInUse)
		}
	}
	return nil
}

// maxName is that of the catalogue.
const maxName = 128

// forkName gives a free name, or says that an image with that label is there already.
func (x *Exchange) forkName(of, suffix, label string) (name string, kept bool) {
	for n := 1; ; n++ {
		end := suffix
		if n > 1 {
			end = fmt.Sprintf("%s-%d", suffix, n)
		}
		name = of[:min(len(of), maxName-len(end))] + end
		e, err := x.Names.Lookup(name)
		if err != nil {
			return name, false
		}
		if e.Labels[LabelFork] == label {
			return name, true
		}
	}
}

// fork makes an image of a head.
func (x *Exchange) fork(ctx context.Context, e record.Entry, raw []byte, name, label string) error {
	hold := x.Store.Hold()
	defer hold.Release()
	f, err := x.Shared.Foreign(ctx, e.Image, raw)
	if err != nil {
		return err
	}
	f.Whole()
	release, err := x.Names.Reserve(name)
	if err != nil {
		return err
	}
	defer release()
	id, err := f.Clone(ctx, image.CreateOptions{Labels: map[string]string{"name": name}, Recipients: x.Recipients, Admins: x.Admins})
	if err != nil {
		return err
	}
	x.Log.Error("the lease was taken from this host: what it wrote since is kept as an image of its own", "image", e.Name, "kept", name)
	return x.Names.Add(ctx, record.Entry{Name: name, Image: id, Labels: map[string]string{"name": name, LabelFork: label}})
}

// role is what a peer may do with an image that is here. What a fork keeps was sealed for
// its image: nobody may more with it than with that.
func role(p peer.Peer, e record.Entry) peer.Role {
	r := p.Role(e.Image.String(), e.Name)
	if of, _, ok := strings.Cut(e.Labels[LabelFork], " "); ok {
		if parent := p.Role(of, ""); rank(parent) < rank(r) {
			return parent
		}
	}
	return r
}

// TakeLease takes the lease of an image by force, if this host does not have it.
func (x *Exchange) TakeLease(ctx context.Context, id blockstore.ImageID, take func() error) error {
	leave, err := x.Enter(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	if x.Partial(id) {
		return fmt.Errorf("the image is not whole here: %w", image.ErrInUse)
	}
	return take()
}
