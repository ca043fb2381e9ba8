package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	blockSize  = 4096
	perFsync   = 64                     // writes
	beat       = 100 * time.Millisecond // between two lines
	headerSize = 16                     // number and generation
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
	rate, err := option("guest.rate")
	if err != nil {
		return err
	}
	w, err := openDisk("/dev/vda")
	if err != nil {
		return err
	}
	fmt.Printf("READY %d blocks\n", w.blocks)
	failed := make(chan error, 2)
	go func() { failed <- w.load(rate) }()
	go func() { failed <- w.listen(os.Stdin) }()
	tick := time.NewTicker(beat)
	for n := 1; ; n++ {
		select {
		case err := <-failed:
			return err
		case <-tick.C:
			fmt.Printf("HB %d %d\n", n, w.writes.Load())
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

// writer is the disk and what must be on it.
type writer struct {
	f      *os.File
	mu     sync.Mutex       // held while blocks are written or compared
	has    map[int64]uint64 // the generation of what was written to each block last
	blocks int64
	gen    uint64
	page   []byte // aligned, for O_DIRECT
	writes atomic.Int64
}

// openDisk waits for the disk and notes what is on it.
func openDisk(name string) (*writer, error) {
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
	page, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	return &writer{f: f, has: map[int64]uint64{}, blocks: size / blockSize, page: page}, nil
}

// load writes blocks at a rate, in bytes per second, for ever.
func (w *writer) load(rate int64) error {
	if rate == 0 {
		select {}
	}
	step := time.Duration(perFsync*blockSize) * time.Second / time.Duration(rate)
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
		n := rand.Int64N(w.blocks)
		w.gen++
		fill(w.page, n, w.gen)
		if _, err := w.f.WriteAt(w.page, n*blockSize); err != nil {
			return fmt.Errorf("write of block %d: %w", n, err)
		}
		w.has[n] = w.gen
		w.writes.Add(1)
	}
	if err := unix.Fdatasync(int(w.f.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	return nil
}

// fill makes the content of a block: its number, the generation, and what follows from both
// (splitmix64), so that no part of it is like a part of another.
func fill(page []byte, n int64, gen uint64) {
	binary.BigEndian.PutUint64(page, uint64(n))
	binary.BigEndian.PutUint64(page[8:], gen)
	x := uint64(n)<<32 ^ gen
	for i := headerSize; i < len(page); i += 8 {
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.BigEndian.PutUint64(page[i:], z^z>>31)
	}
}

// listen does what it is told on the serial line.
func (w *writer) listen(in *os.File) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) != "verify" {
			continue
		}
		n, err := w.verify()
		if err != nil {
			return err
		}
		fmt.Printf("VERIFIED %d blocks\n", n)
	}
	select {} // the other end has gone
}

// verify reads all that was written.
func (w *writer) verify() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	want := make([]byte, blockSize)
	for n, gen := range w.has {
		if _, err := w.f.ReadAt(w.page, n*blockSize); err != nil {
			return 0, fmt.Errorf("read of block %d: %w", n, err)
		}
		fill(want, n, gen)
		if bytes.Equal(w.page, want) {
			continue
		}
		is := "of nobody"
		if int64(binary.BigEndian.Uint64(w.page)) == n {
			is = fmt.Sprintf("of generation %d", binary.BigEndian.Uint64(w.page[8:]))
		}
		return 0, fmt.Errorf("block %d is not what was written in generation %d: %s", n, gen, is)
	}
	return len(w.has), nil
}
