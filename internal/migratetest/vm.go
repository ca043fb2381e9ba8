package main

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// vm is a QEMU.
type vm struct {
	p       *process
	monitor *qemu.Monitor
	qmp     string // a second monitor, for sealdisk
	serial  net.Conn

	mu    sync.Mutex
	said  []string
	heard []time.Time   // each line of said
	more  chan struct{} // closed and replaced when it has said more
	times map[string]time.Time
}

// guestMemory is no multiple of 256 KiB: QEMU 7.2 under TCG needs that to migrate a guest correctly.
const guestMemory = "131064K"

// machine is what a QEMU is to be like.
type machine struct {
	name     string   // of its sockets
	qmp      string   // path of the monitor for sealdisk; "": none
	disks    []string // paths
	rate     int64    // bytes per second that the guest writes to each disk
	seed     uint64   // of what it writes
	incoming string   // what QEMU waits for; "": it boots
	cached   bool     // cache=writeback in place of none
	format   string   // of what is in the disk's file, "": raw
	rigid    bool     // auto-read-only=off
	held     bool     // once the guest has come it waits for cont, and has not opened its disks before
	at       *host    // in whose network it is, nil for none
	key      string   // path of the key of disks with LUKS; "": they have none
	more     []string // arguments
}

// seedOf gives each image a seed of its own, and room for those of further disks.
func seedOf(image string) uint64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(image)) // it cannot fail
	return uint64(h.Sum32()) << 4
}

func (m machine) args(r *rig, at func(string) string) []string {
	args := []string{"qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", guestMemory, "-smp", "1",
		"-nodefaults", "-display", "none", "-no-reboot", "-kernel", r.kernel, "-initrd", r.initrd,
		"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 guest.rate=%d guest.seed=%d guest.disks=%d", m.rate, m.seed, len(m.disks)),
		"-qmp", "unix:" + at("qmp") + ",server=on,wait=off"}
	if m.qmp != "" {
		args = append(args, "-qmp", "unix:"+m.qmp+",server=on,wait=off")
	}
	onOff := func(on bool) string {
		if on {
			return "on"
		}
		return "off"
	}
	sealed := ""
	if m.key != "" {
		args = append(args, "-object", "secret,id=key,file="+m.key)
		if sealed = ",key-secret=key"; m.format == "qcow2" {
			sealed = ",encrypt.format=luks,encrypt.key-secret=key"
		}
	}
	for i, disk := range m.disks {
		file, node := fmt.Sprintf("file%d", i), fmt.Sprintf("disk%d", i)
		args = append(args,
			"-blockdev", fmt.Sprintf("node-name=%s,driver=file,filename=%s,cache.direct=%s,aio=threads,locking=auto,auto-read-only=%s,discard=unmap", file, disk, onOff(!m.cached), onOff(!m.rigid)),
			"-blockdev", fmt.Sprintf("node-name=%s,driver=%s,file=%s,cache.direct=%s,discard=unmap,detect-zeroes=unmap%s", node, cmp.Or(m.format, "raw"), file, onOff(!m.cached), sealed),
			"-device", "virtio-blk-pci,drive="+node+",werror=stop,rerror=stop")
	}
	if m.incoming != "" {
		args = append(args, "-incoming", m.incoming)
	}
	if m.held {
		args = append(args, "-S")
	}
	// QEMU makes its sockets in this order: when this one is there all are.
	args = append(args, "-chardev", "socket,id=serial,path="+at("serial")+",server=on,wait=off", "-serial", "chardev:serial")
	if args = append(args, m.more...); m.at != nil {
		args = r.in(m.at.name, args...)
	}
	return args
}

// startVM starts a QEMU. After an error, too, it is there to be stopped, unless it is nil.
func (r *rig) startVM(ctx context.Context, m machine) (*vm, error) {
	at := func(what string) string { return filepath.Join(r.dir, m.name+"."+what) }
	p, err := r.start(nil, m.args(r, at)...)
	if err != nil {
		return nil, err
	}
	v := &vm{p: p, qmp: m.qmp, more: make(chan struct{}), times: map[string]time.Time{}}
	if v.serial, err = dialSoon(ctx, p, at("serial")); err != nil {
		return v, err
	}
	go lines(v.serial, v.hear)
	if v.monitor, err = qemu.Dial(ctx, at("qmp")); err != nil {
		return v, p.why(err)
	}
	events, _ := v.monitor.Watch()
	go func() {
		for {
			select {
			case e := <-events:
				v.mu.Lock()
				v.times[e.Name] = e.Time
				v.mu.Unlock()
			case <-p.done:
				return
			}
		}
	}()
	if m.held {
		late := map[string]any{"capabilities": []map[string]any{{"capability": "late-block-activate", "state": true}}}
		if err := v.monitor.Execute(ctx, "migrate-set-capabilities", late, nil); err != nil {
			return v, err
		}
	}
	return v, nil
}

