// Command slowlink listens at an address and passes connections on to another one, each
// byte after a delay: a long network path for scripts/netns-test.
//
//	slowlink LISTEN TARGET DELAY
package main
