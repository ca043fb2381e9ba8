package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/image/plan"
	"github.com/sealdisk/sealdisk/internal/daemon"
)

func peerCommand() *cli.Command {
	return &cli.Command{
		Name:  "peer",
		Usage: "say which other hosts there are and what they may do",
		Subcommands: []*cli.Command{
			{
				Name: "ls", Usage: "show this host's fingerprint and the peers that it knows",
				Description: "Example: sealdisk peer ls --json", Action: listPeers,
			},
			{
				Name: "add", Usage: "make another host known by the fingerprint of its key", ArgsUsage: "NAME [ADDRESS:PORT] FINGERPRINT",
				Description: `The fingerprint is what sealdisk peer ls shows there. Each host has to add the other. A new
peer may do nothing until it is allowed to. One without an address calls and is not called.
A running daemon knows it at once.

Example: sealdisk peer add backup backup.example:7443 SHA256:…`,
				Action: addPeer,
			},
			{
				Name: "rm", Usage: "forget a peer", ArgsUsage: "NAME",
				Description:  "What it got so far it keeps.\n\nExample: sealdisk peer rm backup",
				BashComplete: completePeers,
				Action: func(c *cli.Context) error {
					a, err := args(c, 1, 1)
					if err != nil {
						return err
					}
					return envOf(c).call(c, daemon.OpPeerRemove, daemon.NameRequest{Name: a[0]}, nil, nil)
				},
			},
			{
				Name: "allow", Usage: "say what a peer may do", ArgsUsage: "NAME none|replica|host [IMAGE…]",
				Description: `replica  may fetch the sealed images and bring newer states and new images; it gets no keys
host     may become a recipient as well, so that it can open them
none     nothing
Without images it holds for all that have no role of their own.

Example: sealdisk peer allow backup replica
         sealdisk peer allow node2 host debian`,
				Flags: []cli.Flag{
					&cli.IntFlag{Name: "connections", Usage: "at most `N` at a time"},
					&cli.StringFlag{Name: "rate", Usage: "at most `RATE` each way and connection, such as 100mbit"},
					&cli.StringFlag{Name: "stored", Usage: "it may bring `BYTES`, such as 500G"},
				},
				BashComplete: completePeers,
				Action:       allowPeer,
			},
		},
		Action: func(c *cli.Context) error { return usageOf(c, "peer ls, add, rm or allow?") },
	}
}

func listPeers(c *cli.Context) error {
	if _, err := args(c, 0, 0); err != nil {
		return err
	}
	e := envOf(c)
	var list daemon.Peers
	if err := e.call(c, daemon.OpPeers, daemon.Nothing{}, nil, &list); err != nil {
		return err
	}
	return e.print(list, func(w io.Writer) {
		fmt.Fprintf(w, "this host is %s\n", list.Fingerprint)
		if len(list.Peers) == 0 {
			return
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "NAME\tADDRESS\tROLES\tFINGERPRINT")
		for _, p := range list.Peers {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, orDash(p.Address), orDash(rolesText(p.Roles)), p.Fingerprint)
		}
	})
}

func rolesText(roles map[string]string) string {
	var parts []string
	for _, image := range slices.Sorted(maps.Keys(roles)) {
		parts = append(parts, image+"="+roles[image])
	}
	return strings.Join(parts, " ")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func addPeer(c *cli.Context) error {
	a, err := args(c, 2, 3)
	if err != nil {
		return err
	}
	p := daemon.Peer{Name: a[0], Fingerprint: a[len(a)-1]}
	if len(a) == 3 {
		p.Address = a[1]
	}
	return envOf(c).call(c, daemon.OpPeerAdd, p, nil, nil)
}

func allowPeer(c *cli.Context) error {
	a, err := args(c, 2, -1)
	if err != nil {
		return err
	}
	r := daemon.PeerAllowRequest{Name: a[0], Role: a[1], Images: a[2:]}
	if c.IsSet("connections") {
		n := c.Int("connections")
		r.Connections = &n
	}
	if c.IsSet("rate") {
		n, err := parseBandwidth(c.String("rate"))
		if err != nil {
			return err
		}
		r.Rate = &n
	}
	if c.IsSet("stored") {
		n, err := parseSize(c.String("stored"))
		if err != nil {
			return err
		}
		r.Stored = &n
	}
	return envOf(c).call(c, daemon.OpPeerAllow, r, nil, nil)
}

// parseBandwidth reads a rate such as 100mbit and gives bytes per second; "" is 0.
func parseBandwidth(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	bits, err := plan.ParseRate(s)
	if err != nil {
		return 0, usage("%v", err)
	}
	return max(bits/8, 1), nil
}

// completePeers prints the names of the peers.
func completePeers(c *cli.Context) {
	complete(c, func(ask asker) (names []string) {
		var list daemon.Peers
		if ask(daemon.OpPeers, &list) != nil {
			return nil
		}
		for _, p := range list.Peers {
			names = append(names, p.Name)
		}
		return names
	})
}