// why adds what a program said last, if it has ended, or does so at once: a socket of it goes first.
func (p *process) why(err error) error {
	select {
	case <-p.done:
		return fmt.Errorf("QEMU ended: %s: %w", tail(p.text()), err)
	case <-time.After(time.Second):
		return err
	}
}

// dialSoon connects to a socket that a process is about to make.
func dialSoon(ctx context.Context, p *process, path string) (net.Conn, error) {
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.done:
			return nil, fmt.Errorf("QEMU ended: %s", tail(p.text()))
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (v *vm) hear(line string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.said, v.heard = append(v.said, strings.TrimSpace(line)), append(v.heard, time.Now())
	close(v.more)
	v.more = make(chan struct{})
}

// says returns the first line from mark on that begins with one of the words, or with BAD as an error.
func (v *vm) says(ctx context.Context, mark int, words ...string) (string, error) {
	for {
		v.mu.Lock()
		said, more := v.said[min(mark, len(v.said)):], v.more
		v.mu.Unlock()
		for _, line := range said {
			if strings.HasPrefix(line, "BAD") {
				return "", fmt.Errorf("the guest: %s", line)
			}
			for _, w := range words {
				if strings.HasPrefix(line, w) {
					return line, nil
				}
			}
		}
		select {
		case <-more:
		case <-v.p.done:
			return "", fmt.Errorf("QEMU ended (%v): %s", v.p.err, tail(v.p.text()))
		case <-ctx.Done():
			return "", fmt.Errorf("the guest never said %v; last: %v", words, said[max(0, len(said)-3):])
		}
	}
}

func (v *vm) mark() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.said)
}

// verify asks the guest to compare its disk with its memory.
func (v *vm) verify(ctx context.Context) (string, error) {
	mark := v.mark()
	if _, err := v.serial.Write([]byte("verify\n")); err != nil {
		return "", err
	}
	return v.says(ctx, mark, "VERIFIED")
}

// runs returns when the guest beats.
func (v *vm) runs(ctx context.Context) error {
	mark := v.mark()
	for range 3 {
		if _, err := v.says(ctx, mark, "HB "); err != nil {
			return err
		}
		mark = v.mark()
	}
	return nil
}

// beats gives how many blocks the guest says that it has written, and the generation up to which
// all of its first disk was flushed.
func (v *vm) beats() (writes int64, flushed uint64) {
	if v == nil {
		return 0, 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, line := range v.said {
		var beat, w int64
		var f uint64
		if k, _ := fmt.Sscanf(line, "HB %d %d %d", &beat, &w, &f); k == 3 {
			writes, flushed = max(writes, w), max(flushed, f)
		}
	}
	return writes, flushed
}

// status is what QEMU says of the guest; "": QEMU has gone.
func (v *vm) status(ctx context.Context) string {
	if v == nil || v.monitor == nil {
		return ""
	}
	select {
	case <-v.p.done:
		return ""
	default:
	}
	text, err := v.monitor.Status(ctx)
	if err != nil {
		return err.Error()
	}
	return text
}

// becomes waits until QEMU says that of the guest.
func (v *vm) becomes(ctx context.Context, status string) error {
	for v.status(ctx) != status {
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("the guest is %q, want %q: %w", v.status(context.Background()), status, err)
		}
	}
	return nil
}

// cont lets the guest run.
func (v *vm) cont(ctx context.Context) error {
	if err := v.monitor.Execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("cont: %w", err)
	}
	return nil
}

func (v *vm) when(event string) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.times[event]
}

// stop ends QEMU.
func (v *vm) stop() {
	if v != nil {
		v.p.end(syscall.SIGTERM)
	}
}
