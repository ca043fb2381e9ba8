package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// mixture is one or several migrations with something else.
type mixture struct {
	name string
	run  func(ctx context.Context, x *mixing) error
}

// mixing is what a mixture has.
type mixing struct {
	r       *rig
	a, b, c *host
	prefix  string // of the names of its images
	image   string

	mu   sync.Mutex
	vms  []*vm    // guarded by mu, to be stopped
	disk []string // images, likewise, to be removed
}

var mixtures = []mixture{
	{"two migrations at once, there and back", both},
	{"from host to host to host and back", round},
	{"a snapshot while it copies, and one while armed", snapshots},
	{"a push to a third host meanwhile", pushes},
	{"collections on both hosts meanwhile", collections},
	{"two disks of one guest", twoDisks},
	{"two disks of one guest, one of which cannot go", oneFails},
	{"two disks of one guest, one of which is refused at the last moment", oneRefused},
	{"cache=writeback", func(ctx context.Context, x *mixing) error { return x.kind(ctx, machine{cached: true}) }},
	{"qcow2 inside the image", func(ctx context.Context, x *mixing) error { return x.kind(ctx, machine{format: "qcow2"}) }},
	{"auto-read-only=off at the destination", rigidThere},
	{"auto-read-only=off at the source", rigidHere},
	{"strays open the disk at the destination all the time", strays},
}

// imports makes an image on a host.
func (x *mixing) imports(h *host, name, file string) (string, error) {
	name = x.prefix + name
	x.mu.Lock()
	x.disk = append(x.disk, name)
	x.mu.Unlock()
	_, err := h.do("import", "--format", "raw", file, name)
	return name, err
}

// boots starts a guest, and returns when it has written for a while.
func (x *mixing) boots(ctx context.Context, m machine) (*vm, error) {
	v, err := x.starts(ctx, m)
	if err != nil {
		return v, err
	}
	if _, err := v.says(ctx, 0, "READY"); err != nil {
		return v, err
	}
	return v, wait(ctx, settle)
}

func (x *mixing) starts(ctx context.Context, m machine) (*vm, error) {
	v, err := x.r.startVM(ctx, m)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.vms = append(x.vms, v)
	return v, err
}

// trip is a guest that goes from one host to another.
type trip struct {
	x        *mixing
	from, to *host
	m        machine // of the source
	source   *vm
	names    []string
	target   *vm
	command  *process
}

// arms begins to hand the disks over.
func (t *trip) arms(ctx context.Context, args ...string) (err error) {
	args = append(append([]string{"migrate", "--keep"}, args...), t.names...)
	if t.command, err = t.x.r.start(nil, t.from.args(append(args, t.to.name)...)...); err != nil {
		return err
	}
	return t.command.says(ctx, "armed")
}

// there is the machine at the destination.
func (t *trip) there() machine {
	m := t.m
	m.qmp, m.incoming, m.disks = "", "unix:"+filepath.Join(t.x.r.dir, t.names[0]+t.to.name+".ram"), nil
	m.name = t.names[0] + "-" + t.to.name + fmt.Sprint(time.Now().UnixNano()%1e9)
	for _, n := range t.names {
		m.disks = append(m.disks, t.to.file(n))
	}
	return m
}

// moves moves the guest, and looks at what it has.
func (t *trip) moves(ctx context.Context) (err error) {
	m := t.there()
	if t.target, err = t.x.starts(ctx, m); err != nil {
		return err
	}
	if err := plainMigrate(ctx, t.source, m.incoming, 0); err != nil {
		return err
	}
	select {
	case <-t.command.done:
	case <-ctx.Done():
		return fmt.Errorf("the command goes on: %s", tail(t.command.text()))
	}
	if t.command.err != nil {
		return fmt.Errorf("%w: %s", t.command.err, tail(t.command.text()))
	}
	return t.arrived(ctx)
}

// arrived checks that the guest runs, has what it wrote, and that the source does not write its disks.
func (t *trip) arrived(ctx context.Context) error {
	if err := t.target.runs(ctx); err != nil {
		return err
	}
	if _, err := t.target.verify(ctx); err != nil {
		return err
	}
	t.source.stop()
	for _, n := range t.names {
		if err := errors.Join(t.to.check(n), t.from.refuses(n)); err != nil {
			return err
		}
	}
	return nil
}

// stays checks that the guest runs where it was.
func (t *trip) stays(ctx context.Context) error {
	if err := t.source.runs(ctx); err != nil {
		return err
	}
	if _, err := t.source.verify(ctx); err != nil {
		return err
	}
	for _, n := range t.names {
		if err := t.to.refuses(n); err != nil {
			return err
		}
	}
	return nil
}

// trip makes a guest on a host that is to go to another.
func (x *mixing) trip(ctx context.Context, from, to *host, name string) (*trip, error) {
	name, err := x.imports(from, name, x.image)
	if err != nil {
		return nil, err
	}
	t := &trip{x: x, from: from, to: to, names: []string{name}, m: from.machine(name, 2*mega, "")}
	t.source, err = x.boots(ctx, t.m)
	return t, err
}

// mixAll plays all mixtures and prints a line for each.
func mixAll(ctx context.Context, r *rig, o options) (failed int) {
	for i, m := range mixtures {
		if !o.wants(m.name) {
			continue
		}
		began := time.Now()
		one, cancel := context.WithTimeout(ctx, caseTimeout)
		x := &mixing{r: r, a: r.hosts["a"], b: r.hosts["b"], c: r.hosts["c"], prefix: fmt.Sprintf("mix%d", i), image: o.image}
		err := errors.Join(r.limit(""), m.run(one, x))
		cancel()
		if err = errors.Join(err, x.end(ctx)); err != nil {
			failed++
			fmt.Printf("FAIL  %s: %v\n", m.name, err)
		} else {
			fmt.Printf("ok    %s (%v)\n", m.name, time.Since(began).Round(time.Second))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

// end takes down what a mixture has made.
func (x *mixing) end(ctx context.Context) error {
	var errs []error
	for _, v := range x.vms {
		v.stop()
	}
	for _, name := range x.disk {
		for _, h := range []*host{x.a, x.b, x.c} {
			if err := h.remove(ctx, name); err != nil && !strings.Contains(err.Error(), "no image") {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
