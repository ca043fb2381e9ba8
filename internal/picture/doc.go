// Package picture draws what a guest needs first: the start-up list of an image, as a
// graph for Graphviz and as a drawing.
package picture
