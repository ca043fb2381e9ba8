package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/measure"
	"github.com/sealdisk/sealdisk/internal/migratetest/page"
)

const (
	slow     = "100mbit" // of tc
	slowRate = 100 * mega / 8
)

// defaultPage is where the page goes.
const defaultPage = "docs/migration.md"

// benchmark compares sealdisk with QEMU's own way, and prints and writes what it saw.
func benchmark(ctx context.Context, r *rig, o options) (failed int, err error) {
	began := time.Now()
	cases, rounds := benchCases(), o.rounds
	if o.quick {
		cases, rounds = cases[:1], 1
	}
	results := &page.Results{Date: began.Format(time.DateOnly), Rounds: rounds}
	if results.Disk, results.Data, err = extent(o.image); err != nil {
		return 0, err
	}
	for round := range rounds {
		for i, c := range cases {
			failed += r.round(ctx, c, fmt.Sprintf("bench%d-%d", round, i), round, o)
			if ctx.Err() != nil {
				return failed, ctx.Err()
			}
		}
	}
	results.Cases = slices.DeleteFunc(cases, func(c *page.Case) bool { return len(c.Ways) == 0 })
	results.Took = time.Since(began).Round(time.Second)
	results.Facts = benchFacts(ctx, r)
	if o.out == "" && !o.quick && len(o.only) == 0 {
		o.out = defaultPage
	}
	if err := results.Text(os.Stdout); err != nil || o.out == "" {
		return failed, err
	}
	return failed, os.WriteFile(o.out, results.Markdown(), 0o666)
}

// benchCases are what is compared; the first one is the quick one.
func benchCases() (list []*page.Case) {
	for _, link := range []string{"1gbit", slow} {
		for _, rate := range []int64{2 * mega, 20 * mega} {
			list = append(list, &page.Case{Link: link, Rate: rate})
		}
	}
	return list
}

// entry is a contender in a case.
type entry struct {
	name string
	with func(name string) contender
}

// entries are the contenders of a case. Where the guest writes more than the link carries the mirror
// cannot be in step, unless writes wait for it; where the link is slow it counts what QEMU can tell
// from zeros, for which it has another format.
func (r *rig) entries(c *page.Case, image string) []entry {
	driven := func(lazy bool) func(string) contender {
		return func(name string) contender {
			return &ours{r: r, from: r.hosts["a"], to: r.hosts["b"], name: name, image: image, move: move{link: c.Link, rate: c.Rate, lazy: lazy, driven: true}}
		}
	}
	mirrored := func(qcow2, blocking bool) func(string) contender {
		return func(name string) contender {
			return &native{r: r, from: r.hosts["a"], to: r.hosts["b"], name: name, image: image, rate: c.Rate, qcow2: qcow2, blocking: blocking}
		}
	}
	list := []entry{{page.Eager, driven(false)}, {page.Lazy, driven(true)}, {page.QEMU, mirrored(false, false)}}
	switch {
	case c.Link != slow:
	case c.Rate > slowRate:
		list = append(list, entry{page.Blocking, mirrored(false, true)})
	default:
		list = append(list, entry{page.Qcow2, mirrored(true, false)})
	}
	return list
}

// round runs all contenders of a case once, another one first in each round. What has failed is not
// tried again.
func (r *rig) round(ctx context.Context, c *page.Case, name string, round int, o options) (failed int) {
	list := r.entries(c, o.image)
	for i := range list {
		e := list[(i+round)%len(list)]
		if ctx.Err() != nil {
			return failed
		}
		if c.Failed(e.name) || !o.wants(fmt.Sprintf("%v, %s", c, e.name)) {
			continue
		}
		one, cancel := context.WithTimeout(ctx, caseTimeout)
		began := time.Now()
		run, err := measureRun(one, r, c.Link, e.with(fmt.Sprintf("%s-%d", name, i)))
		cancel()
		told := err
		if err != nil { // the page names no path of this machine
			told = errors.New(strings.ReplaceAll(err.Error(), r.dir+"/", ""))
		}
		c.Add(e.name, run, told)
		took := time.Since(began).Round(time.Second)
		switch {
		case err == nil:
			fmt.Fprintf(os.Stderr, "%v, %s: %v, downtime %v; the run took %v\n", c, e.name, run.Total.Round(time.Millisecond), run.Downtime.Round(time.Millisecond), took)
		default:
			fmt.Fprintf(os.Stderr, "%v, %s: %v; the run took %v\n", c, e.name, err, took)
			if !errors.Is(err, errNotInStep) {
				failed++
			}
		}
	}
	return failed
}

// extent is the size of a file, and how much of it is stored.
func extent(file string) (size, data int64, err error) {
	var s unix.Stat_t
	err = unix.Stat(file, &s)
	return s.Size, s.Blocks * 512, err
}

func benchFacts(ctx context.Context, r *rig) []measure.Fact {
	c := measure.Commands{Dir: r.dir}
	return append([]measure.Fact{
		{What: "sealdisk", Is: c.Revision(ctx)},
		{What: page.FactQEMU, Is: measure.Version("qemu-system-x86_64", "--version")},
	}, measure.Machine(r.dir)...)
}
