package lease

import (
	"strings"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
)

// chainOf makes a chain from a drawing: each word is a record, its digits the era; equal words
// at equal places are equal records.
func chainOf(drawing string) Chain {
	var c Chain
	for i, word := range strings.Fields(drawing) {
		var l Link
		copy(l.ID[:], word)
		l.ID[31] = byte(i)
		l.Era, l.Term = blockstore.Era(word[0]-'0'), blockstore.Term(i+1)
		c = append(c, l)
	}
	return c
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name, a, b string
		want       Order
		common     int
	}{
		{"both empty", "", "", Same, 0},
		{"equal", "1a 1b", "1a 1b", Same, 2},
		{"one more record", "1a 1b 1c", "1a 1b", Newer, 2},
		{"one more record, of a new era", "1a 2b", "1a", Newer, 1},
		{"anything is newer than nothing", "1a", "", Newer, 0},
		{"forced by a host that was one lease behind", "1a 2x", "1a 1b", Newer, 1},
		{"forced by a host that was far behind", "1a 2x", "1a 1b 1c 1d 1e", Newer, 1},
		{"the forced side went on", "1a 2x 2y 2z", "1a 1b 1c", Newer, 1},
		{"two forced at once", "1a 2x", "1a 2y", Apart, 1},
		{"two forced at once, one went on", "1a 2x 2p 2q", "1a 2y", Apart, 1},
		{"forced again after that", "1a 2x 2p 2q", "1a 2y 3z", Older, 1},
		{"the last record decides, not the first that differs", "1a 2x 2p", "1a 1b 3y", Older, 1},
		{"two first records", "1a", "1b", Apart, 0},
		{"terms decide nothing", "1a 1b 1c", "1a 1x", Apart, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := chainOf(tt.a), chainOf(tt.b)
			if got, common := Compare(a, b); got != tt.want || common != tt.common {
				t.Errorf("Compare(%q, %q) = %v, %d, want %v, %d", tt.a, tt.b, got, common, tt.want, tt.common)
			}
			mirrored := map[Order]Order{Same: Same, Newer: Older, Older: Newer, Apart: Apart}[tt.want]
			if got, common := Compare(b, a); got != mirrored || common != tt.common {
				t.Errorf("Compare(%q, %q) = %v, %d, want %v, %d", tt.b, tt.a, got, common, mirrored, tt.common)
			}
		})
	}
}
