// Package metrics is what a daemon counts, for Prometheus. Nothing in it tells what an
// image holds or how it is called; peers are named as the book names them.
package metrics
