package record

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

func TestParseCompression(t *testing.T) {
	for _, c := range []Compression{None, Zstd, S2} {
		if got, err := ParseCompression(c.String()); err != nil || got != c {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := ParseCompression("gzip"); err == nil {
		t.Error("gzip was accepted")
	}
}

func TestLeafRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		w := w.withSuite(crypto.Suite(rapid.Uint8Range(1, 2).Draw(t, "suite")))
		l := drawLeaf(t, w)
		want := sortedLeaf(l)
		before := &Leaf{l.Region, l.Base, slices.Clone(l.Objects), slices.Clone(l.Extents)}
		b, err := w.seal.Leaf(l)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(l, before) {
			t.Fatal("sealing changed the leaf")
		}
		got, err := OpenLeaf(w.keys, b, l.Region)
		if err != nil {
			t.Fatal(err)
		}
		if !sameLeaf(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		if _, err := OpenLeaf(w.keys, b, l.Region^256); !errors.Is(err, crypto.ErrAuth) {
			t.Fatalf("another region: %v", err)
		}
	})
}

// sortedLeaf is l as it is after opening.
func sortedLeaf(l *Leaf) *Leaf {
	order, _ := ascending(len(l.Objects), func(i int) *blockstore.Ref { return &l.Objects[i].Ref })
	out := &Leaf{Region: l.Region, Base: -1, Extents: slices.Clone(l.Extents)}
	for at, i := range order {
		out.Objects = append(out.Objects, l.Objects[i])
		if int(i) == l.Base {
			out.Base = at
		}
		for x := range l.Extents {
			if l.Extents[x].Object == i {
				out.Extents[x].Object = uint16(at)
			}
		}
	}
	return out
}

func sameLeaf(a, b *Leaf) bool {
	return a.Region == b.Region && a.Base == b.Base &&
		slices.Equal(a.Objects, b.Objects) && slices.Equal(a.Extents, b.Extents)
}

func TestLeafFind(t *testing.T) {
	l := &Leaf{Extents: []Extent{{First: 2, Count: 3}, {First: 5, Count: 1}, {First: 9, Count: 4087}}}
	for sector, want := range map[uint16]int{0: 0, 2: 0, 4: 0, 5: 1, 6: 2, 8: 2, 9: 2, 4095: 2} {
		if got := l.Find(sector); got != want {
			t.Errorf("Find(%d) = %d, want %d", sector, got, want)
		}
	}
	l.Extents = l.Extents[:1]
	if got := l.Find(5); got != 1 {
		t.Errorf("Find behind all = %d, want 1", got)
	}
}

// TestLeafLargest: every sector of a region in an object of its own fits a node.
func TestLeafLargest(t *testing.T) {
	w := newWorld()
	l := largeLeaf(w, RegionSectors)
	l.Base = len(l.Objects)
	l.Objects = append(l.Objects, LeafObject{Ref: blockstore.Ref{Length: 9, Subtree: 9}})
	b, err := w.seal.Leaf(l)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenLeaf(w.keys, b, l.Region); err != nil || !sameLeaf(got, sortedLeaf(l)) {
		t.Errorf("the largest leaf differs, %v", err)
	}
}

// largeLeaf has n extents, each in an object of its own.
func largeLeaf(w world, n int) *Leaf {
	l := &Leaf{Region: 3, Base: -1}
	for i := range n {
		l.Objects = append(l.Objects, LeafObject{
			Ref:   blockstore.Ref{ID: fill32(uint64(i + 1)), Length: 5000, Subtree: 5000},
			Epoch: w.seal.Epoch.ID(), FrameLog: 12, Sectors: 1, Salt: fill32(uint64(i)),
		})
		l.Extents = append(l.Extents, Extent{First: uint16(i * (RegionSectors / n)), Count: 1, Object: uint16(i)})
	}
	return l
}

