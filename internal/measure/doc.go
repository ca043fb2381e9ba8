// Package measure is what the programs that measure share: how they begin and end, programs that they
// run and servers that they start and end by their number, bytes that are the same in each run, medians,
// and what is to be known of the machine.
package measure
