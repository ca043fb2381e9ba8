package page

import (
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// Way is the network that an image goes over.
type Way int

// The ways, and their number.
const (
	Loopback Way = iota
	Gigabit
	Ways
)

// String names a way as the tables do.
func (w Way) String() string { return [...]string{"loopback", "gigabit"}[w] }

// Results is all that a run measured.
type Results struct {
	Date       string
	Took       time.Duration
	Sets       []Set // in MB, then in GB
	Challenges []Challenge
	Notes      []string // what was left out, and why
	Facts      []measure.Fact
}

// Set is the ten images with their figures in one unit.
type Set struct {
	Unit   string
	Bytes  int64   // of the unit
	Share  float64 // of a third, that is data
	Rounds int
	Images []Image
}

// Image is what was measured of one.
type Image struct {
	Machine
	Size, Data   int64 // bytes, of the disk and of its sectors that are not zero
	Digest       string
	Segments     Segments
	Sealed, Wire int64 // bytes, of what came and of the connection that brought it
	Paths        [Ways][]Phases
	Commands     float64 // ms of a path by commands; 0: not measured
	Boot         Boot
	Eager, Lazy  []Start
}

// Segments is what the planner did.
type Segments struct {
	Planned, Merged, Left int64
	Reduction             float64 // percent
}

// Boot is what a start-up list holds.
type Boot struct {
	Reads int
	Bytes int64
}

// Start says how long after the request for an image parts of it were read, in ms.
type Start struct{ First, Boot, Whole float64 }

// Phase is the median of each phase on a way, by itself.
func (im Image) Phase(w Way) Phases {
	var columns [len(PhaseNames)][]float64
	for _, p := range im.Paths[w] {
		for i, v := range p.List() {
			columns[i] = append(columns[i], v)
		}
	}
	m := func(i int) float64 { return measure.Median(columns[i]) }
	return Phases{m(0), m(1), m(2), m(3), m(4)}
}

// Total is the median of the totals on a way.
func (im Image) Total(w Way) float64 {
	return medianOf(im.Paths[w], Phases.Total)
}

// medianOf gives the median of what f says of each.
func medianOf[T any](list []T, f func(T) float64) float64 {
	var values []float64
	for _, x := range list {
		values = append(values, f(x))
	}
	return measure.Median(values)
}

// mean over the images of a set.
func (s Set) mean(f func(Image) float64) float64 {
	var values []float64
	for _, im := range s.Images {
		values = append(values, f(im))
	}
	return measure.Mean(values)
}

// MeanTotal over the images of a set.
func (s Set) MeanTotal(w Way) float64 {
	return s.mean(func(im Image) float64 { return im.Total(w) })
}

// Met tells whether the mean total of the first set on the loopback is what it is to be.
func (r *Results) Met() bool {
	return len(r.Sets) > 0 && len(r.Sets[0].Images) == len(Machines) && r.Sets[0].MeanTotal(Loopback) <= PaperMean/GoalFactor
}

// Challenge is one of the seven that the paper lists, and what stands against it.
type Challenge struct {
	Name, Mechanism string
	Tests           []Test
}

// Test is one that attacks a mechanism.
type Test struct {
	Package, Name string // from the repository's root
	Attack        string // what it does
	Passed        bool
	Took          time.Duration
	Problem       string // why it has not passed
}
