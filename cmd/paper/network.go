package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// network is two namespaces with a link between them:
//
//	near: source 0.0.0.0:7443, sink 127.0.0.1:7444 (lo)        far: sink 10.79.0.2:7443
//	                eth 10.79.0.1  ──────── 1 Gbit/s ────────  eth 10.79.0.2
type network struct {
	commands measure.Commands
	tag      string // before the names of namespaces
	made     []string
}

const near, far = "near", "far"

var addresses = map[string]string{near: "10.79.0.1", far: "10.79.0.2"}

// linkRate is what tc lets through. Of 1 Gbit/s Ethernet 941 Mbit/s are payload of TCP.
const linkRate = "1gbit"

// makeNetwork gives what it made also with an error.
func makeNetwork(ctx context.Context, c measure.Commands) (*network, error) {
	n := &network{commands: c, tag: fmt.Sprintf("sdp%d-", os.Getpid())}
	for _, name := range []string{near, far} {
		if err := n.run(ctx, "ip", "netns", "add", n.tag+name); err != nil {
			return n, err
		}
		n.made = append(n.made, name)
	}
	steps := [][]string{n.in(near, "ip", "link", "add", "name", "eth", "type", "veth", "peer", "name", "eth", "netns", n.tag+far)}
	for _, name := range n.made {
		steps = append(steps,
			n.in(name, "ip", "link", "set", "dev", "lo", "up"),
			n.in(name, "ip", "addr", "add", addresses[name]+"/24", "dev", "eth"),
			n.in(name, "ip", "link", "set", "dev", "eth", "up"),
			n.in(name, "tc", "qdisc", "replace", "dev", "eth", "root", "tbf", "rate", linkRate, "burst", "128kb", "latency", "50ms"))
	}
	for _, s := range steps {
		if err := n.run(ctx, s[0], s[1:]...); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *network) run(ctx context.Context, name string, args ...string) error {
	_, _, err := n.commands.Run(ctx, nil, name, args...)
	return err
}

// in gives a command line that runs in the network of a namespace and in the mounts of all.
func (n *network) in(name string, args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + n.tag + name}, args...)
}

func (n *network) close() error {
	if n == nil {
		return nil
	}
	var errs []error
	for _, name := range n.made {
		errs = append(errs, n.run(context.Background(), "ip", "netns", "del", n.tag+name))
	}
	return errors.Join(errs...)
}
