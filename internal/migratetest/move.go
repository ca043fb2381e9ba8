package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sealdisk/sealdisk/internal/migratetest/marks"
	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// move is one migration of a guest.
type move struct {
	link   string // of tc, "" for none
	rate   int64  // bytes per second that the guest writes
	lazy   bool
	driven bool
}

func (m move) String() string {
	link, how, when := "no limit", "transparent", "eager"
	if m.link != "" {
		link = m.link
	}
	if m.driven {
		how = "driven"
	}
	if m.lazy {
		when = "lazy"
	}
	return fmt.Sprintf("%s, %d MB/s, %s, %s", link, m.rate/1000000, when, how)
}

// judged says whether the downtime is compared with what it may be.
func (m move) judged() bool { return m.link == "1gbit" && m.rate > 0 }

// outcome is what was seen.
type outcome struct {
	downtime time.Duration // from STOP here to RESUME there
	verified string
	wire     int64 // bytes that left the source for the disk, headers of packets included
	sealed   int64 // bytes of the image
	written  int64 // by the guest, until it had moved
	report   report
}

// report is what sealdisk migrate --json says, as far as it is looked at.
type report struct {
	Armed    int64 `json:"armed"`
	Offer    int64 `json:"offer"`
	Fill     int64 `json:"fill"`
	Duration int64 `json:"duration"`
	Rounds   []struct {
		Bytes    int64 `json:"bytes"`
		Duration int64 `json:"duration"`
	} `json:"rounds"`
	Guest struct {
		Memory int64 `json:"memory"`
	} `json:"guest"` // if sealdisk moves it
}

const settle = 3 * time.Second // that a guest runs before it is moved, and after

// run moves a guest from one host to another and looks at its disk.
func (m move) run(ctx context.Context, r *rig, from, to *host, name, image string) (o outcome, err error) {
	if err := r.limit(m.link); err != nil {
		return o, err
	}
	if _, err := from.do("import", "--format", "raw", image, name); err != nil {
		return o, err
	}
	defer func() {
		for _, h := range []*host{from, to} {
			rmErr := h.remove(ctx, name)
			if rmErr == nil { // else room becomes short in the end, and regions are planned anew while an image moves
				_, rmErr = h.do("gc")
			}
			if err == nil {
				err = rmErr
			}
		}
	}()
	sealed, err := from.stored(name)
	if err != nil {
		return o, err
	}
	o.sealed = sealed
	before, err := from.sent()
	if err != nil {
		return o, err
	}
	source, err := m.begin(ctx, r, from, to, name)
	defer source.stop()
	if err != nil {
		return o, err
	}
	target, err := m.carry(ctx, r, source, from, to, name, &o)
	defer target.stop()
	if err != nil {
		return o, err
	}
	after, err := from.sent()
	if err != nil {
		return o, err
	}
	o.wire = after - before - o.report.Guest.Memory
	writes, _ := source.beats()
	o.written = writes * marks.BlockSize
	if err := target.runs(ctx); err != nil {
		return o, err
	}
	o.downtime = target.when("RESUME").Sub(source.when("STOP"))
	if err := wait(ctx, settle); err != nil {
		return o, err
	}
	if o.verified, err = target.verify(ctx); err != nil {
		return o, err
	}
	return o, errors.Join(to.check(name), from.refuses(name))
}

// begin starts the guest and lets it run for a while; on the destination there is what pull brings.
func (m move) begin(ctx context.Context, r *rig, from, to *host, name string) (source *vm, err error) {
	if !m.lazy { // while nobody writes it: regions that are planned anew would be brought twice
		if err := m.pull(from, to, name); err != nil {
			return nil, err
		}
	}
	if source, err = r.startVM(ctx, from.machine(name, m.rate, "")); err != nil {
		return source, err
	}
	if _, err := source.says(ctx, 0, "READY"); err != nil {
		return source, err
	}
	if err := wait(ctx, settle); err != nil || !m.lazy {
		return source, err
	}
	return source, m.pull(from, to, name)
}

// pull brings the disk of a guest that sealdisk is to move: the destination's QEMU is started
// before the first round, and needs the file.
func (m move) pull(from, to *host, name string) error {
	if !m.driven {
		return nil
	}
	args := []string{"pull", from.name + ":" + name}
	if m.lazy {
		args = append(args, "--lazy")
	}
	_, err := to.do(args...)
	return err
}

// carry makes the other QEMU and moves the guest to it.
func (m move) carry(ctx context.Context, r *rig, source *vm, from, to *host, name string, o *outcome) (*vm, error) {
	ram := filepath.Join(r.dir, name+".ram")
	incoming := "unix:" + ram
	args := []string{"migrate", "--json", "--keep", name, to.name}
	if m.lazy {
		args = append(args, "--lazy")
	}
	if m.driven {
		incoming = "defer"
	}
	out := &process{new: make(chan struct{})}
	var target *vm
	if m.driven {
		var err error
		if target, err = r.startVM(ctx, to.machine(name, m.rate, incoming)); err != nil {
			return target, err
		}
		args = append(args, "--qmp", source.qmp, "--peer-qmp", name, "--max-downtime", fmt.Sprint(m.aim()))
	}
	p, err := r.start(out, from.args(args...)...)
	if err != nil {
		return target, err
	}
	if !m.driven {
		if err := p.says(ctx, "armed"); err != nil { // the file is there once the first round is
			return nil, err
		}
		if target, err = r.startVM(ctx, to.machine(name, m.rate, incoming)); err != nil {
			return target, err
		}
		if err := plainMigrate(ctx, source, incoming, 0); err != nil {
			return target, err
		}
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return target, fmt.Errorf("sealdisk migrate does not end: %s", tail(p.text()))
	}
	if p.err != nil {
		return target, fmt.Errorf("sealdisk migrate: %w: %s", p.err, tail(p.text()))
	}
	if err := json.Unmarshal([]byte(out.text()), &o.report); err != nil {
		return target, fmt.Errorf("%q: %w", out.text(), err)
	}
	return target, nil
}

