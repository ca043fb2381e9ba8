package transfer_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/lease"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/transfer"
)

// forger makes what a hostile holder can sign: nodes with any public part, under a commit
// that is right.
type forger struct {
	t *testing.T
	h *host
	// swap changes the keyring, and what the commit says of it; nil: they fit.
	swap func(keys *crypto.Keyring, masters []blockstore.EpochMaster)
}

// node stores a node of a level that names children, and gives what its parent is to say of it.
func (f *forger) node(level uint8, children ...blockstore.Ref) blockstore.Ref {
	f.t.Helper()
	list := append([]blockstore.Ref(nil), children...)
	sortRefs(list)
	kind := blockstore.KindInner
	if level == 0 {
		kind = blockstore.KindLeaf
	}
	h := blockstore.Header{Suite: blockstore.SuiteAES256GCM, Kind: kind, Salt: crypto.NewSalt(),
		Public: blockstore.AppendNodePublic(nil, blockstore.NodePublic{Level: level, Children: list})}
	b := append(blockstore.AppendHeader(nil, h), make([]byte, 32)...) // nobody can open it
	id := blockstore.IDOf(b)
	check(f.t, f.h.store.PutObjects(context.Background(), []blockstore.Object{{ID: id, Bytes: b}}))
	sum := uint64(len(b))
	for _, c := range list {
		sum += c.Subtree
	}
	return blockstore.Ref{ID: id, Length: uint32(len(b)), Subtree: sum}
}

