// Package copyserver mounts a file that lives in memory: a FUSE server that does nothing but copy.
//
// It is the ceiling of what a server in Go can reach on a machine, and benchmarks compare the real
// mount with it. It uses the same options as package fs. Nothing is kept when it ends.
package copyserver