// TestLeafRefused: what docs/format.md §5 forbids is neither sealed nor, if somebody
// with the key did, opened.
func TestLeafRefused(t *testing.T) {
	w := newWorld()
	id := w.seal.Epoch.ID()
	for name, change := range map[string]func(l *Leaf){
		"region beyond 2^52":    func(l *Leaf) { l.Region = 1 << 28 },
		"extents descend":       func(l *Leaf) { slices.Reverse(l.Extents) },
		"extents overlap":       func(l *Leaf) { l.Extents[1].First = 1 },
		"out of the region":     func(l *Leaf) { l.Extents[1].First = 4095 },
		"out of the segment":    func(l *Leaf) { l.Extents[1].Offset = 7 },
		"empty extent":          func(l *Leaf) { l.Extents[1].Count = 0 },
		"no such object":        func(l *Leaf) { l.Extents[1].Object = 2 },
		"zeros in a plain leaf": func(l *Leaf) { l.Extents[0].Object = ZeroObject },
		"unused object":         func(l *Leaf) { l.Extents = l.Extents[:1] },
		"segment of 0 sectors":  func(l *Leaf) { l.Objects[0].Sectors = 0 },
		"of 257 sectors":        func(l *Leaf) { l.Objects[0].Sectors = 257 },
		"subtree of a segment":  func(l *Leaf) { l.Objects[0].Ref.Subtree++ },
		"too long segment":      func(l *Leaf) { l.Objects[0].Ref = blockstore.Ref{Length: 2 << 20, Subtree: 2 << 20} },
		"base outside":          func(l *Leaf) { l.Base = 2 },
		"base used":             func(l *Leaf) { l.Base = 1 },
		"base with sectors": func(l *Leaf) {
			l.Base = 2
			l.Objects = append(l.Objects, LeafObject{Ref: blockstore.Ref{Length: 1, Subtree: 1}, FrameLog: 12, Sectors: 1})
		},
		"too long base": func(l *Leaf) {
			l.Base = 2
			l.Objects = append(l.Objects, LeafObject{Ref: blockstore.Ref{Length: 1 << 20, Subtree: 1 << 20}})
		},
		"same object twice": func(l *Leaf) { l.Objects[1].Ref.ID = l.Objects[0].Ref.ID },
	} {
		l := &Leaf{Region: 5, Base: -1, Objects: []LeafObject{
			{Ref: blockstore.Ref{ID: fill32(1), Length: 9000, Subtree: 9000}, Epoch: id, FrameLog: 15, Sectors: 2},
			{Ref: blockstore.Ref{ID: fill32(2), Length: 9000, Subtree: 9000}, Epoch: id, FrameLog: 15, Sectors: 8},
		}, Extents: []Extent{{0, 2, 0, 0}, {7, 2, 1, 6}}}
		if _, err := w.seal.Leaf(l); err != nil {
			t.Fatalf("the good one: %v", err)
		}
		change(l)
		if _, err := w.seal.Leaf(l); err == nil {
			t.Errorf("%s: sealed", name)
		}
		order := seq16(len(l.Objects))
		refs := make([]blockstore.Ref, len(order))
		for i := range l.Objects {
			refs[i] = l.Objects[i].Ref
		}
		place := append(seq16(len(order)), 2, 3)[:max(3, len(order))]
		body, err := l.appendBody(order, place)
		if err != nil {
			t.Fatal(err)
		}
		public := blockstore.AppendNodePublic(nil, blockstore.NodePublic{Patch: l.Base >= 0, Children: refs})
		if _, err := decodeLeaf(public, body, l.Region); !errors.Is(err, blockstore.ErrCorrupt) {
			t.Errorf("%s: opened, %v", name, err)
		}
	}
}

func seq16(n int) []uint16 {
	s := make([]uint16, n)
	for i := range s {
		s[i] = uint16(i)
	}
	return s
}

func TestInnerRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		n := drawInner(t)
		b, err := w.seal.Inner(n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenInner(w.keys, b, n.Level, n.Index)
		if err != nil {
			t.Fatal(err)
		}
		want := slices.SortedFunc(slices.Values(n.Children), func(a, b Child) int { return int(a.Slot) - int(b.Slot) })
		if got.Level != n.Level || got.Index != n.Index || !slices.Equal(got.Children, want) {
			t.Fatalf("got %+v, want %+v", got, n)
		}
		for i, c := range got.Children {
			if at, ok := got.Find(c.Slot); !ok || at != i {
				t.Fatalf("Find(%d) = %d, %v", c.Slot, at, ok)
			}
		}
		for level := range uint8(6) {
			if level == n.Level {
				continue
			}
			if _, err := OpenInner(w.keys, b, level, n.Index); !errors.Is(err, blockstore.ErrCorrupt) {
				t.Fatalf("at level %d: %v", level, err)
			}
		}
		if _, err := OpenInner(w.keys, b, n.Level, n.Index+1); !errors.Is(err, blockstore.ErrCorrupt) {
			t.Fatalf("at another index: %v", err)
		}
	})
}

