package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// both: two guests pass each other.
func both(ctx context.Context, x *mixing) error {
	there, err := x.trip(ctx, x.a, x.b, "there")
	if err != nil {
		return err
	}
	back, err := x.trip(ctx, x.b, x.a, "back")
	if err != nil {
		return err
	}
	errs := make(chan error, 2)
	for _, t := range []*trip{there, back} {
		go func() {
			err := t.arms(ctx)
			if err == nil {
				err = t.moves(ctx)
			}
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// round: one guest moves three times, and is home again.
func round(ctx context.Context, x *mixing) error {
	t, err := x.trip(ctx, x.a, x.b, "round")
	if err != nil {
		return err
	}
	for _, to := range []*host{x.b, x.c, x.a} {
		t.to = to
		if err := t.arms(ctx); err != nil {
			return fmt.Errorf("to %s: %w", to.name, err)
		}
		if err := t.moves(ctx); err != nil {
			return fmt.Errorf("to %s: %w", to.name, err)
		}
		t.source, t.from = t.target, to
	}
	text, err := x.a.do("lease", "show", t.names[0])
	if err == nil && !strings.Contains(text, "1.4") {
		err = fmt.Errorf("three moves and the leases are %q", text)
	}
	return err
}

// snapshots: they come along.
func snapshots(ctx context.Context, x *mixing) error {
	t, err := x.trip(ctx, x.a, x.b, "snap")
	if err != nil {
		return err
	}
	name := t.names[0]
	made := make(chan error, 1)
	go func() { _, err := x.a.do("snapshot", name+"@early"); made <- err }()
	if err := errors.Join(t.arms(ctx), <-made); err != nil {
		return err
	}
	if _, err := x.a.do("snapshot", name+"@late"); err != nil {
		return err
	}
	if err := t.moves(ctx); err != nil {
		return err
	}
	for _, s := range []string{"@early", "@late"} {
		if _, err := run("cmp", x.a.file(name)+s, x.b.file(name)+s); err != nil {
			return err
		}
	}
	return nil
}

// pushes: another host gets the image while it moves, and has what a push after it brings.
func pushes(ctx context.Context, x *mixing) error {
	t, err := x.trip(ctx, x.a, x.b, "push")
	if err != nil {
		return err
	}
	push, err := x.r.start(nil, x.a.args("push", "--bandwidth", "200mbit", t.names[0], "c")...)
	if err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	if err := t.moves(ctx); err != nil {
		return err
	}
	select {
	case <-push.done:
	case <-ctx.Done():
		return fmt.Errorf("the push goes on: %s", tail(push.text()))
	}
	if push.err != nil {
		return fmt.Errorf("push: %w: %s", push.err, tail(push.text()))
	}
	if err := x.c.check(t.names[0]); err != nil {
		return err
	}
	if _, err := x.b.do("push", t.names[0], "c"); err != nil {
		return err
	}
	return errors.Join(x.c.check(t.names[0]), x.c.refuses(t.names[0]))
}

// collections: they wait, and the guest does not.
func collections(ctx context.Context, x *mixing) error {
	t, err := x.trip(ctx, x.a, x.b, "gc")
	if err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	var list []*process
	for _, h := range []*host{x.a, x.b} {
		p, err := x.r.start(nil, h.args("gc")...)
		if err != nil {
			return err
		}
		if err := p.says(ctx, "waiting for"); err != nil {
			return err
		}
		list = append(list, p)
	}
	if err := t.moves(ctx); err != nil {
		return err
	}
	for _, p := range list {
		select {
		case <-p.done:
		case <-ctx.Done():
			return errors.New("the collection goes on")
		}
		if p.err != nil {
			return fmt.Errorf("gc: %w: %s", p.err, tail(p.text()))
		}
	}
	return t.arrived(ctx)
}

// pair makes a guest with two disks.
func (x *mixing) pair(ctx context.Context) (*trip, error) {
	t := &trip{x: x, from: x.a, to: x.b}
	for _, n := range []string{"one", "two"} {
		name, err := x.imports(x.a, n, x.image)
		if err != nil {
			return nil, err
		}
		t.names = append(t.names, name)
	}
	t.m = x.a.machine(t.names[0], 2*mega, "")
	t.m.disks = []string{x.a.file(t.names[0]), x.a.file(t.names[1])}
	var err error
	t.source, err = x.boots(ctx, t.m)
	return t, err
}

func twoDisks(ctx context.Context, x *mixing) error {
	t, err := x.pair(ctx)
	if err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	return t.moves(ctx)
}

// oneFails: the name of one disk is taken there. None moves, until it is free.
func oneFails(ctx context.Context, x *mixing) error {
	t, err := x.pair(ctx)
	if err != nil {
		return err
	}
	if _, err := x.b.do("import", "--format", "raw", x.r.initrd, t.names[1]); err != nil {
		return err
	}
	if err := t.arms(ctx); err == nil {
		return errors.New("armed, though one of the disks cannot go")
	}
	first := *t
	first.names = t.names[:1] // the other name is that of another image there
	if err := first.stays(ctx); err != nil {
		return err
	}
	if err := x.b.remove(ctx, t.names[1]); err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	return t.moves(ctx)
}

// oneRefused: the source takes one disk's role away while both are armed. The guest runs on there.
func oneRefused(ctx context.Context, x *mixing) error {
	t, err := x.pair(ctx)
	if err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	if _, err := x.a.do("peer", "allow", "b", "replica", t.names[1]); err != nil {
		return err
	}
	m := t.there()
	if t.target, err = x.starts(ctx, m); err != nil {
		return err
	}
	if err := plainMigrate(ctx, t.source, m.incoming, 0); err != nil {
		return err
	}
	if err := t.target.cont(ctx); err == nil {
		return errors.New("the guest runs at the destination")
	}
	t.target.stop()
	if err := t.source.cont(ctx); err != nil {
		return err
	}
	return t.stays(ctx)
}

// kind moves a guest whose disk is unlike the others'.
func (x *mixing) kind(ctx context.Context, like machine) error {
	file := x.image
	if like.format != "" {
		file = filepath.Join(x.r.dir, "inner")
		if _, err := run("qemu-img", "convert", "-f", "raw", "-O", like.format, "-o", "preallocation=falloc", x.image, file); err != nil {
			return err
		}
		defer os.Remove(file)
		if err := grow(file); err != nil {
			return err
		}
	}
	name, err := x.imports(x.a, "kind", file)
	if err != nil {
		return err
	}
	t := &trip{x: x, from: x.a, to: x.b, names: []string{name}, m: x.a.machine(name, 2*mega, "")}
	t.m.cached, t.m.format = like.cached, like.format
	if t.source, err = x.boots(ctx, t.m); err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	return t.moves(ctx)
}

// grow rounds a file up, and gives it some room for tables.
func grow(file string) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	return os.Truncate(file, (st.Size()+64<<20)&^(1<<20-1))
}

// rigidThere: a QEMU that opens the disk for writing before it is its turn is refused, and nothing is lost.
func rigidThere(ctx context.Context, x *mixing) error {
	t, err := x.trip(ctx, x.a, x.b, "rigid")
	if err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	m := t.there()
	m.rigid = true
	v, _ := x.starts(ctx, m) // it ends at once
	if v == nil {
		return errors.New("no QEMU")
	}
	select {
	case <-v.p.done:
	case <-time.After(settle):
	}
	if said := v.p.text(); !strings.Contains(said, "Read-only file system") {
		return fmt.Errorf("a QEMU that opens the disk for writing at once says %q", said)
	}
	if err := t.stays(ctx); err != nil {
		return err
	}
	return t.moves(ctx)
}

// rigidHere: a QEMU that does not close its disk keeps it: the guest goes on there by cont.
func rigidHere(ctx context.Context, x *mixing) error {
	name, err := x.imports(x.a, "rigid", x.image)
	if err != nil {
		return err
	}
	t := &trip{x: x, from: x.a, to: x.b, names: []string{name}, m: x.a.machine(name, 2*mega, "")}
	t.m.rigid = true
	if t.source, err = x.boots(ctx, t.m); err != nil {
		return err
	}
	if err := t.arms(ctx); err != nil {
		return err
	}
	m := t.there()
	m.rigid = false
	if t.target, err = x.starts(ctx, m); err != nil {
		return err
	}
	if err := plainMigrate(ctx, t.source, m.incoming, 0); err != nil && !errors.Is(err, qemu.ErrFailed) {
		return err
	}
	if err := t.target.cont(ctx); err == nil {
		return errors.New("the guest runs at the destination, and the source has its disk open for writing")
	}
	if err := t.source.cont(ctx); err != nil {
		return err
	}
	return t.stays(ctx)
}

// strays: whoever opens the disk for writing at the destination while the guest writes it at the
// source is refused, and does not get its lease.
func strays(ctx context.Context, x *mixing) error {
	t, err := x.trip(ctx, x.a, x.b, "stray")
	if err != nil {
		return err
	}
	if _, err := x.b.do("pull", "a:"+t.names[0]); err != nil {
		return err
	}
	opening, stop := context.WithCancel(ctx)
	tries, stolen := 0, make(chan error, 1)
	go func() {
		var err error
		for ; opening.Err() == nil && err == nil; tries++ {
			_, _ = run("touch", x.b.file(t.names[0])) // which sets the time if it cannot open
			err = x.b.refuses(t.names[0])
		}
		stolen <- err
	}()
	err = t.arms(ctx)
	if err == nil {
		err = wait(ctx, settle)
	}
	stop()
	if err := errors.Join(err, <-stolen); err != nil {
		return err
	}
	if tries < 2 {
		return fmt.Errorf("%d tries to open the disk", tries)
	}
	// From here on a stray may have the lease, when the guest has closed the disk, or before: both are
	// on the host to which it goes.
	opening, stop = context.WithCancel(ctx)
	strayed := make(chan struct{})
	go func() {
		defer close(strayed)
		for opening.Err() == nil {
			_, _ = run("touch", x.b.file(t.names[0]))
		}
	}()
	err = t.moves(ctx)
	stop()
	<-strayed
	return err
}
