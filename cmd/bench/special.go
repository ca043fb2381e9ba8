package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
)

// mixedLoad measures one mixed load on an image alone and beside snapshots, and on others: not
// on the memory server, whose fsync does nothing, nor on raw LUKS, which is near the other LUKS.
func (b *bench) mixedLoad(ctx context.Context) (err error) {
	const folder = "mixed"
	list, err := b.readers(ctx, folder, report.Memory, report.LUKSRaw)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.removeFolder(folder)) }()
	for b.round = range b.rounds {
		list = b.each(list, "mixed", func(t target) error {
			if err := b.mixedOnce(ctx, t, t.Name(), nil); err != nil {
				return err
			}
			if s, ok := t.(*sealdiskTarget); ok {
				return b.mixedOnce(ctx, s, report.Snapshots, s)
			}
			return nil
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// mixedOnce runs the load; snapshots of s, if it is not nil, are taken meanwhile and removed after.
func (b *bench) mixedOnce(ctx context.Context, t target, contender string, s *sealdiskTarget) error {
	if err := t.Start(ctx); err != nil {
		return err
	}
	end := make(chan struct{})
	taken := make(chan error, 1)
	var names []string
	go func() {
		var err error
		for n := 0; s != nil && err == nil; n++ {
			select {
			case <-end:
				taken <- nil
				return
			case <-time.After(b.betweenSnapshots):
			}
			name := fmt.Sprintf("%s@bench%d", diskName, n)
			if _, err = s.command(ctx, "snapshot", name); err == nil {
				names = append(names, name)
			}
		}
		taken <- err
	}()
	row := "mixed/rate"
	if s != nil {
		row = "mixed/snapshots"
	}
	o, err := b.drive(ctx, t, row, load{rw: "randrw", bs: "4k", depth: 16, fsync: 64, readPart: 70, size: b.readDisk, runtime: b.mixed})
	close(end)
	err = errors.Join(err, <-taken)
	if err == nil {
		b.add("mixed/rate", contender, o.iops())
		b.add("mixed/read99", contender, float64(o.Read.P99)/1e6)
		b.add("mixed/write99", contender, float64(o.Write.P99)/1e6)
		err = b.notePeak("memory/mixed", t, contender)
	}
	for _, name := range names {
		_, e := s.command(ctx, "rm", name)
		err = errors.Join(err, e)
	}
	if s != nil && err == nil && len(names) == 0 {
		err = errors.New("no snapshot was taken during the load")
	}
	return errors.Join(err, t.Stop(ctx))
}

const hugeSize = 1 << 40

// huge measures that nothing takes time in proportion to the size of an image.
func (b *bench) huge(ctx context.Context) (err error) {
	const folder = "huge"
	dir := b.path(folder, "sealdisk")
	if err := os.MkdirAll(dir+"/mnt", 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.removeFolder(folder)) }()
	s := b.sealdiskTarget(folder)
	for range b.rounds {
		began := time.Now()
		if err := s.Create(ctx, "", hugeSize); err != nil {
			return err
		}
		b.add("huge/import", s.Name(), float64(time.Since(began).Microseconds())/1e3)
		for _, step := range []func(context.Context, *sealdiskTarget) error{b.hugeScatter, b.hugeUse} {
			if err := step(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// scattered are the offsets that get data: all over the disk.
func scattered(yield func(int64) bool) {
	for n := int64(0); n < 256; n++ {
		if !yield(n * (hugeSize / 256)) {
			return
		}
	}
}

// hugeScatter writes 4 KiB at each of them.
func (b *bench) hugeScatter(ctx context.Context, s *sealdiskTarget) error {
	if err := s.Start(ctx); err != nil {
		return err
	}
	return errors.Join(writeScattered(s.Path()), s.Stop(ctx))
}

func writeScattered(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	page := make([]byte, 4096)
	for off := range scattered {
		copy(page, fmt.Sprintf("at %d", off))
		if _, err := f.WriteAt(page, off); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// hugeUse measures a session on the image that has some data.
func (b *bench) hugeUse(ctx context.Context, s *sealdiskTarget) error {
	measure := func(row string, f func() error) error {
		began := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", row, err)
		}
		b.add(row, s.Name(), float64(time.Since(began).Microseconds())/1e3)
		return nil
	}
	if err := b.dropCaches(); err != nil {
		return err
	}
	if err := measure("huge/mount", func() error { return s.Start(ctx) }); err != nil {
		return err
	}
	err := b.dropCaches()
	if err == nil {
		err = measure("huge/read", func() error { return readPage(s.Path(), hugeSize/2) })
	}
	if err == nil {
		err = writeScattered(s.Path())
	}
	if err == nil {
		err = measure("huge/snapshot", func() error {
			_, err := s.command(ctx, "snapshot", diskName+"@bench")
			return err
		})
	}
	if err == nil {
		err = b.notePeak("memory/huge", s, s.Name())
	}
	return errors.Join(err, measure("huge/umount", func() error { return s.Stop(ctx) }))
}

// readPage reads 4 KiB past the page cache and checks that they are those of writeScattered.
func readPage(name string, off int64) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	if _, err := f.ReadAt(page, off); err != nil {
		return err
	}
	if want := fmt.Sprintf("at %d", off); string(page[:len(want)]) != want {
		return fmt.Errorf("got %q at %d, want %q", page[:len(want)], off, want)
	}
	return nil
}

// grow imports random images of three sizes and compares what each takes.
func (b *bench) grow(ctx context.Context) (err error) {
	const folder = "growth"
	dir := b.path(folder, "sealdisk")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.removeFolder(folder)) }()
	s := b.sealdiskTarget(folder)
	for round := range b.rounds {
		for _, times := range []int64{1, 2, 4} {
			source := b.path(folder, fmt.Sprintf("%d.raw", times))
			if round == 0 {
				if err := noiseFile(source, times*b.growth); err != nil {
					return err
				}
			}
			if err := errors.Join(s.reset(ctx), warm(source)); err != nil {
				return err
			}
			took, err := b.timed(func() error {
				_, err := s.command(ctx, "import", "--format", "raw", "--compress", "none", source, diskName)
				return err
			})
			if err != nil {
				return err
			}
			size, err := stored(dir+"/store", "reserve")
			if err != nil {
				return err
			}
			b.add(fmt.Sprintf("growth/time%d", times), report.None, took.Seconds())
			b.add(fmt.Sprintf("growth/size%d", times), report.None, float64(size)/mib)
		}
	}
	return nil
}
