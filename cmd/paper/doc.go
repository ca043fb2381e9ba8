// Paper runs the tables of the paper's evaluation on this implementation and writes
// docs/evaluation.md; scripts/paper builds it and runs it.
//
// Its words: a machine is one of the ten of the paper's Table 1, an input the image that stands for
// it, a set the ten inputs with their figures in one unit. A path is what an image goes through, from a
// file or a device at one host to a file at another; a phase is a part of it. A way is the network of a path.
//
// Three daemons serve: a source, a destination that the source reaches over the loopback device, and
// one over a link of 1 Gbit/s. Namespaces, devices, processes and files are this program's own and
// are taken down at its end.
package main
