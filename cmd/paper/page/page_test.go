package page

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

func near(got, want, by float64) bool { return math.Abs(got-want) <= by }

// TestPaperNumbers: what the paper gives twice agrees.
func TestPaperNumbers(t *testing.T) {
	var figures, linked []string
	for i, m := range Machines {
		if m.Number != i+1 || m.Paper.Total() != PaperTotals[i] {
			t.Errorf("machine %d at %d: the phases add up to %v, the total is %v", m.Number, i+1, m.Paper.Total(), PaperTotals[i])
		}
		figures = append(figures, measure.Number(float64(m.Figure)))
		linked = append(linked, m.Kind())
	}
	if got := measure.Mean(PaperTotals[:]); got != PaperMean {
		t.Errorf("mean of the totals: got %v, want %v", got, PaperMean)
	}
	if got, want := strings.Join(figures, " "), "20.0 11.0 21.0 24.0 12.0 12.0 12.0 27.0 29.0 20.0"; got != want {
		t.Errorf("figures: got %s, want %s", got, want)
	}
	if got, want := strings.Join(linked, " "), "linked fixed linked fixed linked fixed linked fixed linked fixed"; got != want {
		t.Errorf("types: got %s, want %s", got, want)
	}
}

func TestIncrease(t *testing.T) {
	if got := Policies[0].Increase(PaperMinutes); !near(got, 0.04146, 0.00001) {
		t.Errorf("%s by 0.02 minutes: got %v, want 0.04146", Policies[0].Name, got)
	}
	for _, tt := range []struct{ minutes, want, by float64 }{
		{0, 0, 0}, {PaperMinutes, 0.2545, 0.0001}, {Minutes(PaperMean), PaperIncrease, 0.005}, {2 * PaperMinutes, 0.5090, 0.0002},
	} {
		if got := MeanIncrease(tt.minutes); !near(got, tt.want, tt.by) {
			t.Errorf("mean increase by %v minutes: got %v, want %v", tt.minutes, got, tt.want)
		}
	}
	// 60 ms are 0.001 minutes: rounded to two digits first they would be nothing.
	if got := (Policy{"", 2}).Increase(Minutes(60)); !near(got, 0.05, 1e-12) {
		t.Errorf("60 ms of 2 minutes: got %v %%, want 0.05", got)
	}
}

// image has three rounds on the loopback, of which each has its longest phase elsewhere, and one over the link.
func image(m Machine) Image {
	return Image{
		Machine: m, Size: m.Figure << 20, Data: m.Figure << 19, Sealed: 1 << 20, Wire: 941e6 / 8 / 100, Digest: strings.Repeat("ab", 32),
		Segments: Segments{Planned: 200, Merged: 150, Left: 50, Reduction: 75},
		Paths: [Ways][]Phases{
			{{1, 20, 30, 4, 5}, {3, 10, 30, 4, 5}, {2, 10, 60, 4, 50}},
			{{1, 2, 30, 4, 5}},
		},
		Commands: 90, Boot: Boot{Reads: 7, Bytes: 1 << 20},
		Eager: []Start{{First: 100, Boot: 200}, {First: 300, Boot: 300}}, Lazy: []Start{{10, 20, 400}},
	}
}

func TestMedians(t *testing.T) {
	im := image(Machines[0])
	if got, want := im.Phase(Loopback), (Phases{2, 10, 30, 4, 5}); got != want {
		t.Errorf("phases: got %v, want %v", got, want)
	}
	if got := im.Total(Loopback); got != 60 { // of 60, 52 and 126: not the sum of the medians, which is 51
		t.Errorf("total: got %v, want 60", got)
	}
	if got := im.Total(Gigabit); got != 42 {
		t.Errorf("total over the link: got %v, want 42", got)
	}
	s := Set{Images: []Image{im, {Machine: Machines[1], Paths: [Ways][]Phases{{{Sealing: 20}}}}}}
	if got := s.MeanTotal(Loopback); got != 40 {
		t.Errorf("mean of 60 and 20: got %v", got)
	}
}

// results is a page with everything, on which the mean total on the loopback is as given.
func results(total float64) *Results {
	r := &Results{
		Date: "2030-01-02", Took: 90 * time.Second, Notes: []string{"Something was left out."}, Facts: []measure.Fact{{What: "a", Is: "b|c"}},
		Challenges: []Challenge{{Name: "Integrity", Mechanism: "tags", Tests: []Test{
			{Package: "p", Name: "TestA", Attack: "flips", Passed: true, Took: 1500 * time.Millisecond},
			{Package: "p", Name: "TestB", Attack: "cuts", Problem: "no such test"},
		}}},
		Sets: []Set{{Unit: "MB", Bytes: 1 << 20, Share: 1, Rounds: 3}, {Unit: "GB", Bytes: 1 << 30, Share: 0.5, Rounds: 1}},
	}
	for _, m := range Machines {
		im := image(m)
		im.Paths[Loopback] = []Phases{{Sealing: total}}
		r.Sets[0].Images = append(r.Sets[0].Images, im)
		large := image(m)
		large.Size = m.Figure << 30
		r.Sets[1].Images = append(r.Sets[1].Images, large)
	}
	return r
}

