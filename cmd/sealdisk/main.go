package main

import (
	"context"
	"os"
	"os/signal"

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
