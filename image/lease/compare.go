package lease

// Order says how one lease chain of an image stands to another.
type Order int

const (
	// Same: the chains are equal, or both are empty.
	Same Order = iota
	// Newer: the chain replaces the other one.
	Newer
	// Older: the other chain replaces it.
	Older
	// Apart: two histories, and neither replaces the other until a record of a higher era
	// than both ends one of them.
	Apart
)

func (o Order) String() string {
	return [...]string{"same", "newer", "older", "apart"}[o]
}

// Compare says how chain a stands to chain b of the same image, and how many records both
// begin with. If one chain begins with the other, the longer one is newer. Else the newer
// one is the one whose last record has the higher era: only the image key raises an era, and
// the term, which any holder raises, decides nothing (docs/protocol.md §4). A chain that is
// shorter can be newer, and a longer one older: compare chains with nothing else.
func Compare(a, b Chain) (o Order, common int) {
	shorter := min(len(a), len(b))
	for common < shorter && a[common].ID == b[common].ID {
		common++
	}
	switch {
	case common == len(a) && common == len(b):
		return Same, common
	case common == len(b):
		return Newer, common
	case common == len(a):
		return Older, common
	}
	switch ours, theirs := a.Newest().Era, b.Newest().Era; {
	case ours > theirs:
		return Newer, common
	case ours < theirs:
		return Older, common
	}
	return Apart, common
}
