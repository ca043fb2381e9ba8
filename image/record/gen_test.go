package record

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// world is a keyring of two epochs and a seal under the newest.
type world struct {
	keys *crypto.Keyring
	seal Seal
	host crypto.HostKey
}

func newWorld() world {
	k := &crypto.Keyring{Epochs: []*crypto.Epoch{crypto.NewEpoch(), crypto.NewEpoch()}}
	return world{
		keys: k,
		seal: Seal{Suite: crypto.AES256GCM, Epoch: k.Newest(), Compression: Zstd},
		host: crypto.NewHostKey(),
	}
}

func (w world) sign(b []byte) []byte {
	s := w.host.Sign(crypto.SignCommit, b)
	return s[:]
}

func (w world) withSuite(s crypto.Suite) world {
	w.seal.Suite = s
	return w
}

func fill32(x uint64) (b [32]byte) {
	binary.BigEndian.PutUint64(b[:], x*0x9E3779B97F4A7C15)
	b[31] = 1
	return b
}

// sectors returns n sectors, of which the odd ones compress well.
func sectors(seed uint64, n int) []byte {
	rnd := rand.NewChaCha8(fill32(seed))
	b := make([]byte, n*SectorSize)
	rnd.Read(b)
	for i := 1; i < n; i += 2 {
		copy(b[i*SectorSize:], strings.Repeat("sealdisk keeps it sealed ", SectorSize/25))
	}
	return b
}

func drawPosition(t *rapid.T) blockstore.Position {
	u := rapid.Uint64Max(1<<62 - 1)
	return blockstore.Position{
		Era:      blockstore.Era(u.Draw(t, "era")),
		Term:     blockstore.Term(u.Draw(t, "term")),
		Sequence: blockstore.Sequence(u.Draw(t, "sequence")),
	}
}

func drawRuns(t *rapid.T) []Run {
	var runs []Run
	left := rapid.IntRange(1, MaxSegmentSectors).Draw(t, "sectors")
	at := rapid.IntRange(0, 3000).Draw(t, "first")
	for left > 0 && at < RegionSectors {
		n := rapid.IntRange(1, min(left, RegionSectors-at)).Draw(t, "run")
		runs = append(runs, Run{First: uint16(at), Count: uint16(n)})
		left -= n
		at += n + rapid.IntRange(1, 40).Draw(t, "gap")
	}
	return runs
}

func total(runs []Run) (n int) {
	for _, r := range runs {
		n += int(r.Count)
	}
	return n
}

func drawLeaf(t *rapid.T, w world) *Leaf {
	l := &Leaf{Region: rapid.Uint64Range(0, maxNodes(0)-1).Draw(t, "region"), Base: -1}
	n := rapid.IntRange(0, 40).Draw(t, "objects")
	for i := range n {
		length := rapid.Uint32Range(1, blockstore.MaxSegment).Draw(t, "length")
		l.Objects = append(l.Objects, LeafObject{
			Ref:      blockstore.Ref{ID: fill32(uint64(i + 1)), Length: length, Subtree: uint64(length)},
			Epoch:    w.keys.Epochs[rapid.IntRange(0, 1).Draw(t, "epoch")].ID(),
			FrameLog: rapid.Uint8Range(MinFrameLog, MaxFrameLog).Draw(t, "frame"),
			Sectors:  rapid.Uint16Range(1, MaxSegmentSectors).Draw(t, "sectors"),
			Salt:     fill32(uint64(i + 1000)),
			Birth:    drawPosition(t),
		})
	}
	at := 0
	add := func(object, sectors int) {
		offset := 0
		if object != ZeroObject {
			offset = rapid.IntRange(0, sectors-1).Draw(t, "offset")
		}
		at += rapid.IntRange(0, 3).Draw(t, "hole")
		count := rapid.IntRange(1, min(sectors-offset, 30)).Draw(t, "count")
		l.Extents = append(l.Extents, Extent{uint16(at), uint16(count), uint16(object), uint16(offset)})
		at += count
	}
	for i := range n {
		add(i, int(l.Objects[i].Sectors))
	}
	for range rapid.IntRange(0, 10).Draw(t, "more") {
		if n > 0 {
			i := rapid.IntRange(0, n-1).Draw(t, "again")
			add(i, int(l.Objects[i].Sectors))
		}
	}
	if rapid.Bool().Draw(t, "patch") {
		l.Base = len(l.Objects)
		l.Objects = append(l.Objects, LeafObject{
			Ref:   blockstore.Ref{ID: fill32(77777), Length: 500, Subtree: 90000},
			Epoch: w.keys.Epochs[0].ID(),
		})
		add(ZeroObject, 30)
	}
	return l
}

