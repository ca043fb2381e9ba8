package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

func main() {
	daemon.Harden()
	os.Exit(run(os.Args))
}

// run is the whole program; it gives the exit status. The first SIGINT or
// SIGTERM ends what runs in order, the second ends the process.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	app := newApp()
	return report(app, app.RunContext(ctx, arrange(app, args)))
}

// exits is the exit status of each kind of failure. A status is never reused.
var exits = []struct {
	code   daemon.Code
	status int
	text   string
}{
	{"", 0, "done"},
	{daemon.CodeInternal, 1, "an error that has no status of its own"},
	{daemon.CodeUsage, 2, "the command line, a name or a value is wrong"},
	{daemon.CodeNotFound, 3, "no such store, image, snapshot, recipient or folder"},
	{daemon.CodeExists, 4, "the name, the file or the store exists already"},
	{daemon.CodeInUse, 5, "the store, the image, the source or the mount point is in use"},
	{daemon.CodeNoKey, 6, "no identity, none that opens the image, or a wrong passphrase"},
	{daemon.CodeCorrupt, 7, "something stored is damaged or missing; verify found faults"},
	{daemon.CodeFormat, 8, "the store has a format that this program does not know"},
	{daemon.CodeNoSpace, 9, "no space left"},
	{daemon.CodeSource, 10, "the source cannot be read, has shrunk, or is of a kind that is not read"},
	{daemon.CodeLease, 11, "the image may be written elsewhere only"},
	{daemon.CodeRolledBack, 12, "the store or an image is older than what this host has seen, or has two histories"},
	{daemon.CodePermission, 13, "the operating system does not allow it"},
	{daemon.CodePeer, 14, "a peer cannot be reached, is not the one that was pinned, or refuses"},
	{daemon.CodeInterrupted, 130, "interrupted"},
}

func statusOf(code daemon.Code) int {
	for _, e := range exits {
		if e.code == code {
			return e.status
		}
	}
	return 1
}

// exitHelp is the part of the help that lists the exit statuses.
func exitHelp() string {
	var b strings.Builder
	b.WriteString("\nEXIT STATUS:\n")
	for _, e := range exits {
		fmt.Fprintf(&b, "   %-3d  %s\n", e.status, e.text)
	}
	return b.String()
}

// report prints why a command failed and gives its exit status.
func report(app *cli.App, err error) int {
	e, _ := app.Metadata[envKey].(*env)
	if err == nil && e != nil {
		err = e.failed
	}
	if err == nil {
		return 0
	}
	failure := daemon.AsError(err)
	fmt.Fprintf(app.ErrWriter, "sealdisk: %s\n", failure.Message)
	if failure.Hint != "" {
		fmt.Fprintf(app.ErrWriter, "hint: %s\n", failure.Hint)
	}
	return statusOf(failure.Code)
}

func usage(format string, args ...any) error {
	return &daemon.Error{Code: daemon.CodeUsage, Message: fmt.Sprintf(format, args...), Hint: "sealdisk help lists the commands"}
}

func usageOf(c *cli.Context, format string, args ...any) error {
	return &daemon.Error{Code: daemon.CodeUsage, Message: fmt.Sprintf(format, args...), Hint: c.Command.HelpName + " --help says how it is used"}
}

// usageError takes what the flag parser says.
func usageError(c *cli.Context, err error, _ bool) error {
	var e *daemon.Error
	if errors.As(err, &e) {
		return err
	}
	return usageOf(c, "%s", strings.TrimPrefix(err.Error(), "flag provided but not defined: "+"")) // the parser's words
}
