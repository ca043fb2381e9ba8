package measure

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit statuses of a program that measures.
const (
	statusFailed      = 1
	statusUsage       = 2
	statusInterrupted = 130
)

// Main is a whole program of that name: it parses the arguments, runs, says on stderr what went wrong,
// and gives the exit status. SIGINT, SIGTERM and SIGHUP end ctx, so that run takes down what it made.
func Main[O any](name string, args []string, parse func(args []string) (O, error), run func(ctx context.Context, o O) error) int {
	o, err := parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return statusUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		if ctx.Err() != nil {
			return statusInterrupted
		}
		return statusFailed
	}
	return 0
}
