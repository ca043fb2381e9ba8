// Package latency counts how long things took, in so little room that a guest can print all of it on
// its serial line, again and again: what came in between is the difference of two lines.
//
// A bucket is an eighth of an octave, in microseconds.
package latency
