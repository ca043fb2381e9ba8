package crashtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// number reads a variable of the environment.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// chooser makes the parent's choices; a failed test tells its seed.
func chooser(t *testing.T) *rand.Rand {
	t.Helper()
	seed := number(t, "SEALDISK_CRASH_SEED", 0)
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("SEALDISK_CRASH_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// firstImage writes the image to import: every other MiB has data.
func firstImage(path string) ([]version, error) {
	b := make([]byte, sectors*sectorSize)
	is := make([]version, sectors)
	for i := range is {
		if is[i] = (version{zero: true}); i/256%2 == 0 {
			is[i] = version{gen: 1}
			putRecord(b[i*sectorSize:(i+1)*sectorSize], i, 1)
		}
	}
	return is, os.WriteFile(path, b, 0o600)
}

// world is a store, what is known of it, and who uses it.
type world struct {
	*rig
	*model
	names *names
	r     *rand.Rand
	opens []time.Duration // how long starts took
}

// create makes the store with the image in it; both directories exist.
func create(base, scratch string, r *rand.Rand) (*world, error) {
	mnt := filepath.Join(scratch, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(scratch, "first")
	is, err := firstImage(path)
	if err != nil {
		return nil, err
	}
	w := &world{rig: newRig(base, mnt), model: newModel(is), r: r}
	if w.names, err = newNames(scratch); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"init"}, {"import", "--format", "raw", path, imageName}} {
		if _, err := w.run(args...); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// open starts the daemon and looks at everything.
func (w *world) open() error {
	took, err := w.start()
	if err != nil {
		return err
	}
	w.opens = append(w.opens, took)
	return w.look(w.model.freeze().done())
}

// look compares what the running daemon shows with what may be there, and takes it as the truth.
func (w *world) look(may states) error {
	got, err := w.read(imageName)
	if err != nil {
		return err
	}
	if err := may.check(got); err != nil {
		return fmt.Errorf("%w\n%s", err, w.log)
	}
	w.resetTo(may, got)
	if err := w.names.check(w.rig, w.r); err != nil {
		return fmt.Errorf("%w\n%s", err, w.log)
	}
	if out, err := w.run("verify"); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, out, w.log)
	}
	return nil
}

// play lets the image be written and commands run, calls crash at a random moment, and
// returns when all of that has ended because the daemon has.
func (w *world) play(least, most time.Duration, crash func() error) error {
	writing, err := w.write(w.model, w.r.Uint64())
	if err != nil {
		return err
	}
	var stopping atomic.Bool
	begun := make(chan struct{}, 1) // a command
	var group sync.WaitGroup
	var commandErr error
	choices := rand.New(rand.NewPCG(w.r.Uint64(), 0))
	group.Go(func() {
		for commandErr == nil && !stopping.Load() {
			c, end := w.names.next(w.model, choices)
			select {
			case begun <- struct{}{}:
			default:
			}
			out, err := w.run(c.args...)
			if w.names.finish(c, end, out, err); err != nil && !stopping.Load() {
				commandErr = err
			}
		}
	})
	<-time.After(least + time.Duration(w.r.Int64N(int64(most-least))))
	if w.r.IntN(2) == 0 { // soon after a command began
		select {
		case <-begun: // an old one
		default:
		}
		select {
		case <-begun:
		case <-time.After(time.Second):
		}
		<-time.After(time.Duration(w.r.Int64N(int64(250 * time.Millisecond))))
	}
	early := w.model.failure() // a writer that failed before
	stopping.Store(true)
	err = crash()
	group.Wait()
	return errors.Join(err, early, commandErr, <-writing.done)
}

// finish ends the daemon in order and looks at the store once more without one.
func (w *world) finish() error {
	if err := w.end(); err != nil {
		return err
	}
	for _, args := range [][]string{{"verify", "--no-keys"}, {"gc"}, {"verify"}} {
		if _, err := w.run(args...); err != nil {
			return err
		}
	}
	return nil
}

// stop ends a daemon that a failed test has left, and tells what the rounds consisted of.
func (w *world) stop(t *testing.T) {
	t.Helper()
	if t.Failed() && w.running() {
		if err := w.kill(); err != nil {
			t.Log(err)
		}
	}
	var most, sum time.Duration
	for _, d := range w.opens {
		most, sum = max(most, d), sum+d
	}
	if n := len(w.opens); n > 0 {
		t.Logf("%d starts until the mount was up: %v on average, %v at most", n, (sum / time.Duration(n)).Round(time.Millisecond), most.Round(time.Millisecond))
	}
	t.Logf("%d fsyncs and %d writes; commands %v; gc gave back %d MiB", w.syncs, w.last, w.names.done, w.names.freed>>20)
}
