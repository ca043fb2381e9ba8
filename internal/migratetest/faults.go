package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/migratetest/marks"
)

// fault is a migration that something comes in between of. What is said here of its end is what
// docs/testing.md says, and what run checks.
type fault struct {
	what, when string
	ends       string // where the guest is after it, as it is
	says       string // that sealdisk migrate prints, in this order, apart from what it always does; … stands for any text
	next       string // the command that lets it go on
	steps      []step
}

// step is what is done, or looked at, next.
type step func(f *faulty, ctx context.Context) error

func (x fault) String() string { return x.what + ", " + x.when }

// faulty is a guest that runs on host a and is about to move to host b.
type faulty struct {
	r              *rig
	a, b           *host
	name           string
	source, target *vm
	command        *process // sealdisk migrate
	plain          fault
}

// migrate begins to hand the disk over, and returns when the command has said a text.
func (f *faulty) migrate(ctx context.Context, link, until string, args ...string) (err error) {
	if err := f.r.limit(link); err != nil {
		return err
	}
	if f.command, err = f.r.start(nil, f.a.args(append([]string{"migrate", f.name, f.b.name}, args...)...)...); err != nil {
		return err
	}
	return f.command.says(ctx, until)
}

// copying begins to hand the disk over, and returns in the middle of the first round.
func (f *faulty) copying(ctx context.Context) error {
	if err := f.migrate(ctx, "20mbit", "copy"); err != nil {
		return err
	}
	return wait(ctx, time.Second)
}

// armed begins to hand the disk over, and returns when it may go.
func (f *faulty) armed(ctx context.Context) error {
	return f.migrate(ctx, "", "armed")
}

// uri is where the guest's memory goes.
func (f *faulty) uri() string { return "unix:" + filepath.Join(f.r.dir, f.name+".ram") }

// wait starts the QEMU that waits for the guest; held: it opens the disk by cont only.
func (f *faulty) wait(ctx context.Context, held bool) (err error) {
	m := f.b.machine(f.name, 0, f.uri())
	m.held = held
	f.target, err = f.r.startVM(ctx, m)
	return err
}

// offered begins to hand the disk over, and returns when the guest's memory is there and the source
// has closed the disk, before the destination opens it.
func (f *faulty) offered(ctx context.Context) error {
	if err := f.armed(ctx); err != nil {
		return err
	}
	if err := f.wait(ctx, true); err != nil {
		return err
	}
	if err := plainMigrate(ctx, f.source, f.uri(), 0); err != nil {
		return err
	}
	return f.target.becomes(ctx, "paused")
}

// granted begins to hand the disk over, and returns when the guest runs at the destination, where
// most of the disk is missing.
func (f *faulty) granted(ctx context.Context) error {
	if err := f.migrate(ctx, "50mbit", "armed", "--lazy"); err != nil {
		return err
	}
	if err := f.wait(ctx, false); err != nil {
		return err
	}
	if err := plainMigrate(ctx, f.source, f.uri(), 0); err != nil {
		return err
	}
	return f.target.runs(ctx)
}

// driven has sealdisk move the guest, too, and returns while its memory is on its way.
func (f *faulty) driven(ctx context.Context) (err error) {
	if err := f.r.limit(""); err != nil {
		return err
	}
	if _, err := f.b.do("pull", f.a.name+":"+f.name); err != nil {
		return err
	}
	if f.target, err = f.r.startVM(ctx, f.b.machine(f.name, 0, "defer")); err != nil {
		return err
	}
	if err := f.migrate(ctx, "10mbit", "armed", "--qmp", f.source.qmp); err != nil {
		return err
	}
	for {
		var i struct {
			RAM struct {
				Transferred int64 `json:"transferred"`
			} `json:"ram"`
		}
		if err := f.source.monitor.Execute(ctx, "query-migrate", nil, &i); err != nil || i.RAM.Transferred > mega {
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return errors.Join(err, f.ended("it moved no memory"))
		}
	}
}

// ended is an error with what the command has printed.
func (f *faulty) ended(format string, args ...any) error {
	return fmt.Errorf(format+": %s", append(args, tail(f.command.text()))...)
}

