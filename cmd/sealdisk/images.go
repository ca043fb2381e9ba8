package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
	"github.com/sealdisk/sealdisk/internal/picture"
)

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:        "ls",
		Usage:       "list the images of the store",
		Description: "Example: sealdisk ls --json",
		Action: func(c *cli.Context) error {
			if _, err := args(c, 0, 0); err != nil {
				return err
			}
			e := envOf(c)
			var list []daemon.Listed
			if err := e.call(c, daemon.OpList, daemon.Nothing{}, nil, &list); err != nil {
				return err
			}
			return e.print(list, func(w io.Writer) { printList(w, list) })
		},
	}
}

func printList(w io.Writer, list []daemon.Listed) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "NAME\tSIZE\tALLOCATED\tCHANGED\tSNAPSHOTS\tSTATE")
	for _, l := range list {
		state := "-"
		if l.InUse {
			state = "in use"
		}
		if l.NoKeys {
			l.Error = "replica without keys"
		}
		if l.Error != "" {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\t%s\n", l.Name, l.Error)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", l.Name, bytesText(l.Size), bytesText(l.Allocated), timeText(l.Time), len(l.Snapshots), state)
	}
}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:         "info",
		Usage:        "describe an image or a snapshot",
		ArgsUsage:    "NAME[@SNAP]",
		Description:  "Example: sealdisk info debian --json",
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 1, 1)
			if err != nil {
				return err
			}
			e := envOf(c)
			var in daemon.Info
			if err := e.call(c, daemon.OpInfo, daemon.NameRequest{Name: a[0]}, nil, &in); err != nil {
				return err
			}
			return e.print(in, func(w io.Writer) { printInfo(w, in) })
		},
	}
}

func printInfo(w io.Writer, in daemon.Info) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	row("name", "%s", in.Name)
	row("id", "%s", in.ID)
	if in.NoKeys {
		row("keys", "none: a replica")
		row("stored", "%s", bytesText(in.Stored))
		row("commit", "%d of term %d.%d", in.Commit.Seq, in.Commit.Era, in.Commit.Term)
		row("epochs", "%d", in.Epochs)
		row("snapshots", "%d", len(in.Snapshots))
		printWhose(row, in)
		return
	}
	row("size", "%s (%d bytes)", bytesText(in.Size), in.Size)
	row("allocated", "%s", bytesText(in.Allocated))
	row("stored", "%s in %d objects, %s", bytesText(in.Stored), in.Objects, in.Compression)
	if in.Uncommitted > 0 {
		row("uncommitted", "%s", bytesText(in.Uncommitted))
	}
	row("block size", "%s", bytesText(in.BlockSize))
	row("segments", "%d planned, %d merged, %d left, %.1f %% fewer", in.Segments.Planned, in.Segments.Merged, in.Segments.Count, in.Segments.ReductionPercent)
	row("commit", "%d of term %d.%d, %s", in.Commit.Seq, in.Commit.Era, in.Commit.Term, timeText(in.Commit.Time))
	row("epochs", "%d", in.Epochs)
	for _, r := range in.Recipients {
		row("recipient", "%s", shortRecipient(r))
	}
	row("weakest", "%s", in.Weakest)
	for _, s := range in.Snapshots {
		row("snapshot", "%s, %s", s.Name, timeText(s.Time))
	}
	if p := in.Parent; p != nil {
		name := p.Name
		if name == "" {
			name = p.ID
		}
		row("parent", "%s", name)
	}
	printWhose(row, in)
}

func printWhose(row func(name, format string, args ...any), in daemon.Info) {
	holder := in.HolderName
	if holder == "" {
		holder = in.Holder
	}
	row("written by", "%s", holder)
	if m := in.Missing; m != nil {
		how := "not known yet how much"
		if m.Total > 0 {
			how = bytesText(m.Came) + " of " + bytesText(m.Total) + " came"
		}
		row("missing", "%s, from %s", how, strings.Join(m.Sources, ", "))
	}
	if in.Origin != "" {
		row("came from", "%s", in.Origin)
	}
}

func depsCommand() *cli.Command {
	return &cli.Command{
		Name:      "deps",
		Usage:     "show what of an image is needed together, and in which order",
		ArgsUsage: "NAME[@SNAP]",
		Description: `The start-up list is recorded while a guest boots from the mounted image; a host that pulls the image
lazily brings it first. With --dot or --svg as a picture.

Example: sealdisk deps debian --svg >debian.svg`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dot", Usage: "print a graph for Graphviz"},
			&cli.BoolFlag{Name: "svg", Usage: "print a drawing: when which part of the disk was needed"},
		},
		BashComplete: completeImages,
		Action:       deps,
	}
}