func sortRefs(list []blockstore.Ref) {
	for i := range list {
		for j := i; j > 0 && string(list[j].ID[:]) < string(list[j-1].ID[:]); j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

// image signs a commit over a root.
func (f *forger) image(root blockstore.Ref, level uint8) blockstore.ImageID {
	f.t.Helper()
	ctx := context.Background()
	key, epoch := crypto.NewImageKey(), crypto.NewEpoch()
	keys := &crypto.Keyring{Image: key.ID(), Epochs: []*crypto.Epoch{epoch}, Recipients: []string{f.h.recipient}}
	c := new(record.Commit)
	c.Image, c.Era, c.Term, c.Sequence = key.ID(), 1, 1, 1
	c.Size, c.BlockSize, c.Time = 1<<40, 64<<10, time.Now()
	c.Epochs = []blockstore.EpochMaster{{ID: epoch.ID(), Master: epoch.Master()}}
	if root != (blockstore.Ref{}) {
		c.Root = &blockstore.RootRef{Level: level, ID: root.ID, Length: root.Length, Subtree: root.Subtree}
	}
	if f.swap != nil {
		f.swap(keys, c.Epochs)
	}
	small := func(b []byte, err error) blockstore.SmallRef {
		check(f.t, err)
		check(f.t, f.h.store.PutObjects(ctx, []blockstore.Object{{ID: blockstore.IDOf(b), Bytes: b}}))
		return blockstore.SmallRef{ID: blockstore.IDOf(b), Length: uint32(len(b))}
	}
	c.Keyring = small(keys.Seal())
	c.ImageKey = small(key.SealImageKey([]string{f.h.recipient}))
	raw, err := lease.Sign(&blockstore.Lease{Image: key.ID(), Era: 1, Term: 1, Holder: f.h.key.Public()}, key.Sign)
	check(f.t, err)
	c.Lease, err = f.h.store.PutLease(ctx, raw)
	check(f.t, err)
	raw, err = record.Seal{Suite: crypto.AES256GCM, Epoch: epoch}.Commit(c, func(b []byte) []byte {
		sig := f.h.key.Sign(crypto.SignCommit, b)
		return sig[:]
	})
	check(f.t, err)
	_, err = f.h.store.PutCommit(ctx, key.ID(), raw)
	check(f.t, err)
	return key.ID()
}

// TestSwappedKeyring: keys that are not those that the commit names open nothing, whoever signed
// both; and master keys are compared before anything is opened.
func TestSwappedKeyring(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	c := b.ask(a.as("a"))
	other := crypto.NewEpoch()
	for name, tt := range map[string]struct {
		swap func(keys *crypto.Keyring, masters []blockstore.EpochMaster)
		want error
	}{
		"as it is":        {func(*crypto.Keyring, []blockstore.EpochMaster) {}, nil},
		"another epoch":   {func(keys *crypto.Keyring, _ []blockstore.EpochMaster) { keys.Epochs = []*crypto.Epoch{other} }, blockstore.ErrCorrupt},
		"one more epoch":  {func(keys *crypto.Keyring, _ []blockstore.EpochMaster) { keys.Epochs = append(keys.Epochs, other) }, blockstore.ErrCorrupt},
		"other masters":   {func(_ *crypto.Keyring, masters []blockstore.EpochMaster) { masters[0].Master = other.Master() }, crypto.ErrMasterKey},
		"another image's": {func(keys *crypto.Keyring, _ []blockstore.EpochMaster) { keys.Image = [32]byte{1} }, crypto.ErrAuth},
	} {
		t.Run(name, func(t *testing.T) {
			f := &forger{t: t, h: a, swap: func(keys *crypto.Keyring, masters []blockstore.EpochMaster) {
				keys.Recipients = append(keys.Recipients, b.recipient)
				tt.swap(keys, masters)
			}}
			id := f.image(blockstore.Ref{}, 0)
			_, err := b.pull(id, c)
			check(t, err)
			d, err := b.shared.Open(context.Background(), id, image.OpenOptions{ReadOnly: true})
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if d != nil {
				check(t, d.Close(context.Background()))
			}
		})
	}
}

// TestForgedMaps: maps that are signed and are not what they say are refused; nothing is
// fetched for them that is not there, and nothing is marked as complete.
func TestForgedMaps(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	c := b.ask(a.as("a"))
	f := &forger{t: t, h: a}
	segment := blockstore.Ref{ID: blockstore.ObjectID{1}, Length: 5000, Subtree: 5000}
	changed := func(r blockstore.Ref, by func(r *blockstore.Ref)) blockstore.Ref {
		by(&r)
		return r
	}
	leaf := f.node(0, segment)
	long := make([]byte, 70_000)
	here := blockstore.IDOf(long)
	check(t, b.store.PutObjects(context.Background(), []blockstore.Object{{ID: here, Bytes: long}}))
	for name, tt := range map[string]struct {
		root  blockstore.Ref
		level uint8
		want  error
	}{
		"less below than it says": {changed(leaf, func(r *blockstore.Ref) { r.Subtree += 1 << 30 }), 0, transfer.ErrProtocol},
		"a leaf for an inner":     {leaf, 1, transfer.ErrProtocol},
		"a leaf below two levels": {f.node(2, leaf), 2, transfer.ErrProtocol},
		"a segment of no size":    {f.node(0, blockstore.Ref{ID: blockstore.ObjectID{1}}), 0, transfer.ErrProtocol},
		"a segment too large":     {f.node(0, blockstore.Ref{ID: blockstore.ObjectID{1}, Length: 1 << 24, Subtree: 1 << 24}), 0, transfer.ErrProtocol},
		"a segment with a tail":   {f.node(0, blockstore.Ref{ID: blockstore.ObjectID{1}, Length: 5000, Subtree: 1 << 40}), 0, transfer.ErrProtocol},
		"a sum that wraps":        {f.node(0, blockstore.Ref{ID: blockstore.ObjectID{1}, Length: 5000, Subtree: 1<<64 - 1}, segment), 0, transfer.ErrProtocol},
		"a node too large":        {f.node(1, changed(leaf, func(r *blockstore.Ref) { r.Length = 1 << 30 })), 1, transfer.ErrProtocol},
		"a segment that is none":  {f.node(0, leaf), 0, transfer.ErrProtocol},
		"a segment that is gone":  {leaf, 0, transfer.ErrAbsent},
		"a longer one than named": {f.node(0, blockstore.Ref{ID: here, Length: 100, Subtree: 100}), 0, transfer.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			id := f.image(tt.root, tt.level)
			_, err := b.pull(id, c)
			if !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if _, _, err := b.store.Head(id); !errors.Is(err, blockstore.ErrNotFound) {
				t.Errorf("the image is there: %v", err)
			}
			if complete, err := b.store.IsComplete(tt.root.ID); complete || err != nil {
				t.Errorf("its root is marked as complete: %v, %v", complete, err)
			}
		})
	}
}

// TestMaze: nodes that name the same ones again and again are walked once each; walking
// every path would take days.
func TestMaze(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	f := &forger{t: t, h: a}
	const width = 40
	row := make([]blockstore.Ref, width)
	for i := range row {
		row[i] = f.node(0)
	}
	for level := uint8(1); level <= 3; level++ {
		next := make([]blockstore.Ref, width)
		for i := range next {
			next[i] = f.node(level, row...)
		}
		row = next
	}
	root := f.node(4, row...)
	began := time.Now()
	_, err := b.pull(f.image(root, 4), b.ask(a.as("a")))
	check(t, err)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if complete, err := b.store.IsComplete(root.ID); !complete || err != nil {
		t.Errorf("the root is not marked as complete: %v, %v", complete, err)
	}
}

// TestCompleteElsewhere: a node that another image has brought is still held to what its
// new parent says of it.
func TestCompleteElsewhere(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	f := &forger{t: t, h: a}
	leaf := f.node(0)
	_, err := b.pull(f.image(leaf, 0), b.ask(a.as("a")))
	check(t, err)
	leaf.Subtree++
	if _, err := b.pull(f.image(leaf, 3), b.ask(a.as("a"))); !errors.Is(err, transfer.ErrProtocol) {
		t.Errorf("%v, want ErrProtocol", err)
	}
}
