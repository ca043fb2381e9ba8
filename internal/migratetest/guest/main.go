package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
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
	perFsync   = 16                     // writes
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
	mu     sync.Mutex // held while blocks are written or compared
	sums   map[int64][sha256.Size]byte
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
	return &writer{f: f, sums: map[int64][sha256.Size]byte{}, blocks: size / blockSize, page: page}, nil
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
	var at [8]byte
	for range perFsync {
		if _, err := rand.Read(at[:]); err != nil {
			return err
		}
		n := int64(binary.BigEndian.Uint64(at[:]) % uint64(w.blocks))
		w.gen++
		if _, err := rand.Read(w.page[headerSize:]); err != nil {
			return err
		}
		binary.BigEndian.PutUint64(w.page[0:], uint64(n))
		binary.BigEndian.PutUint64(w.page[8:], w.gen)
		if _, err := w.f.WriteAt(w.page, n*blockSize); err != nil {
			return fmt.Errorf("write of block %d: %w", n, err)
		}
		w.sums[n] = sha256.Sum256(w.page)
		w.writes.Add(1)
	}
	if err := unix.Fdatasync(int(w.f.Fd())); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	return nil
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
	for n, want := range w.sums {
		if _, err := w.f.ReadAt(w.page, n*blockSize); err != nil {
			return 0, fmt.Errorf("read of block %d: %w", n, err)
		}
		if sha256.Sum256(w.page) != want {
			is := "of nobody"
			if int64(binary.BigEndian.Uint64(w.page)) == n {
				is = fmt.Sprintf("of generation %d, newest is %d", binary.BigEndian.Uint64(w.page[8:]), w.gen)
			} else if bytes.Equal(w.page, make([]byte, blockSize)) {
				is = "zeros"
			}
			return 0, fmt.Errorf("block %d is not what was written: %s", n, is)
		}
	}
	return len(w.sums), nil
}
