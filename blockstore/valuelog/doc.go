// Package valuelog does to the files of Badger's value log what Badger does not:
// it backs them with blocks before they are written, maps them in large pages, gives
// the memory of their mappings back, and counts what is written in them.
//
// Nothing here changes a byte of them. Badger's value log is files of 64 MiB named by
// ascending numbers; the newest alone is written, and it is longer than what is written.
package valuelog