// sent is how many bytes have left a host. No command's own count has all: what a lazy pull left
// out comes meanwhile, over connections of its own.
func (h *host) sent() (int64, error) {
	text, err := run(h.rig.in(h.name, "ip", "-json", "-stats", "link", "show", "dev", "eth")...)
	if err != nil {
		return 0, err
	}
	var links [1]struct {
		Stats struct {
			Sent struct {
				Bytes int64 `json:"bytes"`
			} `json:"tx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		return 0, fmt.Errorf("%q: %w", text, err)
	}
	return links[0].Stats.Sent.Bytes, nil
}

// downtime is what QEMU aims at, so that little of it is memory; slowDowntime, which is its own, on a link
// of 100 Mbit/s, over which little of a busy guest's memory goes in less.
const (
	downtime     = 30 * time.Millisecond
	slowDowntime = 300 * time.Millisecond
)

func (m move) aim() time.Duration {
	if m.link == "100mbit" {
		return slowDowntime
	}
	return downtime
}

// plainMigrate is what any program does that moves a guest, without a word to sealdisk. The
// bound on the bandwidth, if not 0, is in bytes per second.
func plainMigrate(ctx context.Context, v *vm, uri string, bandwidth int64) error {
	parameters := map[string]int64{"downtime-limit": downtime.Milliseconds(), "max-bandwidth": cmp.Or(bandwidth, 1<<50)}
	if err := v.monitor.Execute(ctx, "migrate-set-parameters", parameters, nil); err != nil {
		return err
	}
	if err := v.monitor.Execute(ctx, "migrate", map[string]string{"uri": uri}, nil); err != nil {
		return err
	}
	for {
		var i struct {
			Status string `json:"status"`
		}
		if err := v.monitor.Execute(ctx, "query-migrate", nil, &i); err != nil {
			return err
		}
		switch i.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("%w: %s", qemu.ErrFailed, i.Status)
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// baseline is the downtime of QEMU alone, with a file that both see: driven as sealdisk drives it, with
// the memory over a link of 1 Gbit/s; or by a plain migrate, with the memory past the link, as in a
// transparent migration here, and as much bandwidth.
func baseline(ctx context.Context, r *rig, rate int64, driven bool, image string) (time.Duration, error) {
	disk, ram := filepath.Join(r.dir, "shared.raw"), "unix:"+filepath.Join(r.dir, "shared.ram")
	from, to := machine{name: "shared-a", disks: []string{disk}, rate: rate}, machine{name: "shared-b", disks: []string{disk}, rate: rate}
	if driven {
		from.at, to.at, ram = r.hosts["a"], r.hosts["b"], "tcp:"+r.hosts["b"].address+":7444"
	}
	to.incoming = ram
	if err := r.limit("1gbit"); err != nil {
		return 0, err
	}
	if _, err := run("cp", "--sparse=always", image, disk); err != nil {
		return 0, err
	}
	defer os.Remove(disk)
	source, err := r.startVM(ctx, from)
	if err != nil {
		return 0, err
	}
	defer source.stop()
	if _, err := source.says(ctx, 0, "READY"); err != nil {
		return 0, err
	}
	if err := wait(ctx, settle); err != nil {
		return 0, err
	}
	target, err := r.startVM(ctx, to)
	if err != nil {
		return 0, err
	}
	defer target.stop()
	if driven {
		_, err = source.monitor.Migrate(ctx, qemu.Options{URI: ram, Downtime: downtime})
	} else {
		err = plainMigrate(ctx, source, ram, 117*mega)
	}
	if err != nil {
		return 0, err
	}
	if err := target.runs(ctx); err != nil {
		return 0, err
	}
	if _, err := target.verify(ctx); err != nil {
		return 0, err
	}
	return target.when("RESUME").Sub(source.when("STOP")), nil
}

// stored is how many sealed bytes an image has.
func (h *host) stored(name string) (int64, error) {
	text, err := h.do("info", "--json", name)
	if err != nil {
		return 0, err
	}
	var info struct {
		Stored int64 `json:"stored"`
	}
	err = json.Unmarshal([]byte(text), &info)
	return info.Stored, err
}

// remove removes an image, as soon as the daemon has closed what a QEMU that has ended had open.
func (h *host) remove(ctx context.Context, name string) error {
	for tries := 0; ; tries++ {
		_, err := h.do("rm", "--force", name)
		if err == nil || tries > 50 || strings.Contains(err.Error(), "no image") {
			return err
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// check verifies an image.
func (h *host) check(name string) error {
	_, err := h.do("verify", name)
	return err
}

// machine is a QEMU there, on an image of its own.
func (h *host) machine(name string, rate int64, incoming string) machine {
	return machine{name: name + "-" + h.name, qmp: filepath.Join(h.qmps, name), disks: []string{h.file(name)}, rate: rate, seed: seedOf(name), incoming: incoming}
}

// refuses checks that a host does not write an image that another host's guest uses, if it has it.
func (h *host) refuses(name string) error {
	f, err := os.OpenFile(h.file(name), os.O_WRONLY, 0)
	if err == nil {
		f.Close()
		return fmt.Errorf("%s opens %s for writing, which %s", h.name, name, "another host's guest uses")
	}
	if !errors.Is(err, syscall.EROFS) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%s: %w, want EROFS", h.name, err)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
