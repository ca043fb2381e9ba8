package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
	"github.com/sealdisk/sealdisk/internal/home"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "check one image or the whole store",
		ArgsUsage: "[NAME]",
		Description: `Checks every object, map and signature and opens every frame of the image and of its
snapshots. --no-keys opens nothing and needs no identity, so that a replica can do it.
Each fault is a line: image, byte range of the disk, object, cause.

Example: sealdisk verify debian`,
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "no-keys", Usage: "check what can be checked without any key"}},
		BashComplete: completeImages,
		Action:       verify,
	}
}

// verified is what verify prints as JSON.
type verified struct {
	daemon.Verified
	List []daemon.FaultEvent `json:"list"`
}

func verify(c *cli.Context) (err error) {
	a, err := args(c, 0, 1)
	if err != nil {
		return err
	}
	e := envOf(c)
	r := daemon.VerifyRequest{NoKeys: c.Bool("no-keys")}
	if len(a) == 1 {
		r.Name = a[0]
	}
	conn, err := daemon.Connect(c.Context, e.options(c))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	res := verified{List: []daemon.FaultEvent{}}
	err = conn.Call(c.Context, daemon.OpVerify, r, nil, &res.Verified, func(ev daemon.Event) {
		if ev.Fault == nil {
			e.show(ev)
			return
		}
		e.endProgress()
		if e.json {
			res.List = append(res.List, *ev.Fault)
		} else {
			fmt.Fprintln(e.out, faultText(*ev.Fault))
		}
	})
	e.endProgress()
	if err != nil {
		return err
	}
	if err := e.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%d images, %d faults\n", len(res.Images), res.Faults)
	}); err != nil {
		return err
	}
	if res.Faults > 0 {
		return &daemon.Error{Code: daemon.CodeCorrupt, Message: fmt.Sprintf("%d faults found", res.Faults), Hint: "restore from a replica or a copy; a snapshot may be whole"}
	}
	return nil
}

func faultText(f daemon.FaultEvent) string {
	var b strings.Builder
	b.WriteString(f.Image)
	if f.Snapshot != "" {
		b.WriteString("@" + f.Snapshot)
	}
	if f.Length > 0 {
		fmt.Fprintf(&b, " bytes %d-%d", f.Offset, f.Offset+f.Length-1)
	}
	if f.Object != "" {
		b.WriteString(" " + f.Object)
	}
	return b.String() + ": " + f.Cause
}

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:        "gc",
		Usage:       "free what removed images and snapshots held",
		Description: "Waits for running imports. Mounted images stay in use meanwhile.\n\nExample: sealdisk gc",
		Action: func(c *cli.Context) error {
			if _, err := args(c, 0, 0); err != nil {
				return err
			}
			e := envOf(c)
			var done daemon.Collected
			if err := e.call(c, daemon.OpCollect, daemon.Nothing{}, nil, &done); err != nil {
				return err
			}
			return e.print(done, func(w io.Writer) {
				fmt.Fprintf(w, "freed %s: %d objects, %d unfinished images; %s of files hold %s, %s\n", bytesText(done.Freed), done.Objects, done.Orphans,
					bytesText(done.FileSize), bytesText(done.Live), time.Duration(done.Duration).Round(time.Millisecond))
			})
		},
	}
}

func statsCommand() *cli.Command {
	return &cli.Command{
		Name:        "stats",
		Usage:       "describe the store",
		Description: "Example: sealdisk stats --json",
		Action: func(c *cli.Context) error {
			if _, err := args(c, 0, 0); err != nil {
				return err
			}
			e := envOf(c)
			var s daemon.Stats
			if err := e.call(c, daemon.OpStats, daemon.Nothing{}, nil, &s); err != nil {
				return err
			}
			return e.print(s, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				defer t.Flush()
				fmt.Fprintf(t, "store\t%s\nid\t%s\nimages\t%d\nobjects\t%d\n", s.Store, s.ID, s.Images, s.Objects)
				fmt.Fprintf(t, "live\t%s\ndead\t%s\nfiles\t%s\n", bytesText(s.Live), bytesText(s.Dead), bytesText(s.Files))
				fmt.Fprintf(t, "available\t%s of %s\nprocess\t%d\n", bytesText(s.Available), bytesText(s.Total), s.PID)
				for _, m := range s.Mounts {
					fmt.Fprintf(t, "mounted\t%s\n", m)
				}
			})
		},
	}
}

func initCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make a store and, if there is none yet, this host's identity",
		Description: `Prints the host's recipient, to which every image is sealed, and the fingerprint of
its host key. Keep a copy of the identity elsewhere: without it nothing can be opened.
--admin names a recipient that holds the signing keys of new images too; one on another
machine lets images be recovered when this host is lost. It may be given again later by
writing it into the file "admins" of the host directory.
An identity that is in the host directory already, also one of an age plugin, is used.

Example: sealdisk init --admin age1pq1…`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "admin", Usage: "`RECIPIENT` that holds the image keys beside this host"},
			&cli.BoolFlag{Name: "passphrase", Usage: "seal the new identity file with a passphrase, which is asked for"},
			&cli.BoolFlag{Name: "recover", Usage: "make the lost catalogue of an existing store anew from its images"},
		},
		Action: initStore,
	}
}

func initStore(c *cli.Context) error {
	if _, err := args(c, 0, 0); err != nil {
		return err
	}
	e := envOf(c)
	o := daemon.InitOptions{Options: e.options(c), Host: home.Options{Admins: c.StringSlice("admin")}, Recover: c.Bool("recover")}
	if c.Bool("passphrase") {
		pass, err := e.prompt().Ask("passphrase of the new identity file")
		if err != nil {
			return err
		}
		if pass == "" {
			return usageOf(c, "an empty passphrase seals nothing")
		}
		o.Host.Passphrase = pass
	}
	done, err := daemon.Init(c.Context, o)
	if err != nil {
		return err
	}
	if done.SharedDisk {
		e.say("the store lies on the root file system: when one is full so is the other")
	}
	if !done.AdminElsewhere {
		e.say("this host alone holds the image keys; an admin recipient elsewhere (init --admin) lets images be recovered without it")
	}
	for _, id := range done.Lost {
		e.say("image %s could not be opened", id)
	}
	return e.print(done, func(w io.Writer) {
		fmt.Fprintf(w, "store        %s\nhome         %s\n", done.Store, done.Home)
		for _, r := range done.Recipients {
			fmt.Fprintf(w, "recipient    %s\n", r)
		}
		fmt.Fprintf(w, "fingerprint  %s\n", done.Fingerprint)
		if len(done.Recovered) > 0 {
			fmt.Fprintf(w, "recovered    %s\n", strings.Join(done.Recovered, " "))
		}
	})
}
