package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

func recipientsCommand() *cli.Command {
	return &cli.Command{
		Name:  "recipients",
		Usage: "list or change who can open an image",
		Subcommands: []*cli.Command{
			{
				Name: "ls", Usage: "list the recipients of an image", ArgsUsage: "NAME",
				Description:  "Example: sealdisk recipients ls debian",
				BashComplete: completeImages, Action: recipientsAction(0),
			},
			{
				Name: "add", Usage: "let others open an image", ArgsUsage: "NAME RECIPIENT…",
				Description: "No data is sealed again: the keys are sealed to the new recipients too.\n\nExample: sealdisk recipients add debian age1pq1…",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "allow-classic", Usage: "accept recipients that are not post-quantum"},
					&cli.StringFlag{Name: "recipients-file", Aliases: []string{"R"}, Usage: "`FILE` of recipients, one a line"},
				},
				BashComplete: completeImages, Action: recipientsAction(+1),
			},
			{
				Name: "rm", Usage: "shut recipients out of what is written from now on", ArgsUsage: "NAME RECIPIENT|FINGERPRINT…",
				Description: `A new epoch begins. What a former recipient could read so far it can still read, if it
has a copy of it.

Example: sealdisk recipients rm debian 3f0c1a2b4d5e6f70`,
				BashComplete: completeImages, Action: recipientsAction(-1),
			},
		},
		Action: func(c *cli.Context) error { return usageOf(c, "recipients ls, add or rm?") },
	}
}

// recipientsAction lists (0), adds (1) or removes (−1).
func recipientsAction(change int) cli.ActionFunc {
	return func(c *cli.Context) error {
		least, most := 1, -1
		if change == 0 {
			most = 1
		} else if c.String("recipients-file") == "" {
			least = 2
		}
		a, err := args(c, least, most)
		if err != nil {
			return err
		}
		r := daemon.RecipientsRequest{Name: a[0], AllowClassic: c.Bool("allow-classic")}
		switch change {
		case 1:
			if r.Add, err = recipientsOf(a[1:], c.String("recipients-file")); err != nil {
				return err
			}
		case -1:
			r.Remove = a[1:]
		}
		e := envOf(c)
		var list []daemon.Recipient
		if err := e.call(c, daemon.OpRecipients, r, nil, &list); err != nil {
			return err
		}
		if change != 0 && !e.json {
			return nil
		}
		return e.print(list, func(w io.Writer) { printRecipients(w, list) })
	}
}

func printRecipients(w io.Writer, list []daemon.Recipient) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "FINGERPRINT\tCLASS\tHOST\tRECIPIENT")
	for _, r := range list {
		host := "-"
		if r.ThisHost {
			host = "this"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Fingerprint, r.Class, host, shortRecipient(r.Recipient))
	}
}

// shortRecipient cuts a recipient, of which a hybrid one has 1,959 characters,
// to what people compare.
func shortRecipient(r string) string {
	const most = 60
	if len(r) <= most {
		return r
	}
	return r[:most-1] + "…"
}
