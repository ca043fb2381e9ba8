package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
	"github.com/sealdisk/sealdisk/image/convert"
	"github.com/sealdisk/sealdisk/image/format"
	"github.com/sealdisk/sealdisk/internal/measure"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args string
		ok   bool
	}{
		{"", true}, {"--rounds 1 --share 0", true}, {"--share 1", true}, {"--share 1.1", false}, {"--share -1", false}, {"--share NaN", false},
		{"--rounds 0", false}, {"more", false},
	} {
		if got, err := parse(strings.Fields(tt.args)); (err == nil) != tt.ok {
			t.Errorf("%q: got %+v, %v, want ok %v", tt.args, got, err, tt.ok)
		}
	}
}

func TestData(t *testing.T) {
	m := page.Machine{Figure: 12}
	for _, tt := range []struct {
		s    set
		want int64
	}{{set{bytes: mib, share: 1}, 4 * mib}, {set{bytes: gib, share: 0.5}, 2 * gib}, {set{bytes: gib}, 0}} {
		if got := tt.s.data(m); got != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.s, got, tt.want)
		}
	}
}

// TestInputs: an image is the same each time, and another machine's is another.
func TestInputs(t *testing.T) {
	e := &evaluation{dir: t.TempDir()}
	e.commands = measure.Commands{Dir: e.dir}
	ctx := context.Background()
	const size = 11 * mib
	image := func(name, seed string, fixed bool) []byte {
		tree, file := e.path("tree"), e.path(name)
		script, err := fillTree(tree, seed, size/3)
		check(t, err)
		check(t, e.makeFileSystem(ctx, file, size, fixed, tree, script))
		check(t, os.RemoveAll(tree))
		b, err := os.ReadFile(file)
		check(t, err)
		return b
	}
	one, again, other := image("one", "a", false), image("again", "a", true), image("other", "b", false)
	if len(one) != size || !bytes.Equal(one, again) || bytes.Equal(one, other) {
		t.Errorf("got %d bytes, the same again: %v, another machine's the same: %v", len(one), bytes.Equal(one, again), bytes.Equal(one, other))
	}
	// The second time might be within the same second: none of them must be the time of now.
	for _, name := range []string{"/", "/d00", "/d00/f0001"} {
		out, err := e.run(ctx, "debugfs", "-R", "stat "+name, e.path("one"))
		check(t, err)
		if n := strings.Count(out, "time: 0x5cc8e180"); n != 4 { // birth
			t.Errorf("%s of the image has %d of 4 times right: %s", name, n, out)
		}
	}
	if _, err := e.run(ctx, "e2fsck", "-fn", e.path("one")); err != nil {
		t.Errorf("it is no sound file system: %v", err)
	}
	a, err := contentOf(ctx, e.path("one"))
	check(t, err)
	b, err := contentOf(ctx, e.path("again"))
	check(t, err)
	if a.digest != b.digest || a.bytes < size/3 || a.bytes > size/2 {
		t.Errorf("digests %s and %s of %d bytes, want the same, holes or not, and a third of %d with what mkfs adds", a.digest, b.digest, a.bytes, size)
	}
}

// TestText: half of the files compress, but not to nothing.
func TestText(t *testing.T) {
	raw, err := io.ReadAll(io.LimitReader(&text{rng: seeded("x")}, mib))
	check(t, err)
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err = w.Write(raw)
	check(t, err)
	check(t, w.Close())
	if ratio := float64(len(raw)) / float64(b.Len()); len(raw) != mib || ratio < 2.5 || ratio > 6 {
		t.Errorf("%d bytes of text compress %.1f times", len(raw), ratio)
	}
}