func TestInnerRefused(t *testing.T) {
	w := newWorld()
	for name, change := range map[string]func(n *Inner){
		"level 0":            func(n *Inner) { n.Level = 0 },
		"level 5":            func(n *Inner) { n.Level = 5 },
		"index beyond 2^52":  func(n *Inner) { n.Index = 1 << 20 },
		"no child":           func(n *Inner) { n.Children = nil },
		"slot twice":         func(n *Inner) { n.Children[1].Slot = n.Children[0].Slot },
		"too many sectors":   func(n *Inner) { n.Children[0].Sectors = RegionSectors + 1 },
		"subtree too small":  func(n *Inner) { n.Children[0].Ref.Subtree = 99 },
		"too long child":     func(n *Inner) { n.Children[0].Ref = blockstore.Ref{Length: 1 << 20, Subtree: 1 << 20} },
		"same child twice":   func(n *Inner) { n.Children[1].Ref.ID = n.Children[0].Ref.ID },
		"slot beyond 2^52":   func(n *Inner) { n.Level, n.Index, n.Children[0].Slot = 4, 0, 16 },
		"child of no length": func(n *Inner) { n.Children[0].Ref.Length = 0 },
	} {
		n := &Inner{Level: 1, Index: 7, Children: []Child{
			{Ref: blockstore.Ref{ID: fill32(1), Length: 100, Subtree: 200}, Slot: 3},
			{Ref: blockstore.Ref{ID: fill32(2), Length: 100, Subtree: 200}, Slot: 1},
		}}
		if _, err := w.seal.Inner(n); err != nil {
			t.Fatalf("the good one: %v", err)
		}
		change(n)
		if _, err := w.seal.Inner(n); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

func TestCommitRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		c := drawCommit(t, w)
		b, err := w.seal.Commit(c, w.sign)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenCommit(w.keys, b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, c) {
			t.Fatalf("got %+v, want %+v", got, c)
		}
		p, err := blockstore.ParseCommit(b)
		if err != nil {
			t.Fatal(err)
		}
		if !crypto.Verify(w.host.Public(), crypto.SignCommit, p.Signed, p.Signature) {
			t.Fatal("the signature does not cover the record")
		}
	})
}

func TestCommitRefused(t *testing.T) {
	w := newWorld()
	for name, change := range map[string]func(c *Commit){
		"size 0":            func(c *Commit) { c.Size = 0 },
		"size beyond 2^52":  func(c *Commit) { c.Size = MaxImageSize + 1 },
		"negative size":     func(c *Commit) { c.Size = -1 },
		"blocks of 32 KiB":  func(c *Commit) { c.BlockSize = 32 << 10 },
		"blocks of 100,000": func(c *Commit) { c.BlockSize = 100000 },
		"compression 3":     func(c *Commit) { c.Compression = 3 },
		"time before 1970":  func(c *Commit) { c.Time = time.Unix(-1, 0) },
		"zero time":         func(c *Commit) { c.Time = time.Time{} },
		"negative rtt":      func(c *Commit) { c.Plan.RTT = -1 },
		"label not text":    func(c *Commit) { c.Labels = map[string]string{"name": "\xff"} },
		"label too long":    func(c *Commit) { c.Labels = map[string]string{"name": strings.Repeat("x", 70000)} },
		"epoch not listed":  func(c *Commit) { c.Epochs = c.Epochs[:1] },
		"no epochs":         func(c *Commit) { c.Epochs = nil },
	} {
		c := smallCommit(w)
		if _, err := w.seal.Commit(c, w.sign); err != nil {
			t.Fatalf("the good one: %v", err)
		}
		change(c)
		if _, err := w.seal.Commit(c, w.sign); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	if _, err := w.seal.Commit(smallCommit(w), func([]byte) []byte { return nil }); err == nil {
		t.Error("sealed without a signature")
	}
}

func smallCommit(w world) *Commit {
	c := &Commit{
		CommitPublic: blockstore.CommitPublic{
			Keyring: blockstore.SmallRef{Length: 1}, ImageKey: blockstore.SmallRef{Length: 1},
		},
		Body: Body{Size: 1 << 30, BlockSize: 1 << 20, Time: time.Unix(1e9, 0).UTC(), Labels: map[string]string{"name": "web"}},
	}
	for _, e := range w.keys.Epochs {
		c.Epochs = append(c.Epochs, blockstore.EpochMaster{ID: e.ID(), Master: e.Master()})
	}
	return c
}

func TestSnapshotsRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		list := drawSnapshots(t)
		b, err := w.seal.Snapshots(list)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenSnapshots(w.keys, b)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, list) {
			t.Fatalf("got %+v, want %+v", got, list)
		}
		for _, s := range list {
			if id, ok, err := FindSnapshot(w.keys, b, s.Name); err != nil || !ok || id != s.Commit {
				t.Fatalf("%q: %v, %v, %v", s.Name, id, ok, err)
			}
		}
		if _, ok, err := FindSnapshot(w.keys, b, ""); ok || err != nil {
			t.Fatalf("no name: %v, %v", ok, err)
		}
	})
}

