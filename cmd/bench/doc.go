// Bench measures sealdisk side by side with its peers and writes docs/performance.md; scripts/bench
// installs what it needs and runs it.
//
// Its words: a target is a contender that shows a disk as one file; a group is a set of rows that is
// measured together; a round is one measurement of every contender at a row. Contenders take turns:
// all of them in one round, then all of them in the next, so that a change of the machine's mood
// falls on each. Every server and every load is a process of its own, ended by its number.
package main