func drawInner(t *rapid.T) *Inner {
	n := &Inner{Level: rapid.Uint8Range(1, MaxLevel).Draw(t, "level")}
	n.Index = rapid.Uint64Range(0, maxNodes(n.Level)-1).Draw(t, "index")
	most := min(maxNodes(n.Level-1)-n.Index*Fanout, Fanout)
	slots := rapid.Permutation(seq(int(most))).Draw(t, "slots")
	for i := range rapid.IntRange(1, int(most)).Draw(t, "children") {
		length := rapid.Uint32Range(1, blockstore.MaxNode).Draw(t, "length")
		n.Children = append(n.Children, Child{
			Ref: blockstore.Ref{ID: fill32(uint64(i + 1)), Length: length,
				Subtree: rapid.Uint64Range(uint64(length), 1<<60).Draw(t, "subtree")},
			Slot:    uint8(slots[i]),
			Birth:   drawPosition(t),
			Sectors: rapid.Uint64Range(0, maxSectors(n.Level-1)).Draw(t, "sectors"),
		})
	}
	return n
}

func seq(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func drawText(t *rapid.T, what string) string {
	return rapid.StringOfN(rapid.Rune(), 1, 30, -1).Draw(t, what)
}

func drawLabels(t *rapid.T) map[string]string {
	labels := map[string]string{}
	for range rapid.IntRange(0, 5).Draw(t, "labels") {
		labels[drawText(t, "label")] = drawText(t, "text")
	}
	return labels
}

func drawTime(t *rapid.T) time.Time {
	return time.Unix(0, rapid.Int64Range(0, 1<<62).Draw(t, "time")).UTC()
}

func drawCommit(t *rapid.T, w world) *Commit {
	small := blockstore.SmallRef{ID: fill32(3), Length: 900}
	p := drawPosition(t)
	c := &Commit{
		CommitPublic: blockstore.CommitPublic{
			Image: fill32(1), Era: p.Era, Term: p.Term, Sequence: p.Sequence,
			Lease: fill32(2), Keyring: small, ImageKey: small,
			Absorbed: blockstore.JournalNumber(rapid.Uint64().Draw(t, "absorbed")),
		},
		Body: Body{
			Size:        rapid.Int64Range(1, MaxImageSize).Draw(t, "size"),
			BlockSize:   1 << rapid.IntRange(16, 24).Draw(t, "block"),
			Compression: Compression(rapid.Uint8Range(0, 2).Draw(t, "compression")),
			Plan: PlanStats{
				LinkBits: rapid.Int64Range(0, 1<<62).Draw(t, "link"),
				RTT:      time.Duration(rapid.Int64Range(0, 1<<62).Draw(t, "rtt")),
				Planned:  rapid.Uint64().Draw(t, "planned"),
				Merged:   rapid.Uint64().Draw(t, "merged"),
				Count:    rapid.Uint64().Draw(t, "count"),
			},
			Time:   drawTime(t),
			Labels: drawLabels(t),
			Floor:  drawPosition(t),
		},
	}
	for _, e := range w.keys.Epochs {
		c.Epochs = append(c.Epochs, blockstore.EpochMaster{ID: e.ID(), Master: e.Master()})
	}
	if rapid.Bool().Draw(t, "root") {
		c.Root = &blockstore.RootRef{Level: 2, ID: fill32(9), Length: 77, Subtree: 1 << 40}
		c.Snapshots, c.DepMap = &small, &small
		id := blockstore.CommitID(fill32(12))
		c.Parent = &id
	}
	return c
}

func drawSnapshots(t *rapid.T) []Snapshot {
	list := []Snapshot{}
	seen := map[string]bool{}
	for i := range rapid.IntRange(0, 20).Draw(t, "snapshots") {
		name := drawText(t, "name")
		if seen[name] {
			continue
		}
		seen[name] = true
		list = append(list, Snapshot{Commit: fill32(uint64(i)), Name: name, Time: drawTime(t)})
	}
	return list
}

func drawDepMap(t *rapid.T) *DepMap {
	m := &DepMap{Startup: []Range{}}
	for range rapid.IntRange(0, 50).Draw(t, "ranges") {
		off := rapid.Int64Range(0, MaxImageSize-1).Draw(t, "offset")
		m.Startup = append(m.Startup, Range{
			Offset: off,
			Length: rapid.Int64Range(1, MaxImageSize-off).Draw(t, "length"),
			Burst:  rapid.Uint32().Draw(t, "burst"),
			Ms:     rapid.Uint32().Draw(t, "ms"),
		})
	}
	if rapid.Bool().Draw(t, "lineage") {
		m.Lineage = &Lineage{Image: fill32(4), Commit: fill32(5)}
	}
	return m
}

func drawCatalogue(t *rapid.T) *Catalogue {
	c := &Catalogue{Counter: rapid.Uint64().Draw(t, "counter"), Entries: []Entry{}}
	name := ""
	for i := range rapid.IntRange(0, 20).Draw(t, "entries") {
		name += drawText(t, "name")
		c.Entries = append(c.Entries, Entry{Name: name, Image: fill32(uint64(i)), Labels: drawLabels(t)})
	}
	return c
}