// TestContent: what counts is what a disk holds and where, not how its file has it.
func TestContent(t *testing.T) {
	dir := t.TempDir()
	disk := func(name string, write func(b []byte)) content {
		b := make([]byte, 3*mib+100)
		write(b)
		file := filepath.Join(dir, name)
		check(t, os.WriteFile(file, b, 0o600))
		c, err := contentOf(context.Background(), file)
		check(t, err)
		return c
	}
	some := func(b []byte) {
		b[5] = 1
		copy(b[mib:], bytes.Repeat([]byte{7}, 2*sector))
		b[len(b)-1] = 9
	}
	full := disk("full", some)
	if want := []span{{0, sector}, {mib, 2 * sector}, {3 * mib, sector}}; full.bytes != 4*sector || !slices.Equal(full.runs, want) {
		t.Errorf("got %d bytes in %v, want %v", full.bytes, full.runs, want)
	}
	f, err := os.Create(filepath.Join(dir, "sparse"))
	check(t, err)
	check(t, f.Truncate(3*mib+100))
	for off, b := range map[int64][]byte{5: {1}, mib: bytes.Repeat([]byte{7}, 2*sector), 3*mib + 99: {9}} {
		_, err := f.WriteAt(b, off)
		check(t, err)
	}
	check(t, f.Close())
	if sparse, err := contentOf(context.Background(), f.Name()); err != nil || sparse.digest != full.digest {
		t.Errorf("with holes: got %s, %v, want %s", sparse.digest, err, full.digest)
	}
	for name, write := range map[string]func([]byte){
		"changed": func(b []byte) { some(b); b[5] = 2 },
		"moved":   func(b []byte) { some(b); b[5] = 0; b[sector+5] = 1 },
		"zeroed":  func(b []byte) { some(b); b[5] = 0 },
	} {
		if got := disk(name, write); got.digest == full.digest {
			t.Errorf("%s: the digest is the same", name)
		}
	}
}

func TestBootList(t *testing.T) {
	c := content{bytes: 30 * mib, runs: []span{{0, 10 * mib}, {50 * mib, 20 * mib}}}
	list := bootList(c, 1)
	if list[0] != (span{0, sector}) {
		t.Errorf("it begins with %v, want the first sector", list[0])
	}
	total := int64(0)
	for _, r := range list {
		total += r.n
		inside := slices.ContainsFunc(c.runs, func(d span) bool { return r.off >= d.off && r.off+r.n <= d.off+d.n })
		if !inside || r.n <= 0 || r.n > 128*kib || r.off%sector != 0 || r.n%sector != 0 {
			t.Errorf("%v is no read of data", r)
		}
	}
	if total < 3*mib || total > 3*mib+256*kib {
		t.Errorf("%d bytes are read, want a tenth of %d", total, c.bytes)
	}
	if !slices.Equal(list, bootList(c, 1)) || slices.Equal(list, bootList(c, 2)) {
		t.Error("the list is another each time, or the same for all machines")
	}
	if got := bootList(content{}, 1); len(got) != 0 {
		t.Errorf("an empty disk: got %v", got)
	}
	for _, tt := range []struct {
		number int64
		want   span
	}{{0, span{0, 10 * mib}}, {10*mib/sector - 1, span{10*mib - sector, sector}}, {10 * mib / sector, span{50 * mib, 20 * mib}}, {30*mib/sector - 1, span{70*mib - sector, sector}}} {
		if got := c.at(tt.number); got != tt.want {
			t.Errorf("sector %d: got %v, want %v", tt.number, got, tt.want)
		}
	}
}

// TestCollate: collation alone makes the same disk, and leaves nothing behind.
func TestCollate(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	f, err := os.Create(from)
	check(t, err)
	check(t, f.Truncate(40*mib))
	for _, off := range []int64{0, 17 * mib, 39 * mib} {
		_, err := io.Copy(io.NewOffsetWriter(f, off), measure.Noise("collate", mib))
		check(t, err)
	}
	check(t, f.Close())
	ctx := context.Background()
	r, err := openRaw(from)
	check(t, err)
	w, err := format.CreateRaw(to, r.size, false)
	check(t, err)
	_, err = convert.Export(ctx, r, w, nil)
	check(t, err)
	check(t, w.Commit())
	check(t, r.Close())
	want, err := contentOf(ctx, from)
	check(t, err)
	if got, err := contentOf(ctx, to); err != nil || got.digest != want.digest || got.bytes != 3*mib {
		t.Errorf("got %d bytes with %s, %v, want %s", got.bytes, got.digest, err, want.digest)
	}
	check(t, os.Remove(to))
	if took, err := collate(ctx, from, to); err != nil || took <= 0 {
		t.Errorf("got %v, %v", took, err)
	}
	if _, err := os.Stat(to); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if _, err := collate(ctx, filepath.Join(dir, "absent"), to); err == nil {
		t.Error("collated a file that is not there")
	}
}
