package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// defaultPage is what a full run writes.
const defaultPage = "docs/performance.md"

type options struct {
	quick    bool
	only     []string
	rounds   int
	out, tmp string
}

func main() {
	if len(os.Args) == 5 && os.Args[1] == "copyserver" {
		if err := serveMemory(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(measure.Main("bench", os.Args[1:], parse, run))
}

func parse(args []string) (options, error) {
	var o options
	var only string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&o.quick, "quick", false, "smaller inputs, shorter loads, one round: minutes")
	flags.StringVar(&only, "only", "", "comma-separated `GROUPS`: "+strings.Join(groupNames(), ","))
	flags.IntVar(&o.rounds, "rounds", 0, "`N` rounds (default 3, with --quick 1)")
	flags.StringVar(&o.out, "out", "", "`FILE` of the report; its plots go into a folder beside it (default "+defaultPage+", with --quick or --only stdout)")
	flags.StringVar(&o.tmp, "tmp", os.TempDir(), "`DIR` in which the work is done")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if only != "" {
		o.only = strings.Split(strings.ToLower(only), ",")
	}
	for _, name := range o.only {
		if !slices.Contains(groupNames(), name) {
			return o, fmt.Errorf("no group %q; there are %s", name, strings.Join(groupNames(), ", "))
		}
	}
	if o.out == "" && !o.quick && len(o.only) == 0 {
		o.out = defaultPage
	}
	if o.rounds < 0 || o.rounds > 100 {
		return o, fmt.Errorf("%d rounds", o.rounds)
	}
	return o, nil
}

// run measures, cleans up, and then writes the page.
func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("must be root: it mounts file systems and drops the page cache")
	}
	began := time.Now()
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	err = b.measure(ctx)
	facts := b.facts(began)
	if end := b.clean(); err == nil {
		err = end
	}
	if err != nil {
		return err
	}
	return b.write(o, facts)
}

// write prints the page to stdout, or to a file with its plots beside it.
func (b *bench) write(o options, facts []report.Note) error {
	page := report.Page{Title: "Performance", Lead: b.lead(o), Facts: facts}
	if o.out == "" {
		if err := b.results.Write(os.Stdout, page); err != nil {
			return err
		}
	} else if err := b.writeFile(o.out, page); err != nil {
		return err
	}
	if b.results.Failed() {
		return errors.New("some measurements failed; the report names them")
	}
	return nil
}

func (b *bench) writeFile(name string, page report.Page) error {
	folder := strings.TrimSuffix(name, filepath.Ext(name))
	if folder == name {
		folder += ".plots"
	}
	if err := b.results.Plot(folder); err != nil {
		return err
	}
	page.Plots = filepath.Base(folder)
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(b.results.Write(f, page), f.Close()); err != nil {
		return err
	}
	b.say("wrote %s and %s/", name, folder)
	return nil
}

// lead says what kind of run it was.
func (b *bench) lead(o options) []string {
	text := fmt.Sprintf("Written by `scripts/bench` on %s; do not edit. Medians (lowest–highest) of %d interleaved rounds: "+
		"every contender in one round, then every contender in the next. Ratios are to the row's reference, which has none. "+
		"One machine's figures drift with its neighbours; the ratios of one run hold.",
		time.Now().UTC().Format(time.DateOnly), b.rounds)
	lead := []string{text}
	if o.quick {
		lead = append(lead, "**A quick run: small inputs, short loads. Its figures are hints, not results.**")
	}
	if len(o.only) > 0 {
		lead = append(lead, "Only these groups were measured: "+strings.Join(o.only, ", ")+".")
	}
	return lead
}
