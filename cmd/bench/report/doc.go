// Package report turns the measurements of a benchmark run into a page: tables, verdicts and plots.
//
// Its words: a row is one thing that is measured, a contender one program that is measured at it, a
// sample one figure of one contender in one round. A goal compares a median with another median of
// the same run, or with a bound. The catalogue holds all rows and goals; it measures nothing.
package report
