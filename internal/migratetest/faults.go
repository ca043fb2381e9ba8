package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// fault is a migration that something comes in between of.
type fault struct {
	name string
	run  func(ctx context.Context, f *faulty) error
}

// faulty is a guest that runs on host a and is about to move to host b.
type faulty struct {
	r              *rig
	a, b           *host
	name           string
	source, target *vm
}

var faults = []fault{
	{"the destination's daemon is killed while it copies", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "20mbit", "round 1", false)
		if err != nil {
			return err
		}
		f.b.daemon.end(syscall.SIGKILL)
		return errors.Join(f.gaveUp(ctx, p), f.stays(ctx), f.b.again())
	}},
	{"the destination's daemon is killed while armed", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		f.b.daemon.end(syscall.SIGKILL)
		return errors.Join(f.gaveUp(ctx, p), f.stays(ctx), f.b.again())
	}},
	{"the command is interrupted while armed", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		p.end(syscall.SIGINT)
		return f.stays(ctx)
	}},
	{"the link is cut for good while armed", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		if err := f.link("down"); err != nil {
			return err
		}
		return errors.Join(f.gaveUp(ctx, p), f.stays(ctx), f.link("up"))
	}},
	{"the link is cut for a second while armed", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		if err := errors.Join(f.link("down"), wait(ctx, time.Second), f.link("up")); err != nil {
			return err
		}
		return f.moves(ctx, p)
	}},
	{"the destination's QEMU dies before it has the guest", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
		f.target.stop()
		if err := plainMigrate(ctx, f.source, f.uri(), 0); err == nil {
			return errors.New("QEMU moved the guest to nobody")
		}
		if err := f.stays(ctx); err != nil {
			return err
		}
		p.end(syscall.SIGINT)
		return nil
	}},
	{"QEMU's migration is cancelled, and tried again", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
		slow := map[string]int64{"max-bandwidth": 1 << 20}
		if err := f.source.monitor.Execute(ctx, "migrate-set-parameters", slow, nil); err != nil {
			return err
		}
		if err := f.source.monitor.Execute(ctx, "migrate", map[string]string{"uri": f.uri()}, nil); err != nil {
			return err
		}
		if err := errors.Join(wait(ctx, time.Second), f.source.monitor.Execute(ctx, "migrate_cancel", nil, nil)); err != nil {
			return err
		}
		f.target.stop()
		f.target = nil
		if err := f.source.runs(ctx); err != nil {
			return err
		}
		return f.moves(ctx, p)
	}},
	{"the guest moves while the link is cut: it goes on there by cont", func(ctx context.Context, f *faulty) error {
		p, err := f.migrate(ctx, "", "armed", true)
		if err != nil {
			return err
		}
		if err := errors.Join(f.wait(ctx), f.link("down")); err != nil {
			return err
		}
		if err := plainMigrate(ctx, f.source, f.uri(), 0); err != nil {
			return err
		}
		if err := errors.Join(f.gaveUp(ctx, p), f.link("up")); err != nil {
			return err
		}
		if err := f.target.monitor.Execute(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("cont: %w", err)
		}
		return f.runsThere(ctx)
	}},
}

// migrate begins to hand the disk over, and returns when the command has said a text.
func (f *faulty) migrate(ctx context.Context, link, until string, slow bool) (*process, error) {
	if err := f.r.limit(link); err != nil {
		return nil, err
	}
	p, err := f.r.start(nil, f.a.args("migrate", f.name, f.b.name)...)
	if err != nil {
		return nil, err
	}
	if !slow { // it copies for long: somewhere in it
		if err := p.says(ctx, "copy"); err != nil {
			return p, err
		}
		return p, wait(ctx, time.Second)
	}
	return p, p.says(ctx, until)
}

// uri is where the guest's memory goes.
func (f *faulty) uri() string { return "unix:" + filepath.Join(f.r.dir, f.name+".ram") }

// wait starts the QEMU that waits for the guest.
func (f *faulty) wait(ctx context.Context) (err error) {
	f.target, err = f.r.startVM(ctx, f.name+"-b", filepath.Join(f.b.qmps, f.name), f.b.file(f.name), 0, f.uri())
	return err
}

// gaveUp checks that the command ends and says so.
func (f *faulty) gaveUp(ctx context.Context, p *process) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.New("the command goes on")
	}
	if p.err == nil {
		return errors.New("the command says that all went well")
	}
	return nil
}

// stays checks that the guest runs where it was, and has what it wrote.
func (f *faulty) stays(ctx context.Context) error {
	if err := f.source.runs(ctx); err != nil {
		return err
	}
	_, err := f.source.verify(ctx)
	return err
}

// moves moves the guest after all.
func (f *faulty) moves(ctx context.Context, p *process) error {
	if err := f.wait(ctx); err != nil {
		return err
	}
	if err := plainMigrate(ctx, f.source, f.uri(), 0); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.New("the command goes on")
	}
	return errors.Join(p.err, f.runsThere(ctx))
}

// runsThere checks that the guest runs at the destination, has what it wrote, and nobody else its disk.
func (f *faulty) runsThere(ctx context.Context) error {
	if err := f.target.runs(ctx); err != nil {
		return err
	}
	if _, err := f.target.verify(ctx); err != nil {
		return err
	}
	return errors.Join(f.b.check(f.name), f.a.refuses(f.name))
}

func (f *faulty) link(state string) error {
	_, err := run(f.r.in("sw", "ip", "link", "set", "dev", "b", state)...)
	return err
}

// again starts the daemon of a host anew, after it was killed.
func (h *host) again() error {
	_, _ = run("umount", "-l", h.mnt) // what the one before has left
	return h.serve()
}

// run plays one fault.
func (x fault) play(ctx context.Context, r *rig, name, image string) (err error) {
	f := &faulty{r: r, a: r.hosts["a"], b: r.hosts["b"], name: name}
	if _, err := f.a.do("import", "--format", "raw", image, name); err != nil {
		return err
	}
	defer func() {
		f.source.stop()
		f.target.stop()
		err = errors.Join(err, f.a.remove(ctx, name))
		_ = f.b.remove(ctx, name) // it may never have come
	}()
	if f.source, err = r.startVM(ctx, name+"-a", filepath.Join(f.a.qmps, name), f.a.file(name), 2*mega, ""); err != nil {
		return err
	}
	if _, err := f.source.says(ctx, 0, "READY"); err != nil {
		return err
	}
	return errors.Join(wait(ctx, settle), x.run(ctx, f))
}

// playAll plays all faults and prints a line for each.
func playAll(ctx context.Context, r *rig, o options) (failed int) {
	for i, x := range faults {
		if !o.wants(x.name) {
			continue
		}
		one, cancel := context.WithTimeout(ctx, caseTimeout)
		err := x.play(one, r, fmt.Sprintf("fault%d", i), o.image)
		cancel()
		if err != nil {
			failed++
			fmt.Printf("FAIL  %s: %v\n", x.name, err)
		} else {
			fmt.Printf("ok    %s\n", x.name)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}
