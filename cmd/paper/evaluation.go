package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// An evaluation is one run.
type evaluation struct {
	options
	dir      string // everything that the run makes is in it
	commands measure.Commands
	sealdisk string // the program, built once
	network  *network
	source   *host
	sinks    [page.Ways]*host // the destinations
	devices  []string         // loop devices that are attached
	results  page.Results
}

const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30

// begin makes the hosts. What it returns is to be closed, also with an error.
func begin(ctx context.Context, o options) (*evaluation, error) {
	e := &evaluation{options: o}
	dir, err := os.MkdirTemp(o.tmp, "sealdisk-paper.")
	if err != nil {
		return e, err
	}
	e.dir, e.commands, e.sealdisk = dir, measure.Commands{Dir: dir}, filepath.Join(dir, "bin-sealdisk")
	e.say("build sealdisk; work in %s", dir)
	if _, err := e.run(ctx, "go", "build", "-o", e.sealdisk, "./cmd/sealdisk"); err != nil {
		return e, err
	}
	if e.network, err = makeNetwork(ctx, e.commands); err != nil {
		return e, err
	}
	return e, e.makeHosts(ctx)
}

// measure fills the results.
func (e *evaluation) measure(ctx context.Context) error {
	small, err := e.measureSet(ctx, set{unit: "MB", bytes: mib, share: 1, rounds: e.rounds})
	if err != nil {
		return err
	}
	e.results.Sets = append(e.results.Sets, small)
	if large := (set{unit: "GB", bytes: gib, share: e.share, rounds: 1, sparse: true}); e.share == 0 {
		e.results.Notes = append(e.results.Notes, "The images in GB were left out of this run.")
	} else if why, err := e.room(large); err != nil {
		return err
	} else if why != "" {
		e.results.Notes = append(e.results.Notes, why)
	} else {
		got, err := e.measureSet(ctx, large)
		if err != nil {
			return err
		}
		e.results.Sets = append(e.results.Sets, got)
	}
	e.results.Challenges, err = e.attack(ctx)
	return err
}

// room says why a set does not fit the folder; "" if it does. An image is there as a tree of files, as
// a disk, in two stores and once as what was exported; a store gives back what it does not need with some delay.
func (e *evaluation) room(s set) (string, error) {
	var space unix.Statfs_t
	if err := unix.Statfs(e.dir, &space); err != nil {
		return "", err
	}
	largest := int64(0)
	for _, m := range page.Machines {
		largest = max(largest, s.data(m))
	}
	free, need := int64(space.Bavail)*space.Bsize, 8*largest+4*gib
	if free < need {
		return fmt.Sprintf("The images in GB were left out of this run: they need %d GB of disk, and there were %d.", need/gib, free/gib), nil
	}
	return "", nil
}

// facts describes the run and the machine.
func (e *evaluation) facts(ctx context.Context, began time.Time) {
	e.results.Date = began.UTC().Format(time.DateOnly)
	e.results.Took = time.Since(began)
	e.results.Facts = append(e.results.Facts, measure.Fact{What: "run", Is: fmt.Sprintf("%s UTC, %.1f min", began.UTC().Format("2006-01-02 15:04"), e.results.Took.Minutes())})
	e.results.Facts = append(e.results.Facts, measure.Machine(filepath.Dir(e.dir))...)
	e.results.Facts = append(e.results.Facts, measure.Fact{What: "sealdisk", Is: e.commands.Revision(ctx) + ", " + runtime.Version()},
		measure.Fact{What: "mkfs.ext4", Is: measure.Version("mkfs.ext4", "-V")}, measure.Fact{What: "tc", Is: measure.Version("tc", "-V")})
}

func (e *evaluation) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// run runs a program to its end and gives its output.
func (e *evaluation) run(ctx context.Context, name string, args ...string) (string, error) {
	out, _, err := e.commands.Run(ctx, nil, name, args...)
	return strings.TrimSpace(out), err
}

func (e *evaluation) path(parts ...string) string {
	return filepath.Join(append([]string{e.dir}, parts...)...)
}

// settle makes durable all that was written before, so that it is not part of what is measured next.
func (e *evaluation) settle() error {
	f, err := os.Open(e.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// close takes everything down that the run made.
func (e *evaluation) close() error {
	if e.dir == "" {
		return nil
	}
	for _, h := range append(e.sinks[:], e.source) {
		if h != nil {
			h.end()
		}
	}
	var errs []error
	for _, d := range e.devices {
		errs = append(errs, e.detach(d))
	}
	errs = append(errs, e.network.close())
	for _, m := range measure.MountsBelow(e.dir) {
		errs = append(errs, unix.Unmount(m, unix.MNT_DETACH))
	}
	if len(measure.MountsBelow(e.dir)) > 0 {
		return errors.Join(append(errs, fmt.Errorf("%s has mounts, nothing removed", e.dir))...)
	}
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}
