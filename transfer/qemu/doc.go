// Package qemu moves a running guest between two QEMU processes: it drives them through
// their monitors (QMP), and carries their memory over a connection of ours.
package qemu