func deps(c *cli.Context) error {
	a, err := args(c, 1, 1)
	if err != nil {
		return err
	}
	e := envOf(c)
	var d daemon.Deps
	if err := e.call(c, daemon.OpDeps, daemon.NameRequest{Name: a[0]}, nil, &d); err != nil {
		return err
	}
	s := picture.Startup{Name: d.Name, Size: d.Size, Ranges: d.Startup}
	if p := d.Parent; p != nil {
		if s.Parent = p.Name; s.Parent == "" {
			s.Parent = p.ID
		}
	}
	switch {
	case c.Bool("dot"):
		return s.Dot(e.out)
	case c.Bool("svg"):
		return s.SVG(e.out)
	}
	return e.print(d, func(w io.Writer) { printDeps(w, s) })
}

func printDeps(w io.Writer, s picture.Startup) {
	if s.Parent != "" {
		fmt.Fprintf(w, "descends from %s\n", s.Parent)
	}
	bursts := s.Bursts()
	if len(bursts) == 0 {
		fmt.Fprintln(w, "no start-up list: no guest has booted from it yet")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer t.Flush()
	fmt.Fprintln(t, "BURST\tFROM\tTO\tRANGES\tBYTES\t")
	for _, b := range bursts {
		fmt.Fprintf(t, "%d\t%.1f s\t%.1f s\t%d\t%s\t\n", b.Number, float64(b.From)/1000, float64(b.To)/1000, len(b.Ranges), bytesText(b.Bytes))
	}
}

func rmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove an image or a snapshot",
		ArgsUsage: "NAME[@SNAP]",
		Description: `Refused while the image is in use, and without --force for an image that has
snapshots or does not open. Clones keep what they share. sealdisk gc gives the space back.

Example: sealdisk rm debian@monday`,
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "remove the image's snapshots too, or an image that does not open"}},
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 1, 1)
			if err != nil {
				return err
			}
			return envOf(c).call(c, daemon.OpRemove, daemon.NameRequest{Name: a[0], Force: c.Bool("force")}, nil, nil)
		},
	}
}

func renameCommand() *cli.Command {
	return &cli.Command{
		Name:         "rename",
		Usage:        "give an image another name",
		ArgsUsage:    "NAME NEW",
		Description:  "Open files of a mount go on working under the new name.\n\nExample: sealdisk rename debian debian12",
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 2, 2)
			if err != nil {
				return err
			}
			return envOf(c).call(c, daemon.OpRename, daemon.NewNameRequest{Name: a[0], New: a[1]}, nil, nil)
		},
	}
}

func resizeCommand() *cli.Command {
	return &cli.Command{
		Name:         "resize",
		Usage:        "make a disk larger",
		ArgsUsage:    "NAME SIZE",
		Description:  "SIZE is in bytes or with K, M, G, T; +SIZE grows by that much. A disk never shrinks.\n\nExample: sealdisk resize debian 20G",
		BashComplete: completeImages,
		Action:       resize,
	}
}

func resize(c *cli.Context) error {
	a, err := args(c, 2, 2)
	if err != nil {
		return err
	}
	e, text := envOf(c), a[1]
	relative := text != "" && text[0] == '+'
	if relative {
		text = text[1:]
	}
	size, err := parseSize(text)
	if err != nil {
		return err
	}
	if relative {
		var in daemon.Info
		if err := e.call(c, daemon.OpInfo, daemon.NameRequest{Name: a[0]}, nil, &in); err != nil {
			return err
		}
		size += in.Size
	}
	return e.call(c, daemon.OpResize, daemon.ResizeRequest{Name: a[0], Size: size}, nil, nil)
}

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name:      "snapshot",
		Usage:     "keep the present state of an image under a name",
		ArgsUsage: "NAME@SNAP",
		Description: `Works while a guest runs: the snapshot is what a power cut at that moment would leave.
Mounts show it, read-only, as NAME@SNAP.

Example: sealdisk snapshot debian@monday`,
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 1, 1)
			if err != nil {
				return err
			}
			return envOf(c).call(c, daemon.OpSnapshot, daemon.NameRequest{Name: a[0]}, nil, nil)
		},
	}
}

func cloneCommand() *cli.Command {
	return &cli.Command{
		Name:      "clone",
		Usage:     "make an image that starts as a copy of another",
		ArgsUsage: "NAME[@SNAP] NEW",
		Description: `Takes no time and no space: both share what neither has changed. The clone has the
recipients of the image that it was made from.

Example: sealdisk clone debian@monday web1`,
		BashComplete: completeImages,
		Action: func(c *cli.Context) error {
			a, err := args(c, 2, 2)
			if err != nil {
				return err
			}
			return envOf(c).call(c, daemon.OpClone, daemon.NewNameRequest{Name: a[0], New: a[1]}, nil, nil)
		},
	}
}
