// Package archtest holds the repository to its own drawing: which package may import which, which
// library may be used where, and how named and how finished a file may be.
//
// Its words: a tree is the repository as the checks see it, a map from folder to the Go files in it;
// a fault is one line that names a place and what is wrong there. Every check is a function from a
// tree to its faults, so that the tests can show each check a tree on which it must fail.
//
// No other package imports it; it exists for its tests.
package archtest
