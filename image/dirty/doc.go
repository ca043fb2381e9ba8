// Package dirty holds the sectors of a disk that were written and are not in a commit yet.
//
// A Set is one generation: it is active (written to) until a commit freezes it,
// and does not change from then on. A sector in it is a page of data or zero;
// what it does not hold is looked for in the generation before, then in the map.
// Each Set also knows which of its sectors no journal holds yet.
package dirty
