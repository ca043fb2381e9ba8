// Package page turns the measurements of an evaluation into docs/evaluation.md: tables, plots, and the
// paper's own numbers beside them. It measures nothing.
//
// Its words are those of cmd/paper. The paper's numbers are constants, in paper.go and sla.go; all other
// figures come in a Results.
package page
