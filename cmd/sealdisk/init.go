package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

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
	o := daemon.InitOptions{Options: e.options(c), Host: daemon.HostOptions{Admins: c.StringSlice("admin")}, Recover: c.Bool("recover")}
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
