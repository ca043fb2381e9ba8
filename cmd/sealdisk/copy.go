package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "bring an image from a peer, or up to date with it",
		ArgsUsage: "PEER:NAME[@SNAP][=ID] [AS]",
		Description: `Only sealed objects that are missing here are fetched, snapshots and their removal included. It may
be cut at any time: the same command goes on where it was. The image is read-only here while another
host holds its lease. This host becomes one of its recipients, if the peer allows it, unless --no-keys
makes it a replica: that holds, verifies and serves what it cannot open.
=ID makes sure that it is that image, else its id is remembered from the first time on.
With @SNAP that snapshot alone comes, as an image of its own that this host writes: AS, or NAME-SNAP.

Example: sealdisk pull node1:debian
         sealdisk pull --no-keys --follow node1:debian
         sealdisk pull node1:debian@clean web1`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-keys", Usage: "be a replica"},
			&cli.BoolFlag{Name: "follow", Usage: "stay in step until interrupted"},
			&cli.BoolFlag{Name: "lazy", Usage: "return when it can be used; the daemon that serves or mounts the store brings the rest"},
			&cli.BoolFlag{Name: "no-prefetch", Usage: "with --lazy: do not bring first what a guest needs first"},
			&cli.StringFlag{Name: "bandwidth", Usage: "at most `RATE`, such as 100mbit"},
			&cli.StringSliceFlag{Name: "from", Usage: "ask `PEER` for objects too"},
			&cli.StringFlag{Name: "accept-rollback", Usage: "accept the older state `NAME@SEQ`"},
		},
		BashComplete: completePeers,
		Action:       pull,
	}
}

func pull(c *cli.Context) error {
	a, err := args(c, 1, 2)
	if err != nil {
		return err
	}
	peer, remote, ok := strings.Cut(a[0], ":")
	if !ok || peer == "" || remote == "" {
		return usageOf(c, "%q is not PEER:NAME", a[0])
	}
	remote, id, _ := strings.Cut(remote, "=")
	remote, snapshot, _ := strings.Cut(remote, "@")
	r := daemon.PullRequest{
		Peers: append([]string{peer}, c.StringSlice("from")...), Remote: remote, Snapshot: snapshot, Name: snapshotName(remote, snapshot), ID: id,
		NoKeys: c.Bool("no-keys"), Follow: c.Bool("follow"), Lazy: c.Bool("lazy"), NoPrefetch: c.Bool("no-prefetch"),
	}
	if len(a) == 2 {
		r.Name = a[1]
	}
	if r.Lazy && (r.Follow || r.NoKeys) {
		return usageOf(c, "--lazy goes with neither --follow nor --no-keys")
	}
	if snapshot != "" && (r.Lazy || r.Follow || r.NoKeys || c.IsSet("accept-rollback")) {
		return usageOf(c, "a snapshot comes whole, once, and with its keys")
	}
	if r.Bandwidth, err = parseBandwidth(c.String("bandwidth")); err != nil {
		return err
	}
	if s := c.String("accept-rollback"); s != "" {
		name, seq, _ := strings.Cut(s, "@")
		if r.Rollback, err = strconv.ParseUint(seq, 10, 64); err != nil || name != r.Name || r.Rollback == 0 {
			return usageOf(c, "--accept-rollback %q is not %s@SEQUENCE", s, r.Name)
		}
	}
	e := envOf(c)
	var got daemon.Pulled
	if err := e.call(c, daemon.OpPull, r, nil, &got); err != nil {
		return err
	}
	return e.print(got, func(w io.Writer) { printPulled(w, got) })
}

// snapshotName is what the image of a snapshot is called.
func snapshotName(name, snapshot string) string {
	if snapshot == "" {
		return name
	}
	return name + "-" + snapshot
}

func printPulled(w io.Writer, got daemon.Pulled) {
	if got.Unchanged {
		fmt.Fprintf(w, "%s is up to date at %d.%d.%d\n", got.Name, got.Era, got.Term, got.Seq)
		return
	}
	took := time.Duration(got.Duration)
	fmt.Fprintf(w, "%s is at %d.%d.%d: %s in %d objects came, %s over the network, in %v\nid %s\n", got.Name, got.Era, got.Term, got.Seq,
		bytesText(got.Bytes), got.Objects, bytesText(got.Wire), took.Round(time.Millisecond), got.ID)
	if got.NoKeys {
		fmt.Fprintln(w, "this host has no keys of it")
	}
}

func fillCommand() *cli.Command {
	return &cli.Command{
		Name:      "fill",
		Usage:     "bring the rest of an image that was pulled lazily",
		ArgsUsage: "NAME",
		Description: `The daemon does so by itself in the background; this waits for it, or does it if none runs.

Example: sealdisk fill --wait debian`,
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "wait", Usage: "return when the image is whole"}},
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 1, 1)
			if err != nil {
				return err
			}
			return envOf(c).call(c, daemon.OpFill, daemon.FillRequest{Name: a[0], Wait: c.Bool("wait")}, nil, nil)
		},
	}
}

func bandwidthCommand() *cli.Command {
	return &cli.Command{
		Name:      "bandwidth",
		Usage:     "bound the pulls and pushes of an image that run",
		ArgsUsage: "NAME RATE|none",
		Description: `Holds until they end. What --bandwidth said before is replaced.

Example: sealdisk bandwidth debian 50mbit`,
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 2, 2)
			if err != nil {
				return err
			}
			r := daemon.BandwidthRequest{Name: a[0]}
			if a[1] != "none" {
				if r.Rate, err = parseBandwidth(a[1]); err != nil {
					return err
				}
			}
			return envOf(c).call(c, daemon.OpBandwidth, r, nil, nil)
		},
	}
}

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "bring an image to a peer, or that up to date",
		ArgsUsage: "NAME[@SNAP] PEER",
		Description: `Has the peer pull it over a connection that this host makes. The peer must be allowed to have the image
here, and this host to bring it there. The peer gets keys only if it may be a host for the image.
With @SNAP that snapshot alone is brought, as an image NAME-SNAP that the peer writes; it must be a host.

Example: sealdisk push debian backup`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Usage: "keep it in step until interrupted"},
			&cli.StringFlag{Name: "bandwidth", Usage: "at most `RATE`, such as 100mbit"},
		},
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 2, 2)
			if err != nil {
				return err
			}
			e := envOf(c)
			name, snapshot, _ := strings.Cut(a[0], "@")
			r := daemon.PushRequest{Name: name, Snapshot: snapshot, As: snapshotName(name, snapshot), Peer: a[1], Follow: c.Bool("follow")}
			if snapshot != "" && r.Follow {
				return usageOf(c, "a snapshot does not change: nothing to follow")
			}
			if r.Bandwidth, err = parseBandwidth(c.String("bandwidth")); err != nil {
				return err
			}
			var sent daemon.Pushed
			if err := e.call(c, daemon.OpPush, r, nil, &sent); err != nil {
				return err
			}
			return e.print(sent, func(w io.Writer) {
				fmt.Fprintf(w, "%s is there: %s went over the network, in %v\n", sent.Name, bytesText(sent.Wire), time.Duration(sent.Duration).Round(time.Millisecond))
			})
		},
	}
}
