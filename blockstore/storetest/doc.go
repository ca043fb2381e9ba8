// Package storetest changes what a store holds behind its back, for tests of what
// readers make of it.
package storetest