func TestGoal(t *testing.T) {
	for _, tt := range []struct {
		total float64
		want  bool
	}{{70, true}, {PaperMean / GoalFactor, true}, {70.3, false}} {
		r := results(tt.total)
		if got := r.Met(); got != tt.want {
			t.Errorf("a mean of %v ms: got %v, want %v", tt.total, got, tt.want)
		}
		if text := string(r.markdown("p")); strings.Contains(text, "times less: met") != tt.want || strings.Contains(text, "**missed**") == tt.want {
			t.Errorf("a mean of %v ms: the page says something else", tt.total)
		}
	}
	r := results(1)
	r.Sets[0].Images = r.Sets[0].Images[:9]
	if r.Met() {
		t.Error("nine of ten images are enough")
	}
}

func TestPage(t *testing.T) {
	text := string(results(70.245).markdown("p"))
	for _, want := range []string{
		"on 2030-01-02; do not edit", "**Something was left out.**", "Of 2 tests that attack the seven security mechanisms 1 passed. The run took 1m30s.",
		"| mean total of the ten images in MB, loopback, ms | 1405 | 70.2 | 20.0 | at least 20 times less: met |",
		"| 20 MB linked | 20971520 | 10.0 | 50.0 % | 1.00 | `abababababababab` |",
		"| 20 MB linked | 200 | 150 | 50 | 75.0 % |",
		"| 20 MB linked | 0.00 (10.0) | 70.2 (1074) | 0.00 (357) | 0.00 (114) | 0.00 (10.0) | **70.2** (1565) | 22.3 |",
		"| 20 MB linked | 1.00 (10.0) | 2.00 (1074) | 30.0 (357) | 4.00 (114) | 5.00 (10.0) | **42.0** (1565) | 37.3 | 10.0 |",
		"| 11 GB fixed | 2.00 | 10.0 | 30.0 | 4.00 | 5.00 | **60.0** [52.0–126] |",
		"| 29 GB linked | 7 reads, 1.00 MB | 200 | 10.0 | 250 | 20.0 | 400 |",
		"| THR/MU | 1.80 | 1.1111 | 1.3008 | 0.06504 | 0.03889 |",
		"| **mean** |  | 0.2545 | 0.2979 | 0.01490 | 0.00891 |",
		"(p/totals-mb.svg)", "(p/phases-gb.svg)", "(p/segments-gb.svg)", "(p/starts-mb.svg)", "(p/sla.svg)",
		"| Integrity | tags | `p` TestA: flips<br>`p` TestB: cuts | passed, 1.5 s<br>**failed**: no such test |", `| a | b\|c |`,
		"hold 0.5 of it",
	} {
		if n := strings.Count(text, want); n != 1 {
			t.Errorf("the page has %q %d times, want once", want, n)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestNothing: a run without a set says so and makes a page.
func TestNothing(t *testing.T) {
	r := &Results{Notes: []string{"Nothing."}}
	if text := string(r.markdown("p")); !strings.Contains(text, "**Nothing.**") || strings.Contains(text, "NaN") || len(r.charts()) != 0 {
		t.Errorf("got %d charts and %s", len(r.charts()), text)
	}
}

func TestSave(t *testing.T) {
	dir := t.TempDir()
	if err := results(60).Save(filepath.Join(dir, "out.md")); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "out.md"))
	if err != nil || !strings.Contains(string(page), "(out/totals-mb.svg)") {
		t.Errorf("got %v and %d bytes, want a page that names its plots", err, len(page))
	}
	for file, says := range map[string][]string{
		"totals-mb.svg": {"paper", "sealdisk, 1 Gbit/s", "20 MB", "linked", ">ms<"}, "totals-gb.svg": {"29 GB"},
		"phases-mb.svg": {"segmentation", "collation"}, "phases-gb.svg": {"transmission"},
		"segments-mb.svg": {"blocks planned", "segments left"}, "segments-gb.svg": {"number"},
		"starts-mb.svg": {"lazy: boot list"}, "starts-gb.svg": {"whole: first block"}, "sla.svg": {"LRR/MMT", ">percent<", "pair of policies"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, "out", file))
		if err != nil || !strings.Contains(string(text), "</svg>") || strings.Contains(string(text), "NaN") {
			t.Errorf("%s: got %v, %d bytes, want a whole picture", file, err, len(text))
		}
		for _, s := range says {
			if !strings.Contains(string(text), s) {
				t.Errorf("%s does not say %q", file, s)
			}
		}
	}
}

func TestBounds(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		low    float64
	}{{[]float64{0, 15, 2311}, 10}, {[]float64{0.003, 1}, 0.001}, {[]float64{10}, 1}, {[]float64{0}, 0.1}} {
		low, high := chart{series: []series{{values: tt.values}}}.bounds()
		if !near(low, tt.low, 1e-9) {
			t.Errorf("%v: the axis begins at %v, want %v", tt.values, low, tt.low)
		}
		for _, v := range tt.values {
			if v >= high || v > 0 && v <= low {
				t.Errorf("%v: %v is not within %v to %v", tt.values, v, low, high)
			}
		}
	}
}
