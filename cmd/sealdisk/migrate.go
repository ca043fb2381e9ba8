package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

func migrateCommand() *cli.Command {
	return &cli.Command{
		Name:      "migrate",
		Usage:     "hand images over to a peer while a guest uses them",
		ArgsUsage: "NAME… PEER",
		Description: `Copies what the peer lacks, round by round, while the guest writes; then arms the handover: as soon
as nobody here has one of the images open for writing, the peer may have their leases, which it asks
for when they are opened for writing there. So whatever moves the guest (libvirt, a script) moves
its disks. With --qmp it moves the guest too: its memory goes through the same authenticated
connection. The QEMU there must have been started with -incoming defer and the same disks from the
peer's mount, and sealdisk serve --guests names the folder of its QMP socket.
It copies round by round until a round is short, or does not get shorter. The last round, for which the
guest stands still, takes a second at most: what is missing then comes while the guest runs at the peer.
If the link is too slow for the guest's memory beside its disks, the disks wait.
With --pre-copy all has to come within --handover-timeout, or the guest stays where it is (with --qmp),
or waits there until all has come.
Until the handover Ctrl-C leaves everything as it was. When all is there this host's copy is removed,
unless something here still has it open or --keep is given: then it stays, read-only, and what goes back
later is only what has changed. On standard error it says which phase begins and how each round went:
bytes, their rate, the rate at which the guest writes, and how long the guest would stand still for its
disks were they handed over now; with --json as lines of JSON. The report has the times of the phases
and of the rounds; "sealing" is segmentation and sealing together, the rest of a round transmission, and
opening and collation take place at the peer, in handover and fill.

Example: sealdisk migrate web1 node2
         sealdisk migrate --qmp /run/web1.qmp web1 node2`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "qmp", Usage: "move the guest whose monitor is `SOCKET`"},
			&cli.StringFlag{Name: "peer-qmp", Usage: "`NAME` of the monitor there, in the peer's --guests folder (default: that of --qmp)"},
			&cli.BoolFlag{Name: "lazy", Usage: "hand over once the map is there; the data follows"},
			&cli.BoolFlag{Name: "pre-copy", Usage: "hand over once all is there, and not before"},
			&cli.BoolFlag{Name: "keep", Usage: "keep this host's copy"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only find what would keep it from being done"},
			&cli.StringFlag{Name: "bandwidth", Usage: "at most `RATE`, such as 500mbit"},
			&cli.DurationFlag{Name: "max-downtime", Usage: "with --qmp: what QEMU aims at (default: its own)"},
			&cli.DurationFlag{Name: "handover-timeout", Usage: "how long the last close of an image may wait for the peer", Value: 5 * time.Second},
		},
		BashComplete: completeImages,
		Action:       migrate,
	}
}

func migrate(c *cli.Context) error {
	a, err := args(c, 2, 64)
	if err != nil {
		return err
	}
	r := daemon.MigrateRequest{
		Names: a[:len(a)-1], Peer: a[len(a)-1], PeerQMP: c.String("peer-qmp"), Lazy: c.Bool("lazy"), PreCopy: c.Bool("pre-copy"), DryRun: c.Bool("dry-run"), Keep: c.Bool("keep"),
		MaxDowntime: int64(c.Duration("max-downtime")), Timeout: int64(c.Duration("handover-timeout")),
	}
	if r.Lazy && r.PreCopy {
		return usageOf(c, "--lazy and --pre-copy exclude each other")
	}
	if r.Bandwidth, err = parseBandwidth(c.String("bandwidth")); err != nil {
		return err
	}
	if socket := c.String("qmp"); socket != "" {
		if r.QMP, err = filepath.Abs(socket); err != nil {
			return err
		}
		if r.PeerQMP == "" {
			r.PeerQMP = filepath.Base(socket)
		}
	} else if r.PeerQMP != "" || r.MaxDowntime != 0 {
		return usageOf(c, "--peer-qmp and --max-downtime go with --qmp")
	}
	e := envOf(c)
	var got daemon.Migrated
	if err := e.call(c, daemon.OpMigrate, r, nil, &got); err != nil {
		return err
	}
	return e.print(got, func(w io.Writer) {
		if r.DryRun {
			fmt.Fprintln(w, "nothing keeps it from being done")
			return
		}
		printMigrated(w, got)
	})
}

