package crashtest

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// What uses a mount is another process of this binary.
const envRole = "SEALDISK_CRASH_ROLE"

var sealdisk string // the program, built by TestMain

func TestMain(m *testing.M) {
	roles := map[string]func([]string) error{"write": childWrite, "read": childRead, "hash": childHash}
	if role := os.Getenv(envRole); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sealdisk-crash")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	sealdisk = filepath.Join(dir, "sealdisk")
	if out, err := exec.Command("go", "build", "-o", sealdisk, "../../cmd/sealdisk").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func child(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), envRole+"="+role)
	return cmd
}

// childRead says on its standard output what each sector of a file holds.
func childRead(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	in, out := bufio.NewReaderSize(f, 1<<20), bufio.NewWriter(os.Stdout)
	b := make([]byte, sectorSize)
	for sector := 0; ; sector++ {
		if _, err := io.ReadFull(in, b); errors.Is(err, io.EOF) {
			return out.Flush()
		} else if err != nil {
			return fmt.Errorf("sector %d: %w", sector, err)
		}
		if _, err := out.Write(look(b, sector).append(nil)); err != nil {
			return err
		}
	}
}

func childHash(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	fmt.Printf("%x\n", h.Sum(nil))
	return nil
}

const (
	workers = 4
	maxRun  = 16 // sectors of one write
)

// writer writes until a write fails.
type writer struct {
	mu               sync.Mutex // of standard output
	buffered, direct *os.File
	gen              atomic.Uint64
}

// childWrite has the arguments FILE SECTORS GENERATION SEED.
func childWrite(args []string) error {
	var w writer
	var err error
	if w.buffered, err = os.OpenFile(args[0], os.O_RDWR, 0); err == nil {
		w.direct, err = os.OpenFile(args[0], os.O_RDWR|unix.O_DIRECT, 0)
	}
	if err != nil { // the daemon may be gone already
		w.fail(err)
		return nil
	}
	var n [3]uint64
	for i, s := range args[1:] {
		if n[i], err = strconv.ParseUint(s, 10, 64); err != nil {
			return err
		}
	}
	w.gen.Store(n[1])
	share := int(n[0]) / workers
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			if err := w.work(i, i*share, share, rand.New(rand.NewPCG(n[2], uint64(i)))); err != nil {
				w.fail(err)
			}
		})
	}
	group.Wait()
	return nil
}

// say writes a line at once: what was said is known however the process ends.
func (w *writer) say(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := os.Stdout.WriteString(line + "\n"); err != nil {
		os.Exit(1) // nobody listens
	}
}

func (w *writer) fail(err error) { w.say("e " + strings.ReplaceAll(err.Error(), "\n", " ")) }

// work writes in batches to its own sectors, half of them to a few.
func (w *writer) work(worker, first, count int, r *rand.Rand) error {
	buf, err := unix.Mmap(-1, 0, maxRun*sectorSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for {
		for range 1 + r.IntN(6) {
			n := 1 + r.IntN(maxRun)
			span := count
			if r.IntN(2) == 0 {
				span = 64
			}
			if err := w.write(worker, first+r.IntN(span-n), n, r, buf); err != nil {
				return err
			}
		}
		f := w.buffered
		if r.IntN(2) == 0 {
			f = w.direct
		}
		switch r.IntN(10) {
		case 0:
			continue // not synced until the next batch is
		case 1, 2, 3:
			err = unix.Fdatasync(int(f.Fd()))
		default:
			err = f.Sync()
		}
		if err != nil {
			return fmt.Errorf("fsync: %w", err)
		}
		w.say(fmt.Sprintf("s %d", worker))
	}
}

func (w *writer) write(worker, first, n int, r *rand.Rand, buf []byte) error {
	gen, zero := w.gen.Add(1), r.IntN(8) == 0
	w.say(fmt.Sprintf("w %d %d %d %d %t", worker, gen, first, n, zero))
	off := int64(first) * sectorSize
	if zero {
		err := unix.Fallocate(int(w.direct.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n)*sectorSize)
		if err != nil {
			return fmt.Errorf("discard: %w", err)
		}
		return nil
	}
	for i := range n {
		putRecord(buf[i*sectorSize:(i+1)*sectorSize], first+i, gen)
	}
	f := w.buffered
	if r.IntN(2) == 0 {
		f = w.direct
	}
	_, err := f.WriteAt(buf[:n*sectorSize], off)
	return err
}
