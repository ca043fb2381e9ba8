package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
)

// profiled reports whether a measurement of t is also a profile: sealdisk's are, in the last round.
func (b *bench) profiled(t target) (*sealdiskTarget, bool) {
	s, ok := t.(*sealdiskTarget)
	return s, ok && b.round == b.rounds-1
}

// drive runs a load on a target, and keeps where the server's processor time went if it is profiled.
func (b *bench) drive(ctx context.Context, t target, row string, l load) (outcome, error) {
	s, ok := b.profiled(t)
	if !ok {
		return b.fio(ctx, t.Path(), l)
	}
	seconds := max(1, int(l.runtime.Seconds()))
	if l.runtime == 0 { // it ends when all is done: less than that takes
		seconds = max(1, int(l.size/(gib)))
	}
	name := b.path("cpu.profile")
	done := make(chan error, 1)
	go func() { done <- s.profile(ctx, seconds, name) }()
	busy := machineBusy()
	o, err := b.fio(ctx, t.Path(), l)
	cores := busy()
	if err := errors.Join(err, <-done); err != nil {
		return o, err
	}
	return o, b.keepProfile(ctx, row, cores, name)
}

// profile has the daemon write a CPU profile of some seconds to a file.
func (t *sealdiskTarget) profile(ctx context.Context, seconds int, name string) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", t.dir+"/store/control.sock")
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://sealdisk/debug/pprof/profile?seconds=%d", min(seconds, 60)), nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s", answer.Status)
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, answer.Body)
	return errors.Join(err, f.Close())
}

// keepProfile reads a profile, shares it out to parts of the program, and removes it.
func (b *bench) keepProfile(ctx context.Context, row string, cores float64, name string) error {
	text, err := b.command(ctx, "go", "tool", "pprof", "-top", "-nodecount=1000000", "-nodefraction=0", "-unit=ms", name)
	if err != nil {
		return err
	}
	p, err := parseProfile(text)
	if err != nil {
		return err
	}
	p.Machine = cores
	b.results.Profile(row, p)
	return os.Remove(name)
}

var (
	profileTotal = regexp.MustCompile(`Duration: .*Total samples = .*\(([0-9.]+)%\)`)
	profileLine  = regexp.MustCompile(`^\s*(-?[0-9.]+)(?:ms)?\s+[0-9.]+%\s+[0-9.]+%\s+\S+\s+[0-9.]+%\s+(.+)$`)
)

// parseProfile reads what go tool pprof -top prints, in milliseconds.
func parseProfile(text string) (report.Profile, error) {
	p := report.Profile{Parts: map[string]float64{}}
	m := profileTotal.FindStringSubmatch(text)
	if m == nil {
		return p, fmt.Errorf("pprof: no total in %q", text[:min(len(text), 300)])
	}
	percent, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return p, err
	}
	p.Server = percent / 100
	sum := 0.0
	for line := range strings.Lines(text) {
		if m := profileLine.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			v, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return p, fmt.Errorf("pprof: %q: %w", line, err)
			}
			p.Parts[report.PartOf(m[2])] += v
			sum += v
		}
	}
	if sum == 0 {
		return p, errors.New("pprof: the profile has no samples")
	}
	for part := range p.Parts {
		p.Parts[part] /= sum
	}
	return p, nil
}

// machineBusy begins to count; what it gives ends that and tells how many processors were busy, with
// the time that a hypervisor took away from them.
func machineBusy() func() float64 {
	began, before := time.Now(), busyTicks()
	return func() float64 {
		const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on
		return float64(busyTicks()-before) / ticksPerSecond / time.Since(began).Seconds()
	}
}

// busyTicks sums /proc/stat's first line but for idle and iowait; guests are in user already.
func busyTicks() (sum int64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(line) {
		if n, err := strconv.ParseInt(f, 10, 64); err == nil && i > 0 && i < 9 && i != 4 && i != 5 {
			sum += n
		}
	}
	return sum
}

// profiledCommand runs a command of sealdisk; in the last round it writes a profile of its own.
func (t *sealdiskTarget) profiledCommand(ctx context.Context, row string, args ...string) (int64, error) {
	if _, ok := t.b.profiled(t); !ok {
		return t.command(ctx, args...)
	}
	name := t.b.path("cpu.profile")
	busy := machineBusy()
	peak, err := t.command(ctx, append([]string{"--cpuprofile", name}, args...)...)
	cores := busy()
	if err != nil {
		return peak, err
	}
	return peak, t.b.keepProfile(ctx, row, cores, name)
}
