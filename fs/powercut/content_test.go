package powercut

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fill is n bytes of one kind, which is not 0.
func fill(kind byte, n int) []byte { return bytes.Repeat([]byte{kind}, n) }

func (c *content) all() []byte {
	b := make([]byte, c.size)
	c.read(b, 0)
	return b
}

const cuts = 1000

// outcomes are the contents that cuts give.
func outcomes(c *content) map[string]int {
	seen := make(map[string]int)
	for seed := range uint64(cuts) {
		seen[string(c.cut(newFate(seed), math.MaxUint64).all())]++
	}
	return seen
}

func TestWrittenMayVanish(t *testing.T) {
	c := newContent()
	c.write(fill(1, 4096), 0)
	seen := outcomes(c)
	for _, want := range []string{"", string(fill(1, 4096)), string(make([]byte, 4096))} {
		if seen[want] == 0 {
			t.Errorf("no cut leaves %d bytes beginning with % x", len(want), want[:min(4, len(want))])
		}
	}
}

func TestSyncedStays(t *testing.T) {
	c := newContent()
	c.write(fill(1, 10_000), 0)
	c.sync()
	if seen := outcomes(c); seen[string(fill(1, 10_000))] != cuts {
		t.Errorf("got %d outcomes, want the synced one alone", len(seen))
	}
}

// Two versions of two pages after a sync: every mixture comes, torn ones too, and nothing else.
func TestPagesAreIndependent(t *testing.T) {
	c := newContent()
	for kind := byte(1); kind <= 3; kind++ {
		c.write(fill(kind, 2*pageSize), 0)
		if kind == 1 {
			c.sync()
		}
	}
	pairs, torn := make(map[[2]byte]bool), 0
	for text := range outcomes(c) {
		if len(text) != 2*pageSize {
			t.Fatalf("size: got %d, want %d", len(text), 2*pageSize)
		}
		whole := true
		for at := 0; at < len(text); at += tearSize {
			k := text[at]
			if k < 1 || k > 3 || text[at:at+tearSize] != string(fill(k, tearSize)) {
				t.Fatalf("at %d: % x", at, text[at:at+8])
			}
			whole = whole && k == text[at/pageSize*pageSize]
		}
		if whole {
			pairs[[2]byte{text[0], text[pageSize]}] = true
		} else {
			torn++
		}
	}
	if len(pairs) != 9 || torn == 0 {
		t.Errorf("got %d pairs of whole pages and %d torn outcomes, want 9 and some", len(pairs), torn)
	}
}

// A file that was cut off and grew again never shows what was in it before, if it
// shows the new size.
func TestTruncationSurvivesWhole(t *testing.T) {
	c := newContent()
	c.write(fill(1, 4*pageSize), 0)
	c.sync()
	c.truncate(0, 0)
	c.write(fill(2, pageSize), 0)
	c.truncate(3*pageSize, 0)
	for text := range outcomes(c) {
		switch len(text) {
		case 4 * pageSize:
			if text != string(fill(1, 4*pageSize)) {
				t.Errorf("new data before the truncation: % x", text[:4])
			}
		case 0, pageSize, 3 * pageSize:
			if bytes.IndexByte([]byte(text), 1) >= 0 {
				t.Errorf("%d bytes: old data after the truncation", len(text))
			}
		default:
			t.Errorf("got %d bytes", len(text))
		}
	}
}

// A file that is cut off after a name was made is not cut off where the name is lost, and
// all else comes.
func TestTruncationComesAfterNames(t *testing.T) {
	f := New()
	old, later := f.newInode(unix.S_IFREG), f.newInode(unix.S_IFREG)
	f.change(namePut{f.root, "old", old})
	old.write(fill(1, pageSize), 0)
	old.sync()
	f.syncDir(f.root)
	f.change(namePut{f.root, "later", later})
	old.truncate(0, f.made)
	seen := make(map[string]int)
	for seed := range uint64(cuts) {
		root := f.Cut(seed).root
		seen[fmt.Sprint(root.entries["old"].size, root.entries["later"] != nil)]++
	}
	for _, want := range []string{"4096 false", "4096 true", "0 true"} {
		if seen[want] == 0 {
			t.Errorf("no cut leaves %q", want)
		}
	}
	if len(seen) != 3 {
		t.Errorf("got %v", seen)
	}
}

// Whatever happens to a file, it reads like a slice of bytes, and what was synced last
// is one of the outcomes; right after a sync it is the only one.
func TestContentModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, model := newContent(), []byte(nil)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			off := rapid.IntRange(0, 5*pageSize).Draw(t, "offset")
			n := rapid.IntRange(1, 2*pageSize).Draw(t, "length")
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				b := fill(byte(rapid.IntRange(0, 3).Draw(t, "kind")), n)
				c.write(b, int64(off))
				model = append(model, make([]byte, max(0, off+n-len(model)))...)
				copy(model[off:], b)
			case 1:
				c.truncate(int64(off), 0)
				model = append(model, make([]byte, max(0, off-len(model)))...)[:off]
			case 2:
				c.zero(int64(off), int64(n))
				if off < len(model) {
					clear(model[off:min(len(model), off+n)])
				}
			case 3:
				c.sync()
				got := c.cut(newFate(rapid.Uint64().Draw(t, "seed")), math.MaxUint64).all()
				if !bytes.Equal(got, model) {
					t.Fatal("a synced file changed")
				}
			}
			if !bytes.Equal(c.all(), model) {
				t.Fatalf("reads otherwise than written: %d bytes, want %d", c.size, len(model))
			}
			if got := c.copyNow().all(); !bytes.Equal(got, model) {
				t.Fatal("a copy differs")
			}
		}
		nothing := &fate{r: newFate(0).r, drop: 1}
		all := &fate{r: newFate(0).r, keep: 1}
		if got := c.cut(all, math.MaxUint64).all(); !bytes.Equal(got, model) {
			t.Fatal("with all that was written kept, the content differs")
		}
		if got := c.cut(nothing, math.MaxUint64); got.size != c.baseSize {
			t.Fatalf("size with nothing kept: got %d, want %d", got.size, c.baseSize)
		}
	})
}
