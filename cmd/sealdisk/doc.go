// Command sealdisk keeps virtual-machine disk images sealed and shows them as
// ordinary files.
//
// Each command turns its flags into one operation of the daemon's API and prints
// the result; docs/cli.md, which is generated from the commands, lists them all.
// Results go to stdout, everything else to stderr. Secrets are never arguments.
package main
