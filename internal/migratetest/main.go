package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	sealdisk, kernel, initrd, image string
	only                            []string
	quick, faults, mixed, verbose   bool
	bench                           bool
	rounds                          int
	out                             string
}

// wants tells whether a case is to be run.
func (o options) wants(name string) bool {
	return !slices.ContainsFunc(o.only, func(w string) bool { return !strings.Contains(name, w) })
}

func main() {
	var o options
	var only string
	flag.StringVar(&o.sealdisk, "sealdisk", "", "the program, a path")
	flag.StringVar(&o.kernel, "kernel", "", "the guest's kernel, a path")
	flag.StringVar(&o.initrd, "initrd", "", "the guest's initrd, a path")
	flag.StringVar(&o.image, "image", "", "a raw disk, a path")
	flag.StringVar(&only, "only", "", "run what has all of these words, separated by commas")
	flag.BoolVar(&o.quick, "quick", false, "a few of the cases")
	flag.BoolVar(&o.faults, "faults", false, "what comes in between, in place of what goes well")
	flag.BoolVar(&o.mixed, "mixed", false, "guests that move with something else, or are unlike the others")
	flag.BoolVar(&o.bench, "bench", false, "compare sealdisk with QEMU's own way")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each contender of -bench runs")
	flag.StringVar(&o.out, "out", "", "the page of -bench; without it, and with -quick or -only, there is none")
	flag.BoolVar(&o.verbose, "v", false, "say what the programs say")
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that has gone must not keep it from taking everything down
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed, err := test(ctx, o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "migrate-test: %v\n", err)
	}
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

const mega = 1000000

// judged is how often a move is made whose downtime is compared with what it may be.
const judged = 3

// moves are all combinations; the quick ones come first.
func moves(quick bool) (list []move) {
	if quick {
		return []move{{"", 2 * mega, false, false}, {"1gbit", 2 * mega, true, true}}
	}
	for _, link := range []string{"", "1gbit", "100mbit"} {
		for _, rate := range []int64{0, 2 * mega, 20 * mega} {
			for _, lazy := range []bool{false, true} {
				for _, driven := range []bool{false, true} {
					m := move{link, rate, lazy, driven}
					list = append(list, m)
					for n := 1; m.judged() && n < judged; n++ {
						list = append(list, m)
					}
				}
			}
		}
	}
	return list
}

// caseTimeout bounds one case.
const caseTimeout = 5 * time.Minute

// test runs the cases and prints a line for each.
func test(ctx context.Context, o options) (failed int, err error) {
	dir, err := os.MkdirTemp("", "sealdisk-migrate.")
	if err != nil {
		return 0, err
	}
	names, small := []string{"a", "b"}, int64(0)
	switch {
	case o.faults:
		small = smallStore
	case o.mixed:
		names = append(names, "c")
	}
	r, err := newRig(dir, o, small, names...)
	defer func() { err = errors.Join(err, r.close()) }()
	if err != nil {
		return 0, err
	}
	if o.faults {
		return playAll(ctx, r, o), nil
	}
	if o.mixed {
		return mixAll(ctx, r, o), nil
	}
	if o.bench {
		return benchmark(ctx, r, o)
	}
	t := &table{}
	for i, m := range moves(o.quick) {
		if o.wants(m.String()) {
			one, cancel := context.WithTimeout(ctx, caseTimeout)
			got, err := m.run(one, r, r.hosts["a"], r.hosts["b"], fmt.Sprintf("vm%d", i), o.image)
			cancel()
			t.add(m, got, err)
		}
		if ctx.Err() != nil {
			return t.failed, ctx.Err()
		}
	}
	alone, err := t.alone(ctx, r, o.image)
	if err != nil {
		return t.failed, err
	}
	t.judge(alone)
	return t.failed, nil
}

// kind is what the downtime of QEMU alone depends on.
type kind struct {
	rate   int64
	driven bool
}

// alone measures the downtime of QEMU alone for each kind of migration that went well.
func (t *table) alone(ctx context.Context, r *rig, image string) (map[kind]time.Duration, error) {
	alone := map[kind]time.Duration{}
	for _, row := range t.rows {
		k := kind{row.rate, row.driven}
		if _, known := alone[k]; known || !row.judged() {
			continue
		}
		var list []time.Duration
		for range judged {
			one, cancel := context.WithTimeout(ctx, caseTimeout)
			d, err := baseline(one, r, k.rate, k.driven, image)
			cancel()
			if err != nil {
				return nil, fmt.Errorf("QEMU alone: %w", err)
			}
			list = append(list, d)
		}
		alone[k] = median(list)
		fmt.Printf("QEMU alone with a shared file, %d MB/s, driven %v: %v\n", k.rate/mega, k.driven, alone[k].Round(100*time.Microsecond))
	}
	return alone, nil
}

// table is what was seen so far.
type table struct {
	rows   []row
	failed int
}

type row struct {
	move
	outcome
}

func (t *table) add(m move, o outcome, err error) {
	if err != nil {
		t.failed++
		fmt.Printf("FAIL  %-40v %v\n", m, err)
		return
	}
	t.rows = append(t.rows, row{m, o})
	ms := func(ns int64) time.Duration { return time.Duration(ns).Round(100 * time.Microsecond) }
	fmt.Printf("ok    %-40v downtime %v (last close waited %v), %s; %.1f MB of disk for %.1f sealed + %.1f written, %d rounds, %v in all\n",
		m, o.downtime.Round(100*time.Microsecond), ms(o.report.Offer), o.verified, float64(o.wire)/mega, float64(o.sealed)/mega, float64(o.written)/mega,
		len(o.report.Rounds), ms(o.report.Duration))
	if most := float64(o.sealed)*1.1 + float64(o.written)*1.1 + mega; float64(o.wire) > most {
		t.failed++
		fmt.Printf("FAIL  %-40v at most %.1f MB were to go\n", m, most/mega)
	}
}

// judge compares the share of the downtime that is ours with what it may be.
func (t *table) judge(alone map[kind]time.Duration) {
	for rate, most := range map[int64]time.Duration{2 * mega: 30 * time.Millisecond, 20 * mega: 100 * time.Millisecond} {
		var list []time.Duration
		for _, r := range t.rows {
			if r.rate == rate && r.judged() {
				list = append(list, r.downtime-alone[kind{rate, r.driven}])
			}
		}
		if len(list) == 0 {
			continue
		}
		ours, verdict := median(list), "ok   "
		if ours > most {
			verdict = "FAIL "
			t.failed++
		}
		fmt.Printf("%s the disk's share of the downtime at 1gbit with %d MB/s: %v (median of %d), at most %v\n", verdict, rate/mega, ours.Round(100*time.Microsecond), len(list), most)
	}
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}
