package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// readers gives all targets but the named ones, each with the same random disk. The folder is the caller's to remove.
func (b *bench) readers(ctx context.Context, folder string, but ...string) ([]target, error) {
	source := b.path(folder + ".raw")
	if err := noiseFile(source, b.readDisk); err != nil {
		return nil, err
	}
	list, err := b.targets(folder)
	if err != nil {
		return nil, err
	}
	var ready []target
	for _, t := range list {
		if slices.Contains(but, t.Name()) {
			continue
		}
		b.say("make %s of %s", folder, t.Name())
		if err := t.Create(ctx, source, b.readDisk); err != nil {
			b.fail(folder+" of "+t.Name(), err)
			continue
		}
		ready = append(ready, t)
	}
	return ready, ctx.Err()
}

// removeFolder leaves a folder with mounts in it to clean.
func (b *bench) removeFolder(folder string) error {
	if len(measure.MountsBelow(b.path(folder))) > 0 {
		return nil
	}
	return errors.Join(os.RemoveAll(b.path(folder)), os.RemoveAll(b.path(folder+".raw")))
}

var readLoads = []struct {
	row  string
	load load
}{
	{"rand1", load{rw: "randread", bs: "4k", depth: 1}},
	{"rand32", load{rw: "randread", bs: "4k", depth: 32}},
	{"seq1", load{rw: "read", bs: "1M", depth: 1}},
	{"seq8", load{rw: "read", bs: "1M", depth: 8}},
}

// warmReads keeps all servers up, so that each has its caches, and lets one work at a time.
func (b *bench) warmReads(ctx context.Context) (err error) {
	const folder = "reads"
	list, err := b.readers(ctx, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopAll(ctx, list), b.removeFolder(folder)) }()
	for b.round = range b.rounds {
		list = b.startAll(ctx, list)
		for _, set := range []struct {
			group string
			size  int64
		}{{"warm-small", b.smallSet}, {"warm-large", b.readDisk}} {
			b.say("%s, round %d: read once", set.group, b.round+1)
			list = b.each(list, set.group, func(t target) error {
				_, err := b.fio(ctx, t.Path(), load{rw: "read", bs: "1M", depth: 1, size: set.size})
				return err
			})
			for _, l := range readLoads {
				list = b.each(list, set.group+"/"+l.row, func(t target) error {
					return b.readOnce(ctx, t, set.group+"/"+l.row, l.load, set.size)
				})
			}
		}
		list = b.each(list, "memory", func(t target) error { return b.notePeak("memory/reads", t, t.Name()) })
		if err := errors.Join(ctx.Err(), b.stopAll(ctx, list)); err != nil {
			return err
		}
	}
	return nil
}

// readOnce measures one load and adds its sample in the row's unit.
func (b *bench) readOnce(ctx context.Context, t target, row string, l load, size int64) error {
	l.size, l.runtime = size, b.short
	o, err := b.drive(ctx, t, row, l)
	if err != nil {
		return err
	}
	if l.bs == "1M" {
		b.add(row, t.Name(), o.bytes()/1e6)
	} else {
		b.add(row, t.Name(), o.iops())
	}
	return nil
}

// coldReads starts each server anew, with an empty page cache, for each measurement.
// The memory server has no cold state.
func (b *bench) coldReads(ctx context.Context) (err error) {
	const folder = "cold"
	list, err := b.readers(ctx, folder, report.Memory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stopAll(ctx, list), b.removeFolder(folder)) }()
	for b.round = range b.rounds {
		for _, l := range readLoads {
			if l.row != "rand1" && l.row != "seq1" {
				continue
			}
			list = b.each(list, "cold/"+l.row, func(t target) error {
				if err := b.dropCaches(); err != nil {
					return err
				}
				if err := t.Start(ctx); err != nil {
					return err
				}
				once := l.load
				if l.row == "seq1" {
					once.size = b.readDisk
				}
				return errors.Join(b.coldOnce(ctx, t, "cold/"+l.row, once), t.Stop(ctx))
			})
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// coldOnce reads the disk once from its beginning, or at random for a while.
func (b *bench) coldOnce(ctx context.Context, t target, row string, l load) error {
	if l.size == 0 {
		return errors.Join(b.readOnce(ctx, t, row, l, b.readDisk), b.notePeak("memory/cold", t, t.Name()))
	}
	o, err := b.drive(ctx, t, row, l)
	if err != nil {
		return err
	}
	b.add(row, t.Name(), o.bytes()/1e6)
	return b.notePeak("memory/cold", t, t.Name())
}

// each lets every target take its turn and drops those that fail: they are in the report.
func (b *bench) each(list []target, what string, f func(target) error) (well []target) {
	for _, t := range list {
		if err := f(t); err != nil {
			b.fail(what+" of "+t.Name(), err)
			if d := t.Server(); d != nil {
				b.say("its log: %s", d.Tail())
			}
			continue
		}
		well = append(well, t)
	}
	return well
}

func (b *bench) startAll(ctx context.Context, list []target) []target {
	return b.each(list, "start", func(t target) error {
		if err := t.Start(ctx); err != nil {
			return err
		}
		return resetPeak(t.Server())
	})
}

// stopAll stops what runs; with a cancelled ctx clean does it.
func (b *bench) stopAll(ctx context.Context, list []target) error {
	if ctx.Err() != nil {
		return nil
	}
	var errs []error
	for _, t := range list {
		if err := t.Stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", t.Name(), err))
		}
	}
	return errors.Join(errs...)
}
