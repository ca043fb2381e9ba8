package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/migratetest/latency"
	"github.com/sealdisk/sealdisk/internal/migratetest/marks"
)

const (
	perFsync = 64                     // writes
	beat     = 100 * time.Millisecond // between two lines
	perTimes = 5                      // beats
)

func main() {
	err := run()
	fmt.Printf("BAD %v\n", err)
	for { // init must not end
		time.Sleep(time.Hour)
	}
}

func run() error {
	if err := setUp(); err != nil {
		return err
	}
	rate, rerr := option("guest.rate")
	seed, serr := option("guest.seed")
	count, cerr := option("guest.disks")
	if err := errors.Join(rerr, serr, cerr); err != nil {
		return err
	}
	var disks []*writer
	for i := range max(1, count) {
		w, err := openDisk("/dev/vd"+string(rune('a'+i)), uint64(seed+i))
		if err != nil {
			return err
		}
		disks = append(disks, w)
	}
	fmt.Printf("READY %d disks of %d blocks\n", len(disks), disks[0].Blocks)
	failed := make(chan error, len(disks)+1)
	for _, w := range disks {
		go func() { failed <- w.load(rate) }()
	}
	go func() { failed <- listen(os.Stdin, disks) }()
	tick := time.NewTicker(beat)
	for n := 1; ; n++ {
		select {
		case err := <-failed:
			return err
		case <-tick.C:
			var writes uint64
			for _, w := range disks {
				writes += w.writes.Load()
			}
			fmt.Printf("HB %d %d %d\n", n, writes, disks[0].flushed.Load())
			if n%perTimes == 0 {
				fmt.Println("TIMES", disks[0].times.text())
			}
		}
	}
}

// setUp mounts what an init mounts and loads the modules that the disk needs.
func setUp() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open("/modules/" + name + ".ko")
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

// option gives a number of the kernel command line; 0: it is not there.
func option(name string) (int64, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	for _, word := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(word, name+"="); ok {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, nil
}

// times is how long writes and flushes of a disk took, from the guest's first on.
type times struct {
	mu           sync.Mutex
	write, flush latency.Histogram
}

// took counts one that began then.
func (t *times) took(h *latency.Histogram, began time.Time) {
	d := time.Since(began)
	t.mu.Lock()
	defer t.mu.Unlock()
	h.Add(d)
}

func (t *times) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.write.String() + " " + t.flush.String()
}

// writer is a disk and what must be on it.
type writer struct {
	marks.Disk
	f       *os.File
	mu      sync.Mutex       // held while blocks are written or compared
	has     map[int64]uint64 // the generation of what was written to each block last
	gen     uint64
	page    []byte // aligned, for O_DIRECT
	writes  atomic.Uint64
	flushed atomic.Uint64
	times   times
}

// openDisk waits for a disk.
func openDisk(name string, seed uint64) (*writer, error) {
	var f *os.File
	var err error
	for range 200 {
		if f, err = os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	page, err := unix.Mmap(-1, 0, marks.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	return &writer{Disk: marks.Disk{Seed: seed, Blocks: size / marks.BlockSize}, f: f, has: map[int64]uint64{}, page: page}, nil
}

// load writes blocks at a rate, in bytes per second, for ever.
func (w *writer) load(rate int64) error {
	if rate == 0 {
		select {}
	}
	step := time.Duration(perFsync*marks.BlockSize) * time.Second / time.Duration(rate)
	next := time.Now()
	for {
		if err := w.burst(); err != nil {
			return err
		}
		next = next.Add(step)
		if now := time.Now(); next.Before(now.Add(-time.Second)) {
			next = now // it cannot keep up; it does not catch up either
		}
		time.Sleep(time.Until(next))
	}
}

// burst writes some blocks and makes them durable.
func (w *writer) burst() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range perFsync {
		w.gen++
		n := w.Block(w.gen)
		w.Fill(w.page, n, w.gen)
		began := time.Now()
		if _, err := w.f.WriteAt(w.page, n*marks.BlockSize); err != nil {
			return fmt.Errorf("write of block %d: %w", n, err)
		}
		w.times.took(&w.times.write, began)
		w.has[n] = w.gen
		w.writes.Add(1)
	}
	began := time.Now()
	if err := unix.Fdatasync(int(w.f.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	w.times.took(&w.times.flush, began)
	w.flushed.Store(w.gen)
	return nil
}

// listen does what it is told on the serial line.
func listen(in *os.File, disks []*writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) != "verify" {
			continue
		}
		sum := 0
		for _, w := range disks {
			n, err := w.verify()
			if err != nil {
				return err
			}
			sum += n
		}
		fmt.Printf("VERIFIED %d blocks\n", sum)
	}
	select {} // the other end has gone
}

// verify reads all that was written.
func (w *writer) verify() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, gen := range w.has {
		if _, err := w.f.ReadAt(w.page, n*marks.BlockSize); err != nil {
			return 0, fmt.Errorf("read of block %d: %w", n, err)
		}
		if err := w.Check(w.page, n, gen, gen); err != nil {
			return 0, err
		}
	}
	return len(w.has), nil
}
