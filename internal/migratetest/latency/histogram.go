package latency

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

const (
	perOctave = 8 // buckets; those below it hold one microsecond each
	buckets   = 28 * perOctave
)

// Histogram counts durations; its zero value has none.
type Histogram struct{ counts [buckets]uint64 }

// ErrText: a text is no histogram.
var ErrText = errors.New("latency: not a histogram")

func bucket(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	e := max(0, bits.Len64(us)-4)
	return min(e*perOctave+int(us>>e), buckets-1)
}

// least is the shortest that a bucket holds.
func least(i int) time.Duration {
	if i < 2*perOctave {
		return time.Duration(i) * time.Microsecond
	}
	e := i/perOctave - 1
	return time.Duration((i%perOctave+perOctave)<<e) * time.Microsecond
}

// Add counts a duration.
func (h *Histogram) Add(d time.Duration) { h.counts[bucket(d)]++ }

// Count is how many were added.
func (h Histogram) Count() (n uint64) {
	for _, c := range h.counts {
		n += c
	}
	return n
}

// Since gives what was added after an earlier state of the same histogram.
func (h Histogram) Since(earlier Histogram) Histogram {
	for i := range h.counts {
		h.counts[i] -= min(h.counts[i], earlier.counts[i])
	}
	return h
}

// Quantile is the middle of the bucket below whose end that share of all lies, 0 of none.
func (h Histogram) Quantile(share float64) time.Duration {
	all := h.Count()
	if all == 0 {
		return 0
	}
	rank, seen := max(1, uint64(share*float64(all)+0.5)), uint64(0)
	last := 0
	for i, c := range h.counts {
		if c == 0 {
			continue
		}
		last, seen = i, seen+c
		if seen >= rank {
			break
		}
	}
	return (least(last) + least(last+1)) / 2
}

// String gives each bucket that has something as BUCKET:COUNT, with commas between them, or "-".
func (h Histogram) String() string {
	var parts []string
	for i, c := range h.counts {
		if c > 0 {
			parts = append(parts, fmt.Sprintf("%d:%d", i, c))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ",")
}

// Parse reads what String gives.
func Parse(text string) (h Histogram, err error) {
	if text == "-" {
		return h, nil
	}
	last := -1
	for part := range strings.SplitSeq(text, ",") {
		k, v, ok := strings.Cut(part, ":")
		i, ierr := strconv.Atoi(k)
		c, cerr := strconv.ParseUint(v, 10, 64)
		if !ok || errors.Join(ierr, cerr) != nil || i <= last || i >= buckets || c == 0 {
			return Histogram{}, fmt.Errorf("%w: %q", ErrText, part)
		}
		h.counts[i], last = c, i
	}
	return h, nil
}
