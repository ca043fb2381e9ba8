// Package slowlink makes a network path long: it passes the bytes of TCP connections on
// after a delay. For tests and benchmarks on machines whose kernel has no netem.
package slowlink
