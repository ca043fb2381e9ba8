package page

// Machine is one of the ten of the paper's Table 1.
type Machine struct {
	Number int
	Figure int64 // of its size, in MB
	Linked bool  // else fixed
	Paper  Phases
}

// Kind is the type that the paper gives.
func (m Machine) Kind() string {
	if m.Linked {
		return "linked"
	}
	return "fixed"
}

// Phases of a path, in milliseconds. The paper calls sealing encryption, opening decryption, and collation
// de-segmentation.
type Phases struct{ Segmentation, Sealing, Transmission, Opening, Collation float64 }

// PhaseNames are the phases in their order.
var PhaseNames = [...]string{"segmentation", "sealing", "transmission", "opening", "collation"}

// List gives the phases in the order of PhaseNames.
func (p Phases) List() [len(PhaseNames)]float64 {
	return [...]float64{p.Segmentation, p.Sealing, p.Transmission, p.Opening, p.Collation}
}

// Total is the sum: one phase begins where the one before it ends.
func (p Phases) Total() (sum float64) {
	for _, v := range p.List() {
		sum += v
	}
	return sum
}

// Machines has what the paper measured of each.
var Machines = [...]Machine{
	{1, 20, true, Phases{10, 1074, 357, 114, 10}},
	{2, 11, false, Phases{30, 144, 729, 157, 30}},
	{3, 21, true, Phases{24, 73, 313, 265, 24}},
	{4, 24, false, Phases{18, 349, 618, 194, 18}},
	{5, 12, true, Phases{39, 290, 572, 395, 39}},
	{6, 12, false, Phases{18, 997, 682, 596, 18}},
	{7, 12, true, Phases{42, 632, 604, 666, 42}},
	{8, 27, false, Phases{15, 144, 313, 265, 15}},
	{9, 29, true, Phases{14, 73, 618, 194, 14}},
	{10, 20, false, Phases{18, 997, 572, 596, 18}},
}

// PaperTotals are the paper's totals as it gives them, PaperMean their mean.
var PaperTotals = [len(Machines)]float64{1565, 1090, 699, 1197, 1335, 2311, 1986, 752, 913, 2201}

// PaperMean is in milliseconds; GoalFactor is how many times less the mean here is to be.
const (
	PaperMean  = 1404.9
	GoalFactor = 20
)