func TestSnapshotsRefused(t *testing.T) {
	w := newWorld()
	now := time.Unix(5, 0)
	for name, list := range map[string][]Snapshot{
		"empty name": {{Name: "", Time: now}},
		"name twice": {{Name: "a", Time: now}, {Name: "a", Time: now}},
		"not text":   {{Name: "\xff", Time: now}},
		"no time":    {{Name: "a"}},
		"too many":   make([]Snapshot, 65536),
	} {
		if _, err := w.seal.Snapshots(list); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	// A tag that is not its name's.
	salt := crypto.NewSalt()
	body := must(t)(encode("", []snapshotWire{{Name: "a", Time: 1}}))
	public := blockstore.AppendSnapshotPublic(nil, blockstore.SnapshotPublic{{}})
	b := must(t)(w.seal.record(blockstore.KindSnapshotTable, crypto.NoRegion, salt, public, body))
	if _, err := OpenSnapshots(w.keys, b); !errors.Is(err, blockstore.ErrCorrupt) {
		t.Errorf("a tag of another name: %v", err)
	}
}

// must fails the test if what it is given comes with an error.
func must(t testing.TB) func(b []byte, err error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func TestDepMapRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		m := drawDepMap(t)
		b, err := w.seal.DepMap(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenDepMap(w.keys, b); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("got %+v, %v, want %+v", got, err, m)
		}
	})
}

func TestDepMapRefused(t *testing.T) {
	w := newWorld()
	for name, r := range map[string]Range{
		"empty":       {Offset: 5},
		"negative":    {Offset: -1, Length: 5},
		"beyond 2^52": {Offset: MaxImageSize - 1, Length: 2},
		"overflow":    {Offset: 1 << 62, Length: 1 << 62},
	} {
		if _, err := w.seal.DepMap(&DepMap{Startup: []Range{r}}); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	m := &DepMap{Startup: make([]Range, 120000)}
	for i := range m.Startup {
		m.Startup[i] = Range{Offset: 1 << 40, Length: 4096, Burst: 70000, Ms: 70000}
	}
	if _, err := w.seal.DepMap(m); err == nil {
		t.Error("more than 1 MiB: sealed")
	}
}

func TestCatalogueRoundTrip(t *testing.T) {
	w := newWorld()
	store := blockstore.StoreID{7}
	rapid.Check(t, func(t *rapid.T) {
		c := drawCatalogue(t)
		b, err := SealCatalogue(w.seal.Suite, store, w.host.CatalogueKey, c)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenCatalogue(store, w.host.CatalogueKey, b); err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("got %+v, %v, want %+v", got, err, c)
		}
		if _, err := OpenCatalogue(blockstore.StoreID{8}, w.host.CatalogueKey, b); !errors.Is(err, blockstore.ErrCorrupt) {
			t.Fatalf("of another store: %v", err)
		}
		if _, err := OpenCatalogue(store, crypto.NewHostKey().CatalogueKey, b); !errors.Is(err, crypto.ErrAuth) {
			t.Fatalf("of another host: %v", err)
		}
	})
}
