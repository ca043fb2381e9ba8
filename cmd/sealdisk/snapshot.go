package main

import (
	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

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
