// Package durable replaces files so that a crash leaves the old one or the new one.
package durable
