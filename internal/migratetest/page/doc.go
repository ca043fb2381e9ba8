// Package page turns the measurements of migrations into docs/migration.md, and into a text for a
// terminal. It measures nothing.
//
// Its words: a case is a link and a rate of writes; a way is a contender in a case, with its runs; all
// ways of a case run in each round.
package page
