package main

import (
	"context"
	"errors"
	"time"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
)

// writes measures what changes a disk. Each round fills new disks in sequence; the random writes and
// the flushed ones go over the filled disk.
func (b *bench) writes(ctx context.Context) (err error) {
	const folder = "writes"
	list, err := b.targets(folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.removeFolder(folder)) }()
	for b.round = range b.rounds {
		b.say("writes, round %d", b.round+1)
		if b.round == 0 || b.wanted("seqwrite") {
			list = b.each(list, "seqwrite/rate", func(t target) error { return b.fill(ctx, t) })
		}
		if b.wanted("randwrite") {
			list = b.each(list, "randwrite1", func(t target) error { return b.overwrite(ctx, t, "randwrite1", 1) })
			list = b.each(list, "randwrite32", func(t target) error { return b.overwrite(ctx, t, "randwrite32", 32) })
		}
		if b.wanted("fsync") {
			list = b.each(list, "fsync/1", func(t target) error { return b.flushed(ctx, t, "fsync/1", 1) })
			list = b.each(list, "fsync/16", func(t target) error { return b.flushed(ctx, t, "fsync/16", 16) })
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// flushed measures writers that wait for each of their writes. The memory server has nothing to make durable.
func (b *bench) flushed(ctx context.Context, t target, row string, writers int) error {
	if t.Name() == report.Memory {
		return nil
	}
	return b.session(ctx, t, "memory/fsync", func() error {
		o, err := b.drive(ctx, t, row, load{rw: "randwrite", bs: "4k", depth: 1, jobs: writers, fsync: 1, size: b.writeDisk, runtime: b.short})
		if err == nil {
			b.add(row, t.Name(), o.Write.IOPS)
		}
		return err
	})
}

// session starts a target, lets f use it, keeps the peak of its memory, and stops it.
func (b *bench) session(ctx context.Context, t target, memory string, f func() error) error {
	if err := b.sync(); err != nil {
		return err
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	err := f()
	if err == nil {
		err = b.notePeak(memory, t, t.Name())
	}
	return errors.Join(err, t.Stop(ctx))
}

// fill writes a new disk from end to end.
func (b *bench) fill(ctx context.Context, t target) error {
	if err := t.Create(ctx, "", b.writeDisk); err != nil {
		return err
	}
	return b.session(ctx, t, "memory/seqwrite", func() error {
		o, err := b.drive(ctx, t, "seqwrite/rate", load{rw: "write", bs: "1M", depth: 4, size: b.writeDisk, endFsync: true})
		if err == nil {
			b.add("seqwrite/rate", t.Name(), o.bytes()/1e6)
		}
		return err
	})
}

// lasting is how long a target's random writes go on.
func (b *bench) lasting(t target) time.Duration {
	switch t.Name() {
	case report.Sealdisk, report.Gocryptfs:
		return b.sustained
	case report.Memory:
		return b.first
	}
	return b.peer
}

// overwrite measures random writes and what the device is given until all of them are in place.
func (b *bench) overwrite(ctx context.Context, t target, group string, depth int) error {
	if err := b.sync(); err != nil {
		return err
	}
	before, noDevice := b.deviceWritten()
	var o outcome
	var served *daemon
	stopped := time.Now()
	err := b.session(ctx, t, "memory/randwrite", func() (err error) {
		o, err = b.drive(ctx, t, group, load{rw: "randwrite", bs: "4k", depth: depth, size: b.writeDisk, runtime: b.lasting(t), rates: true})
		served, stopped = t.Server(), time.Now()
		return err
	})
	if err != nil {
		return err
	}
	if err := b.sync(); err != nil {
		return err
	}
	drain := time.Since(stopped)
	guest := float64(o.Write.Total)
	b.results.Curve(group, t.Name(), o.Rates)
	if rate, ok := firstRate(o.Rates, b.first); ok {
		b.add(group+"/first", t.Name(), rate)
	}
	b.add(group+"/sustained", t.Name(), o.Write.IOPS)
	if t.Name() == report.Memory {
		return nil
	}
	b.add(group+"/drain", t.Name(), drain.Seconds())
	b.add(group+"/drained", t.Name(), guest/4096/(b.lasting(t)+drain).Seconds())
	if after, err := b.deviceWritten(); err == nil && noDevice == nil {
		b.add(group+"/device", t.Name(), float64(after-before)/guest)
	} else if served != nil {
		b.results.Skip(group+"/device", "the work folder is on no single block device; the ratio is what the kernel counts for the server's process")
		b.add(group+"/device", t.Name(), float64(served.written())/guest)
	}
	return nil
}
