package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// A bench is one run. It is used by one goroutine, but for results and command.
type bench struct {
	scale
	only     []string // groups to measure; none is all
	dir      string   // everything that the run makes is in it
	commands measure.Commands
	sealdisk string // the binary, built once
	revision string
	round    int // the one that is being measured, from 0
	results  report.Results
	running  []*daemon
}

// scale is how large the inputs and how long the loads are.
type scale struct {
	rounds                  int
	image, usr, noise       int64 // bytes of the image; of files of /usr and of random bytes in it
	readDisk, smallSet      int64
	writeDisk               int64
	short                   time.Duration // reads, and writes with fsync
	first, sustained, peer  time.Duration // random writes: the opening, those of the goals, the others
	mixed, betweenSnapshots time.Duration
	growth                  int64 // the smallest of the three images
	need                    int64 // free bytes at the folder
}

const mib, gib = 1 << 20, 1 << 30

var full = scale{
	rounds: 3, image: 4 * gib, usr: 1000 * mib, noise: 700 * mib,
	readDisk: gib, smallSet: 128 * mib, writeDisk: 4 * gib,
	short: 4 * time.Second, first: 10 * time.Second, sustained: 60 * time.Second, peer: 20 * time.Second,
	mixed: 30 * time.Second, betweenSnapshots: 4 * time.Second, growth: gib, need: 45 * gib,
}

var quick = scale{
	rounds: 1, image: gib, usr: 256 * mib, noise: 176 * mib,
	readDisk: 512 * mib, smallSet: 128 * mib, writeDisk: gib,
	short: time.Second, first: 4 * time.Second, sustained: 8 * time.Second, peer: 4 * time.Second,
	mixed: 6 * time.Second, betweenSnapshots: 2 * time.Second, growth: 128 * mib, need: 14 * gib,
}

// groups are what --only names. Each measures the rows of one or more tables.
var groups = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"import", (*bench).transfers}, {"export", (*bench).transfers},
	{"reads", (*bench).warmReads}, {"cold", (*bench).coldReads},
	{"seqwrite", (*bench).writes}, {"randwrite", (*bench).writes}, {"fsync", (*bench).writes}, {"mixed", (*bench).mixedLoad},
	{"huge", (*bench).huge}, {"growth", (*bench).grow},
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{scale: full, only: o.only}
	if o.quick {
		b.scale = quick
	}
	if o.rounds > 0 {
		b.rounds = o.rounds
	}
	if _, err := exec.LookPath("fio"); err != nil {
		return nil, errors.New("no fio: run scripts/bench, which installs it")
	}
	var space unix.Statfs_t
	if err := unix.Statfs(o.tmp, &space); err != nil {
		return nil, fmt.Errorf("%s: %w", o.tmp, err)
	}
	if free := int64(space.Bavail) * space.Bsize; free < b.need {
		return nil, fmt.Errorf("%s has %d GiB free, %d are needed: choose another with --tmp", o.tmp, free/gib, b.need/gib)
	}
	dir, err := os.MkdirTemp(o.tmp, "sealdisk-bench.")
	if err != nil {
		return nil, err
	}
	b.dir, b.sealdisk, b.commands = dir, filepath.Join(dir, "bin-sealdisk"), measure.Commands{Dir: dir}
	b.say("build sealdisk; work in %s", dir)
	if _, err := b.command(ctx, "go", "build", "-o", b.sealdisk, "./cmd/sealdisk"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	b.revision = b.commands.Revision(ctx)
	return b, nil
}

// measure runs the groups that were asked for, each function once. A failed group is noted and the next one runs.
func (b *bench) measure(ctx context.Context) error {
	var done []string
	for _, g := range groups {
		unit := g.name
		switch g.name {
		case "export":
			unit = "import"
		case "randwrite", "fsync":
			unit = "seqwrite"
		}
		if !b.wanted(g.name) || slices.Contains(done, unit) {
			continue
		}
		done = append(done, unit)
		b.say("== %s", g.name)
		if err := g.run(b, ctx); err != nil {
			b.fail(g.name, err)
		}
		b.endAll()
		if err := ctx.Err(); err != nil {
			return errors.New("interrupted: no report")
		}
	}
	return nil
}

func (b *bench) wanted(group string) bool {
	return len(b.only) == 0 || slices.Contains(b.only, group)
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// fail notes a failed measurement; the run goes on. An interrupted one says nothing of its own.
func (b *bench) fail(what string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	text := strings.ReplaceAll(strings.Join(strings.Fields(err.Error()), " "), b.dir, "…")
	b.say("FAILED %s: %s", what, text)
	b.results.Fail(what, text)
}

// add keeps a sample and shows it.
func (b *bench) add(row, contender string, v float64) {
	b.say("%-24s %-24s %.4g", row, contender, v)
	b.results.Add(row, contender, v)
}

// command runs a program to its end and gives its stdout; an error has its stderr.
func (b *bench) command(ctx context.Context, name string, args ...string) (string, error) {
	out, _, err := b.runEnv(ctx, nil, name, args...)
	return out, err
}

// runEnv is command with more environment, and gives the largest resident set in bytes too.
func (b *bench) runEnv(ctx context.Context, env []string, name string, args ...string) (string, int64, error) {
	out, ended, err := b.commands.Run(ctx, env, name, args...)
	if err != nil {
		return "", 0, err
	}
	return out, maxResident(ended), nil
}

// timed syncs, runs f, syncs again, and gives how long f and the second sync took.
func (b *bench) timed(f func() error) (time.Duration, error) {
	if err := b.sync(); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := f(); err != nil {
		return 0, err
	}
	err := b.sync()
	return time.Since(began), err
}

// sync makes all that the file system of the folder holds durable.
func (b *bench) sync() error {
	f, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

func (b *bench) path(parts ...string) string {
	return filepath.Join(append([]string{b.dir}, parts...)...)
}

// clean ends all servers, removes mounts that are left and then the folder.
func (b *bench) clean() error {
	b.endAll()
	for _, m := range measure.MountsBelow(b.dir) {
		b.say("unmount what was left: %s", m)
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("%s is still mounted, nothing removed: %w", m, err)
		}
	}
	return os.RemoveAll(b.dir)
}
