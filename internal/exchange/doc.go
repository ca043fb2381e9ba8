// Package exchange is what a host does with its peers, and lets them do: it applies the
// roles and quotas of the book, lends images to pulls, and runs pulls and pushes between
// package transfer and the images of the daemon.
//
// Words. A job is one pull or push. Keys go by making the puller a recipient, never as
// such. Images that came from a peer have labels in the catalogue that begin with
// "local.": they are this store's own and travel nowhere.
package exchange
