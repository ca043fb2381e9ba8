// Package audit checks an image as anybody can who has no key: digests, shapes,
// references and signatures. What needs keys builds on it in package image.
package audit