// gaveUp checks that the command ends, fails, and says why.
func (f *faulty) gaveUp(ctx context.Context) error {
	select {
	case <-f.command.done:
	case <-ctx.Done():
		return f.ended("the command goes on")
	}
	if f.command.err == nil {
		return f.ended("the command says that all went well")
	}
	return f.said()
}

// went checks that the command ends well, and says what it should.
func (f *faulty) went(ctx context.Context) error {
	select {
	case <-f.command.done:
	case <-ctx.Done():
		return f.ended("the command goes on")
	}
	if f.command.err != nil {
		return f.ended("%w", f.command.err)
	}
	return f.said()
}

// said checks what the command has printed.
func (f *faulty) said() error {
	rest := f.command.text()
	for _, part := range strings.Split(f.plain.says, "…") {
		_, after, ok := strings.Cut(rest, strings.TrimSpace(part))
		if !ok {
			return f.ended("the command does not say %q", f.plain.says)
		}
		rest = after
	}
	return nil
}

// interrupt ends the command as Ctrl-C does.
func (f *faulty) interrupt(ctx context.Context) error {
	f.command.end(syscall.SIGINT)
	return f.gaveUp(ctx)
}

// stays checks that the guest runs where it was, has what it wrote, and nobody else its disk.
func (f *faulty) stays(ctx context.Context) error {
	if err := f.source.runs(ctx); err != nil {
		return fmt.Errorf("at the source: %w", err)
	}
	if _, err := f.source.verify(ctx); err != nil {
		return err
	}
	return f.b.refuses(f.name)
}

// hand moves the guest, as anybody would who has not heard of sealdisk.
func (f *faulty) hand(ctx context.Context) error {
	if err := f.wait(ctx, false); err != nil {
		return err
	}
	return plainMigrate(ctx, f.source, f.uri(), 0)
}

// moves moves the guest after all.
func (f *faulty) moves(ctx context.Context) error {
	if err := f.hand(ctx); err != nil {
		return err
	}
	return errors.Join(f.went(ctx), f.runsThere(ctx))
}

// again gives the command once more, and moves the guest.
func (f *faulty) again(ctx context.Context) error {
	f.r.note("%s\n%s", f.plain, tail(f.command.text()))
	f.plain.says = ""
	if err := f.armed(ctx); err != nil {
		return fmt.Errorf("the same command again: %w", err)
	}
	return f.moves(ctx)
}

// runsThere checks that the guest runs at the destination, has what it wrote, and nobody else its disk.
func (f *faulty) runsThere(ctx context.Context) error {
	if err := f.target.runs(ctx); err != nil {
		return fmt.Errorf("at the destination: %w", err)
	}
	if _, err := f.target.verify(ctx); err != nil {
		return err
	}
	return errors.Join(f.b.check(f.name), f.a.refuses(f.name))
}

// boots starts a guest anew on a disk whose guest has gone, once all is there that it had flushed.
func (f *faulty) boots(ctx context.Context, at *host) error {
	_, here := f.source.beats()
	_, there := f.target.beats()
	f.source.stop()
	f.target.stop()
	if err := f.audit(at, max(here, there)); err != nil {
		return err
	}
	m := at.machine(f.name, 0, "")
	m.name += "-again"
	vm, err := f.r.startVM(ctx, m)
	if at == f.a {
		f.source, f.target = vm, nil
	} else {
		f.source, f.target = nil, vm
	}
	if err != nil {
		return err
	}
	other := f.a
	if at == f.a {
		other = f.b
	}
	return errors.Join(vm.runs(ctx), other.refuses(f.name))
}

func (f *faulty) audit(at *host, flushed uint64) error {
	if flushed == 0 {
		return errors.New("the guest has flushed nothing")
	}
	file, err := os.Open(at.file(f.name))
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	d := marks.Disk{Seed: seedOf(f.name), Blocks: st.Size() / marks.BlockSize}
	if _, err := d.Audit(file, flushed); err != nil {
		return fmt.Errorf("what was flushed, at %s: %w", at.name, err)
	}
	return nil
}

