package report

import (
	"slices"
	"sync"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// key names the samples of one contender at one row.
type key struct{ row, contender string }

// A Note says why something has no figure, or what must be known of one.
type Note struct{ What, Why string }

// Results holds every sample of a run. Its methods may be called concurrently.
type Results struct {
	mu       sync.Mutex
	samples  map[key][]float64
	curves   map[key][]Point
	profiles map[string]Profile // by row
	skipped  []Note
	failed   []Note
}

// A Point of a curve: seconds from the start, and a value.
type Point struct{ T, V float64 }

// Add keeps one sample, in the row's unit.
func (r *Results) Add(row, contender string, v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.samples == nil {
		r.samples = map[key][]float64{}
	}
	r.samples[key{row, contender}] = append(r.samples[key{row, contender}], v)
}

// Peak keeps the largest value of a contender at a row as its only sample.
func (r *Results) Peak(row, contender string, v float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.samples == nil {
		r.samples = map[key][]float64{}
	}
	k := key{row, contender}
	if old := r.samples[k]; len(old) == 0 || v > old[0] {
		r.samples[k] = []float64{v}
	}
}

// Curve keeps a rate over time; a later curve of the same name replaces it.
func (r *Results) Curve(row, contender string, points []Point) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.curves == nil {
		r.curves = map[key][]Point{}
	}
	r.curves[key{row, contender}] = points
}

// Skip says that something was not measured. The same words twice are kept once.
func (r *Results) Skip(what, why string) { r.note(&r.skipped, Note{what, why}) }

// Fail says that a measurement was tried and gave an error.
func (r *Results) Fail(what, why string) { r.note(&r.failed, Note{what, why}) }

func (r *Results) note(list *[]Note, n Note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(*list, n) {
		*list = append(*list, n)
	}
}

// Failed reports whether any measurement gave an error.
func (r *Results) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failed) > 0
}

// stat is what a table shows of a cell.
type stat struct {
	median, low, high float64
	n                 int
}

func (r *Results) stat(row, contender string) (stat, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.samples[key{row, contender}]
	if len(v) == 0 {
		return stat{}, false
	}
	return stat{measure.Median(v), slices.Min(v), slices.Max(v), len(v)}, true
}
