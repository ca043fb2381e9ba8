package page

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// run has a total of that many seconds, and a guest that writes that share as fast meanwhile.
func run(total, share float64) Run {
	return Run{
		Total: time.Duration(total * float64(time.Second)), There: time.Second, Downtime: 50 * time.Millisecond, Bytes: 200e6, Processor: 3 * time.Second, Moving: time.Second,
		Before: Load{Rate: 500, Write: Times{Median: time.Millisecond, P99: time.Millisecond}, Flush: Times{Median: time.Millisecond}},
		While:  Load{Rate: 500 * share, Write: Times{Median: time.Millisecond, P99: 3 * time.Millisecond, Longest: time.Second}, Flush: Times{time.Millisecond, time.Millisecond, time.Millisecond}},
	}
}

func results() *Results {
	c := &Case{Link: "1gbit", Rate: 2000000}
	for i, total := range []float64{4, 2, 3} {
		c.Add(Eager, run(total, 0.5), nil)
		c.Add(Lazy, run(total+5.5, 1), nil)
		c.Add(QEMU, run(6+float64(i), 0.8), nil)
	}
	s := &Case{Link: "100mbit", Rate: 20000000}
	s.Add(Eager, run(4, 1), nil)
	s.Add(QEMU, Run{}, errors.New("never in step"))
	return &Results{
		Date: "2030-01-02", Took: 90 * time.Second, Rounds: 3, Disk: 256e6, Data: 96e6, Cases: []*Case{c, s},
		Facts: []measure.Fact{{What: FactQEMU, Is: "QEMU emulator version 9.9.9 (x)"}, {What: "a", Is: "b|c"}},
	}
}

func TestPage(t *testing.T) {
	r := results()
	text := string(r.Markdown())
	for _, want := range []string{
		"on 2030-01-02; do not edit. Medians (lowest–highest) of 3 interleaved rounds", "A guest of QEMU 9.9.9 ", "has 256 MB, 96 MB of it data",
		"| 1 Gbit/s, 2 MB/s | sealdisk | sealdisk --lazy | QEMU |\n|---|---:|---:|---:|\n",
		"| all is there, s | 3.00 (2.00–4.00), 0.43 × | 8.50 (7.50–9.50), 1.21 × | 7.00 (6.00–8.00) |\n",
		"| of those before, % | 50.0 (50.0–50.0), 0.62 × | 100 (100–100), 1.25 × | 80.0 (80.0–80.0) |\n",
		"| all is there, s | 4.00 | – |\n",
		"- QEMU: 1 of 1 runs have no figures: never in step.\n",
		"- 1 Gbit/s, 2 MB/s, sealdisk: better in 1 of 13 figures, **worse** in writes/s meanwhile 0.62 ×, of those before, % 0.62 ×, neither in 10.\n",
		"- 1 Gbit/s, 2 MB/s, sealdisk --lazy: better in 2 of 13 figures, neither in 11.\n", // one of its runs is faster than one of QEMU's
		"- *writes/s meanwhile*, *of those before, %* (1 Gbit/s, 2 MB/s, sealdisk): " + slowWrites + ".\n",
		`| a | b\|c |`,
	} {
		if n := strings.Count(text, want); n != 1 {
			t.Errorf("the page has %q %d times, want once", want, n)
		}
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "%!") {
		t.Error("the page has what is no number")
	}
	var out strings.Builder
	if err := r.Text(&out); err != nil || !strings.Contains(out.String(), "3.00 (2.00–4.00), 0.43 ×") || strings.Contains(out.String(), "**") {
		t.Errorf("got %v and %s", err, &out)
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestFailed(t *testing.T) {
	c := results().Cases[1]
	for name, want := range map[string]bool{Eager: false, QEMU: true, Lazy: false} {
		if got := c.Failed(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
