// Package imagetest is the one contract for everything that behaves as an
// image: a local disk, a lazy one, a migrated one, a mounted file, and a plain
// file, which is what all of them must be like.
//
// [Run] holds a [Target] to a list of cases, each about one edge. [Model] does
// random operations on a target and on a byte slice and reports the first
// difference with the operations that led to it; [Parallel] does the same from
// several goroutines on ranges of their own.
//
// A mount must be used from another process than the one that serves it. A test
// binary whose TestMain calls [Main] can be its own child: [Child] starts it
// again with a job, and the job's error is the test's.
package imagetest