func (f *faulty) link(state string) error {
	_, err := run(f.r.in("sw", "ip", "link", "set", "dev", "b", state)...)
	return err
}

// cut cuts the link for a while.
func (f *faulty) cut(ctx context.Context, d time.Duration) error {
	return errors.Join(f.link("down"), wait(ctx, d), f.link("up"))
}

// kill ends a daemon as a crash does.
func (h *host) kill() { h.daemon.end(syscall.SIGKILL) }

// again starts the daemon of a host anew, after it was killed.
func (h *host) again() error {
	_, _ = run("umount", "-l", h.mnt) // what the one before has left
	return h.serve()
}

// Sizes of the file system of a store, and of what a filler leaves of it.
const (
	smallStore = 1200 << 20
	leftOver   = 24 << 20
)

// fill takes nearly all that is free beside a store, until empty.
func (h *host) fill() error {
	path := filepath.Join(h.store(), "filler")
	var st unix.Statfs_t
	if err := unix.Statfs(h.store(), &st); err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-leftOver); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (h *host) empty() error { return os.Remove(filepath.Join(h.store(), "filler")) }

// mend undoes what a fault before this one that failed may have left.
func (f *faulty) mend() error {
	if err := f.b.empty(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, h := range []*host{f.a, f.b} {
		select {
		case <-h.daemon.done:
			if err := h.again(); err != nil {
				return err
			}
		default:
		}
	}
	_, there := f.a.do("peer", "allow", "b", "host")
	_, back := f.b.do("peer", "allow", "a", "host")
	return errors.Join(there, back, f.link("up"), f.r.limit(""))
}

// play plays one fault.
func (x fault) play(ctx context.Context, r *rig, name, image string) (err error) {
	f := &faulty{r: r, a: r.hosts["a"], b: r.hosts["b"], name: name, plain: x}
	if err := f.mend(); err != nil {
		return err
	}
	if _, err := f.a.do("import", "--format", "raw", image, name); err != nil {
		return err
	}
	defer func() {
		if f.command != nil {
			f.command.end(syscall.SIGINT)
			f.r.note("%s\n%s", x, tail(f.command.text()))
		}
		f.source.stop()
		f.target.stop()
		for _, h := range []*host{f.a, f.b} {
			if rmErr := h.remove(ctx, name); rmErr != nil && !strings.Contains(rmErr.Error(), "no image") {
				err = errors.Join(err, rmErr)
			}
			if _, gcErr := h.do("gc"); gcErr != nil { // stores are small here
				err = errors.Join(err, gcErr)
			}
		}
	}()
	if f.source, err = r.startVM(ctx, f.a.machine(name, 2*mega, "")); err != nil {
		return err
	}
	if _, err := f.source.says(ctx, 0, "READY"); err != nil {
		return err
	}
	if err := wait(ctx, settle); err != nil {
		return err
	}
	for i, s := range x.steps {
		if err := s(f, ctx); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	if err := f.said(); err != nil { // if it did not have to, so far
		return err
	}
	return f.once(ctx)
}

// once checks that the guest runs on one side.
func (f *faulty) once(ctx context.Context) error {
	here, there := f.source.status(ctx), f.target.status(ctx)
	if (here == "running") == (there == "running") {
		return fmt.Errorf("the guest is %q at the source and %q at the destination", here, there)
	}
	return nil
}

// playAll plays all faults and prints a line for each.
func playAll(ctx context.Context, r *rig, o options) (failed int) {
	for i, x := range faults {
		if !o.wants(x.String()) {
			continue
		}
		began := time.Now()
		one, cancel := context.WithTimeout(ctx, caseTimeout)
		err := x.play(one, r, fmt.Sprintf("fault%d", i), o.image)
		cancel()
		if err != nil {
			failed++
			fmt.Printf("FAIL  %s: %v\n", x, err)
			r.note("a: %s\nb: %s", tail(r.hosts["a"].daemon.text()), tail(r.hosts["b"].daemon.text()))
		} else {
			fmt.Printf("ok    %s (%v)\n", x, time.Since(began).Round(time.Second))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}
