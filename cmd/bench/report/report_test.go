package report

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCatalogue checks that every goal names rows and contenders that there are.
func TestCatalogue(t *testing.T) {
	rows := map[string]bool{"": true}
	for _, g := range Groups {
		for _, r := range g.Rows {
			if rows[r.ID] || !strings.HasPrefix(r.ID, g.ID+"/") {
				t.Errorf("row %q of group %q: twice, or not the group's", r.ID, g.ID)
			}
			rows[r.ID] = true
			if r.Reference != "" && !slices.Contains(order, r.Reference) {
				t.Errorf("row %q: no contender %q", r.ID, r.Reference)
			}
		}
	}
	for _, g := range Goals {
		if !rows[g.Row] || g.Row == "" || !rows[g.RefRow] || !slices.Contains(order, g.Contender) || g.Factor <= 0 {
			t.Errorf("goal %q: got %+v, want known rows, a known contender and a bound", g.What, g)
		}
		if (g.RefRow == "") != (g.RefContender == "") || g.RefContender != "" && !slices.Contains(order, g.RefContender) {
			t.Errorf("goal %q: reference %q of %q", g.What, g.RefContender, g.RefRow)
		}
	}
	if len(colours) != len(order) {
		t.Errorf("got %d colours, want %d", len(colours), len(order))
	}
}

func TestVerdict(t *testing.T) {
	ratio := above("", "", "cold/rand1", Sealdisk, 2, Gocryptfs)
	bound := below("", "", "huge/mount", Sealdisk, 1000)
	for _, tt := range []struct {
		name          string
		goal          Goal
		own, peer     float64 // 0: no figure
		want, measure string
	}{
		{"at the factor", ratio, 20000, 10000, "met", "2.00 × (20.0k/s, 10.0k/s)"},
		{"below the factor", ratio, 19999, 10000, "**missed**", "2.00 × (20.0k/s, 10.0k/s)"},
		{"no figure", ratio, 0, 10000, "not measured", "no figure"},
		{"no reference", ratio, 20000, 0, "not measured", "no figure of gocryptfs"},
		{"at the bound", bound, 1000, 0, "met", "1000 ms"},
		{"above the bound", bound, 1000.5, 0, "**missed**", "1000 ms"},
	} {
		var r Results
		for c, v := range map[string]float64{tt.goal.Contender: tt.own, tt.goal.RefContender: tt.peer} {
			if v != 0 {
				r.Add(tt.goal.Row, c, v)
			}
		}
		v := r.verdict(tt.goal)
		if v.String() != tt.want || v.measured != tt.measure {
			t.Errorf("%s: got %s, %q, want %s, %q", tt.name, v, v.measured, tt.want, tt.measure)
		}
	}
}

func TestPage(t *testing.T) {
	var r Results
	for _, v := range []float64{300, 100, 200} {
		r.Add("cold/rand1", Sealdisk, v)
		r.Add("cold/rand1", Plain, 2*v)
	}
	r.Peak("memory/cold", Sealdisk, 5)
	r.Peak("memory/cold", Sealdisk, 3)
	r.Curve("randwrite32", Sealdisk, []Point{{1, 10}, {2, 20}})
	r.Add("randwrite32/sustained", Gocryptfs, 1)
	r.Skip("restic", "not installed")
	r.Skip("restic", "not installed")
	r.Fail("import", "broke")
	dir := t.TempDir()
	if err := r.Plot(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cold.svg", "randwrite32-time.svg"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Contains(text, []byte("</svg>")) {
			t.Errorf("%s: got %d bytes, %v, want a whole picture", name, len(text), err)
		}
	}
	var b strings.Builder
	if err := r.Write(&b, Page{Title: "T", Plots: "p", Facts: []Note{{"a", "b|c"}}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| sealdisk | – | **200** (100–300) 0.50× |", "| plain file | – | **400** (200–600) |", "![Mounted, O_DIRECT, cold](p/cold.svg)",
		"(p/randwrite32-time.svg)", "| **5.00** |", "- restic: not installed\n\n", "- import: broke", `| a | b\|c |`,
		"| 4k random read qd1, cold | ≥ 0.5 × plain file, O_DIRECT | 0.50 × (200/s, 400/s) | met |",
	} {
		if strings.Count(b.String(), want) != 1 {
			t.Errorf("the page has %q %d times, want once:\n%s", want, strings.Count(b.String(), want), b.String())
		}
	}
}
