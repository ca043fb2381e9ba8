package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
)

type options struct {
	rounds   int
	share    float64 // of a third of the virtual size, that the large images hold
	out, tmp string
}

func main() { os.Exit(measure.Main("paper", os.Args[1:], parse, run)) }

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("paper", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "`N` rounds with the images in MB")
	flags.Float64Var(&o.share, "share", 0.04, "`PART` of a third that the images in GB hold: 1 is all of it, 25 times the default, and asks for 81 GiB of room; 0 leaves them out")
	flags.StringVar(&o.out, "out", "docs/evaluation.md", "`FILE` of the page; its plots go into a folder beside it")
	flags.StringVar(&o.tmp, "tmp", os.TempDir(), "`DIR` in which the work is done")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.rounds < 1 || o.rounds > 100:
		return o, fmt.Errorf("%d rounds", o.rounds)
	case !(o.share >= 0 && o.share <= 1):
		return o, fmt.Errorf("share %v is not between 0 and 1", o.share)
	}
	return o, nil
}

// run measures, cleans up, and then writes the page.
func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("must be root: it makes network namespaces and loop devices")
	}
	began := time.Now()
	e, err := begin(ctx, o)
	if err == nil {
		err = e.measure(ctx)
		e.facts(ctx, began)
	}
	if end := e.close(); err == nil {
		err = end
	}
	if err != nil {
		return err
	}
	return e.results.Save(o.out)
}