func printMigrated(w io.Writer, got daemon.Migrated) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	ms := func(ns int64) time.Duration { return time.Duration(ns).Round(100 * time.Microsecond) }
	for _, p := range got.Phases {
		row(p.Phase, "%v", ms(p.Duration))
	}
	for i, r := range got.Rounds {
		row(fmt.Sprintf("round %d", i+1), "%s in %v, of it %v for sealing", bytesText(r.Bytes), ms(r.Duration), ms(r.Sealing))
	}
	row("last close", "waited %v", ms(got.Offer))
	if g := got.Guest; g != nil {
		row("downtime", "%v as QEMU counts it, of it %v for the disks before they were given up", ms(g.Downtime), ms(g.Paused))
		row("memory", "%s in %v", bytesText(g.Memory), ms(g.Duration))
	}
	row("disks", "%s over the network", bytesText(got.Wire))
	row("in all", "%v", ms(got.Duration))
	if len(got.Freed) > 0 {
		row("freed here", "%s", strings.Join(got.Freed, " "))
	}
}

// stageStep is every how many rounds a line says how they go, where there may be many.
const stageStep = 10

// stage says where a migration stands.
func (e *env) stage(s *daemon.StageEvent) {
	rates := fmt.Sprintf("%s/s; the guest writes %s/s", bytesText(s.Rate), bytesText(s.Dirty))
	took := time.Duration(s.Duration).Round(time.Millisecond)
	would := time.Duration(s.Downtime).Round(time.Millisecond)
	switch {
	case s.Round == 0:
		e.say("%s", s.Phase)
	case s.Phase != "copy" && (s.Round%stageStep != 1 || s.Bytes == 0):
	case s.Duration == 0: // memory: QEMU counts it
		e.say("%s: %s, %s; QEMU expects a downtime of %v", s.Phase, bytesText(s.Bytes), rates, would)
	default:
		e.say("%s, round %d: %s in %v, %s; a handover now would take about %v", s.Phase, s.Round, bytesText(s.Bytes), took, rates, would)
	}
}

func leaseCommand() *cli.Command {
	return &cli.Command{
		Name:  "lease",
		Usage: "say who may write an image",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "show who has written an image", ArgsUsage: "NAME",
				Description: "The last one may write it now.\n\nExample: sealdisk lease show web1", BashComplete: completeImages,
				Action: func(c *cli.Context) error {
					a, err := args(c, 1, 1)
					if err != nil {
						return err
					}
					e := envOf(c)
					var got daemon.Leases
					if err := e.call(c, daemon.OpLease, daemon.NameRequest{Name: a[0]}, nil, &got); err != nil {
						return err
					}
					return e.print(got, func(w io.Writer) { printLeases(w, got) })
				},
			},
			{
				Name: "take", Usage: "write an image here whose holder is lost", ArgsUsage: "NAME --force",
				Description: `For when the host that may write the image does not come back, or cannot give it. The image goes on
from the state that is here: what the other host has written since is not in it. Should that host
come back, it keeps what it wrote as an image of its own, NAME-fork-ERA.TERM. If it still runs a
guest on the image the two drift apart until then. It takes an admin's identity.

Example: sealdisk lease take --force web1`,
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "force", Usage: "do it"},
					&cli.StringFlag{Name: "identity", Usage: "`FILE` with an admin's identity, if this host is none"},
				},
				BashComplete: completeImages, Action: takeLease,
			},
		},
	}
}

func takeLease(c *cli.Context) error {
	a, err := args(c, 1, 1)
	if err != nil {
		return err
	}
	if !c.Bool("force") {
		return usageOf(c, "without --force ask for it: open the image for writing here, and its holder gives it")
	}
	r := daemon.TakeLeaseRequest{Name: a[0]}
	if file := c.String("identity"); file != "" {
		if r.Identity, err = filepath.Abs(file); err != nil {
			return err
		}
	}
	e := envOf(c)
	var got daemon.Leases
	if err := e.call(c, daemon.OpTakeLease, r, nil, &got); err != nil {
		return err
	}
	return e.print(got, func(w io.Writer) { printLeases(w, got) })
}

func printLeases(w io.Writer, got daemon.Leases) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "TERM\tHOLDER\tBEGAN AT COMMIT")
	for _, l := range got.Terms {
		holder := l.HolderName
		if holder == "" {
			holder = l.Holder
		}
		last := l.Last
		if last == "" {
			last = "-"
		}
		fmt.Fprintf(t, "%d.%d\t%s\t%s\n", l.Era, l.Term, holder, last)
	}
}
