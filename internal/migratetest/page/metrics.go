package page

import (
	"fmt"
	"slices"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// metric is a row of a table.
type metric struct {
	name string
	of   func(Run) float64
	sign int    // -1: less is better, 1: more is better, 0: it is not compared
	slow string // why it may be worse here than with QEMU, as far as known
}

func seconds(d time.Duration) float64 { return d.Seconds() }
func milli(d time.Duration) float64   { return d.Seconds() * 1000 }
func micro(d time.Duration) float64   { return d.Seconds() * 1e6 }

// kept is the share of the writes before, in percent.
func kept(r Run) float64 {
	if r.Before.Rate == 0 {
		return 0
	}
	return 100 * r.While.Rate / r.Before.Rate
}

// metrics in the order of the tables.
var metrics = []metric{
	{"all is there, s", func(r Run) float64 { return seconds(r.Total) }, -1, slowTotal},
	{"the guest runs there, s", func(r Run) float64 { return seconds(r.There) }, -1, slowTotal},
	{"downtime, ms", func(r Run) float64 { return milli(r.Downtime) }, -1, slowDowntime},
	{"over the link, MB", func(r Run) float64 { return float64(r.Bytes) / 1e6 }, -1, slowBytes},
	{"CPU, s", func(r Run) float64 { return seconds(r.Processor) }, -1, slowCPU},
	{"CPU without the guest's, s", func(r Run) float64 { return seconds(r.Moving) }, -1, slowCPU},
	{"writes/s before", func(r Run) float64 { return r.Before.Rate }, 0, ""},
	{"writes/s meanwhile", func(r Run) float64 { return r.While.Rate }, 1, slowWrites},
	{"of those before, %", kept, 1, slowWrites},
	{"write before, median, µs", func(r Run) float64 { return micro(r.Before.Write.Median) }, 0, ""},
	{"write meanwhile, median, µs", func(r Run) float64 { return micro(r.While.Write.Median) }, -1, slowWrites},
	{"write before, p99, µs", func(r Run) float64 { return micro(r.Before.Write.P99) }, 0, ""},
	{"write meanwhile, p99, µs", func(r Run) float64 { return micro(r.While.Write.P99) }, -1, slowWrites},
	{"write meanwhile, longest, ms", func(r Run) float64 { return milli(r.While.Write.Longest) }, -1, slowWrites},
	{"flush before, median, ms", func(r Run) float64 { return milli(r.Before.Flush.Median) }, 0, ""},
	{"flush meanwhile, median, ms", func(r Run) float64 { return milli(r.While.Flush.Median) }, -1, slowFlush},
	{"flush meanwhile, p99, ms", func(r Run) float64 { return milli(r.While.Flush.P99) }, -1, slowFlush},
}

// ratio of the medians to QEMU's; ok: both have one.
func (c *Case) ratio(w *Way, m metric) (r float64, ok bool) {
	ours, theirs := measure.Median(w.values(m)), measure.Median(c.way(QEMU).values(m))
	if ours <= 0 || theirs <= 0 || w.Name == QEMU || m.sign == 0 {
		return 0, false
	}
	return ours / theirs, true
}

// noticed is how much a ratio has to be off one, to be called better or worse.
const noticed = 0.02

// compare gives 1 if a way is better than QEMU's own, -1 if it is worse, by the same rule: each run of one
// is better than each of the other, and the medians differ by more than noticed. 0: neither is shown.
func (c *Case) compare(w *Way, m metric) int {
	r, ok := c.ratio(w, m)
	if !ok {
		return 0
	}
	ours, theirs := w.values(m), c.way(QEMU).values(m)
	switch {
	case r > 1+noticed && slices.Min(ours) > slices.Max(theirs):
		return m.sign
	case r < 1-noticed && slices.Max(ours) < slices.Min(theirs):
		return -m.sign
	}
	return 0
}

// cell is what a table says of a metric of a way: median, spread, ratio to QEMU.
func (c *Case) cell(w *Way, m metric) string {
	list := w.values(m)
	if len(list) == 0 {
		return "–"
	}
	text := measure.Number(measure.Median(list))
	if len(list) > 1 {
		text += fmt.Sprintf(" (%s–%s)", measure.Number(slices.Min(list)), measure.Number(slices.Max(list)))
	}
	if r, ok := c.ratio(w, m); ok {
		text += fmt.Sprintf(", %.2f ×", r)
	}
	return text
}
