package page

import "github.com/sealdisk/sealdisk/internal/measure"

// Policy is a pair of load-balancing policies of CloudSim, and how long they take to select a machine.
type Policy struct {
	Name    string
	Minutes float64
}

// Policies are the 18 pairs of the paper.
var Policies = [...]Policy{
	{"IQR/MC", 48.24}, {"IQR/MMT", 7.92}, {"LR/MC", 46.80}, {"LR/MMT", 15.84}, {"LR/MU", 6.12}, {"LR/RS", 37.44},
	{"LRR/MC", 7.92}, {"LRR/MMT", 19.44}, {"LRR/MU", 3.96}, {"LRR/RS", 5.76}, {"MAD/MC", 79.20}, {"MAD/MMT", 7.92},
	{"MAD/MU", 9.72}, {"MAD/RS", 25.56}, {"THR/MC", 80.28}, {"THR/MMT", 6.12}, {"THR/MU", 1.80}, {"THR/RS", 3.96},
}

// The paper's time for a machine, in minutes, and the mean increase that it gives, in percent.
const (
	PaperMinutes  = 0.02
	PaperIncrease = 0.30
)

// Minutes of milliseconds, not rounded.
func Minutes(ms float64) float64 { return ms / 60_000 }

// Increase of a selection by minutes more, in percent.
func (p Policy) Increase(minutes float64) float64 { return minutes / p.Minutes * 100 }

// MeanIncrease over all pairs, in percent.
func MeanIncrease(minutes float64) float64 {
	var list []float64
	for _, p := range Policies {
		list = append(list, p.Increase(minutes))
	}
	return measure.Mean(list)
}
