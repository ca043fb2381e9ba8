package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
	"github.com/sealdisk/sealdisk/internal/daemon"
)

// bootShare is the part of the data that a guest reads before it is up.
const bootShare = 0.1

// bootList makes the reads of a guest that starts: the first sector, what follows it, and then stretches of 4 KiB to
// 2 MiB from all over the data, in no order, as files are loaded, in reads of up to 128 KiB, until a tenth of it was read.
func bootList(c content, seed int) (list []span) {
	rng := rand.New(rand.NewPCG(uint64(seed), 0x600d))
	if len(c.runs) == 0 {
		return nil
	}
	list = append(list, span{0, sector}, span{sector, 15 * sector})
	for left := int64(float64(c.bytes) * bootShare); left > 0; {
		at := c.at(rng.Int64N(c.bytes / sector))
		n := min(sector*int64(math.Pow(512, rng.Float64())), at.n, roundUp(left))
		for left -= n; n > 0; {
			piece := min(n, 128*kib)
			list = append(list, span{at.off, piece})
			at.off, n = at.off+piece, n-piece
		}
	}
	return list
}

func roundUp(n int64) int64 { return (n + sector - 1) / sector * sector }

// at gives the rest of a run from a sector on, which is counted among those that are not zero.
func (c *content) at(number int64) span {
	for _, r := range c.runs {
		if n := r.n / sector; number < n {
			return span{r.off + number*sector, r.n - number*sector}
		} else {
			number -= n
		}
	}
	return span{}
}

// starts has the list recorded at the source, and measures over the link of 1 Gbit/s when the destination has
// read the first sector and the whole list, of an image that comes whole and of one that comes lazily.
func (e *evaluation) starts(ctx context.Context, in *input, list []span, out *page.Image) error {
	if err := e.record(ctx, in, list, out); err != nil {
		return err
	}
	sink := e.sinks[page.Gigabit]
	for _, lazy := range []bool{false, true} {
		if err := e.settle(); err != nil {
			return err
		}
		began := time.Now()
		if _, _, err := sink.pull(ctx, in.name, lazy); err != nil {
			return err
		}
		s, err := start(sink.file(in.name), os.O_RDONLY, list, began)
		if err != nil {
			return err
		}
		if _, err := sink.ask(ctx, daemon.OpFill, daemon.FillRequest{Name: in.name, Wait: true}, nil); err != nil {
			return err
		}
		if lazy {
			s.Whole = ms(time.Since(began))
			out.Lazy = append(out.Lazy, s)
		} else {
			out.Eager = append(out.Eager, s)
		}
		if err := sink.remove(ctx, in.name); err != nil {
			return err
		}
	}
	return nil
}

// record reads the list from the source's mount as a guest does that has opened its disk: the daemon remembers it.
func (e *evaluation) record(ctx context.Context, in *input, list []span, out *page.Image) error {
	if _, err := start(e.source.file(in.name), os.O_RDWR, list, time.Now()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for { // the daemon keeps the list after the file was closed
		var deps daemon.Deps
		if _, err := e.source.ask(ctx, daemon.OpDeps, daemon.NameRequest{Name: in.name}, &deps); err != nil {
			return err
		}
		if len(deps.Startup) > 0 {
			out.Boot = page.Boot{Reads: len(list)}
			for _, r := range list {
				out.Boot.Bytes += r.n
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no start-up list: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// start opens a disk of a mount and reads a list past the page cache.
func start(name string, mode int, list []span, began time.Time) (s page.Start, err error) {
	f, err := os.OpenFile(name, mode|unix.O_DIRECT, 0)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf, err := unix.Mmap(-1, 0, 128*kib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return s, err
	}
	defer unix.Munmap(buf)
	for i, r := range list {
		if _, err := f.ReadAt(buf[:r.n], r.off); err != nil {
			return s, err
		}
		if i == 0 {
			s.First = ms(time.Since(began))
		}
	}
	s.Boot = ms(time.Since(began))
	return s, nil
}
