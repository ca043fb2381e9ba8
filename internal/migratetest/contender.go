package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/internal/measure"
	"github.com/sealdisk/sealdisk/internal/migratetest/latency"
	"github.com/sealdisk/sealdisk/internal/migratetest/page"
)

// contender is one way to move a guest with its disk. Its calls come in this order, once each.
type contender interface {
	seal(ctx context.Context) (machine, error)            // makes the sealed disk at the source, and names the QEMU for it
	await(ctx context.Context) error                      // makes at the destination what is there before anybody decides to move the guest
	carry(ctx context.Context, source *vm) (*vm, error)   // moves the guest, and returns when all has come
	remove(ctx context.Context, source, target *vm) error // takes all down, also after an error
}

const (
	warm   = time.Second     // that a guest writes before its writes are looked at
	before = 2 * time.Second // that its writes are looked at before it is moved
)

// ours is sealdisk migrate --qmp.
type ours struct {
	r        *rig
	from, to *host
	name     string
	image    string
	move     move
}

func (o *ours) seal(context.Context) (machine, error) {
	_, err := o.from.do("import", "--format", "raw", o.image, o.name)
	return o.from.machine(o.name, o.move.rate, ""), err
}

func (o *ours) await(context.Context) error { return nil }

func (o *ours) carry(ctx context.Context, source *vm) (*vm, error) {
	var got outcome
	if err := o.move.pull(o.from, o.to, o.name); err != nil {
		return nil, err
	}
	target, err := o.move.carry(ctx, o.r, source, o.from, o.to, o.name, &got)
	o.r.note("%+v", got.report)
	return target, err
}

func (o *ours) remove(ctx context.Context, source, target *vm) (err error) {
	source.stop()
	target.stop()
	for _, h := range []*host{o.from, o.to} {
		if rmErr := h.remove(ctx, o.name); err == nil && rmErr != nil && !strings.Contains(rmErr.Error(), "no image") {
			err = rmErr
		}
	}
	return err
}

// usage is what was used so far.
type usage struct {
	at        time.Time
	processor time.Duration // by all programs of both hosts
	bytes     int64         // over the link, both ways
}

func (r *rig) usage() (u usage, err error) {
	u.processor = measure.EndedProcessorTime()
	r.mu.Lock()
	for _, p := range r.started {
		select {
		case <-p.done:
		default:
			u.processor += measure.ProcessorTime(p.cmd.Process.Pid)
		}
	}
	r.mu.Unlock()
	received, sent, err := measure.Traffic(r.hosts["a"].daemon.cmd.Process.Pid, "eth")
	u.bytes, u.at = received+sent, time.Now()
	return u, err
}

// measureRun moves a guest once.
func measureRun(ctx context.Context, r *rig, link string, c contender) (run page.Run, err error) {
	var source, target *vm
	defer func() {
		if rmErr := c.remove(context.WithoutCancel(ctx), source, target); err == nil {
			err = rmErr
		}
	}()
	if err := r.limit(link); err != nil {
		return run, err
	}
	m, err := c.seal(ctx)
	if err != nil {
		return run, err
	}
	if source, err = r.startVM(ctx, m); err != nil {
		return run, err
	}
	if _, err := source.says(ctx, 0, "READY"); err != nil {
		return run, err
	}
	if err := c.await(ctx); err != nil {
		return run, err
	}
	if err := wait(ctx, warm); err != nil {
		return run, err
	}
	idle, err := r.usage()
	if err != nil {
		return run, err
	}
	if err := wait(ctx, before); err != nil {
		return run, err
	}
	start, err := r.usage()
	if err != nil {
		return run, err
	}
	if target, err = c.carry(ctx, source); err != nil {
		return run, err
	}
	if err := target.happened(ctx, "RESUME"); err != nil {
		return run, err
	}
	end, err := r.usage()
	if err != nil {
		return run, err
	}
	mark := target.mark()
	for range 2 { // the first may be one that was on its way
		if _, err := target.says(ctx, mark, "TIMES "); err != nil {
			return run, err
		}
		mark = target.mark()
	}
	run = figures(idle, start, end, source, target)
	_, err = target.verify(ctx)
	return run, err
}

// figures puts together what was seen of a run.
func figures(idle, start, end usage, source, target *vm) page.Run {
	run := page.Run{
		Total: end.at.Sub(start.at), There: target.when("RESUME").Sub(start.at), Downtime: target.when("RESUME").Sub(source.when("STOP")),
		Bytes: end.bytes - start.bytes, Processor: end.processor - start.processor, Moving: end.processor - start.processor,
	}
	all := append(source.samples(), target.samples()...)
	run.Before, run.While = load(all, idle.at, start.at), load(all, start.at, end.at)
	if rate := run.Before.Rate; rate > 0 { // what a write costs before, as often as there was one meanwhile
		used := float64(start.processor-idle.processor) / float64(start.at.Sub(idle.at))
		run.Moving -= time.Duration(used * float64(run.Total) * run.While.Rate / rate)
	}
	return run
}

// sample is what a guest says at a moment of its writes so far.
type sample struct {
	at           time.Time
	write, flush latency.Histogram
}

func (v *vm) samples() (list []sample) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, line := range v.said {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "TIMES" {
			continue
		}
		write, err := latency.Parse(f[1])
		flush, err2 := latency.Parse(f[2])
		if err == nil && err2 == nil {
			list = append(list, sample{v.heard[i], write, flush})
		}
	}
	return list
}

// load is what the guest wrote between the last samples before two moments, or after the second one.
func load(list []sample, from, to time.Time) (l page.Load) {
	after := func(t time.Time) int {
		i := slices.IndexFunc(list, func(s sample) bool { return s.at.After(t) })
		if i < 0 {
			return len(list)
		}
		return i
	}
	first, last := max(0, after(from)-1), min(after(to), len(list)-1)
	if first >= last {
		return l
	}
	a, b := list[first], list[last]
	write, flush := b.write.Since(a.write), b.flush.Since(a.flush)
	return page.Load{
		Rate:  float64(write.Count()) / b.at.Sub(a.at).Seconds(),
		Write: page.Times{Median: write.Quantile(0.5), P99: write.Quantile(0.99), Longest: write.Quantile(1)},
		Flush: page.Times{Median: flush.Quantile(0.5), P99: flush.Quantile(0.99), Longest: flush.Quantile(1)},
	}
}

// happened waits until QEMU has said an event.
func (v *vm) happened(ctx context.Context, event string) error {
	for v.when(event).IsZero() {
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("no %s: %w", event, err)
		}
	}
	return nil
}
