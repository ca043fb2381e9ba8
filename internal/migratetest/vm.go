package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
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
	more  chan struct{} // closed and replaced when it has said more
	times map[string]time.Time
}

// memory is no multiple of 256 KiB: QEMU 7.2 under TCG needs that to migrate a guest correctly.
const memory = "131064K"

// startVM starts a guest on a disk; incoming is what QEMU waits for, or "".
func (r *rig) startVM(ctx context.Context, name, qmp, disk string, rate int64, incoming string, extra ...string) (*vm, error) {
	at := func(what string) string { return filepath.Join(r.dir, name+"."+what) }
	args := []string{"qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", memory, "-smp", "1",
		"-nodefaults", "-display", "none", "-no-reboot", "-kernel", r.kernel, "-initrd", r.initrd,
		"-append", "console=ttyS0 quiet panic=-1 guest.rate=" + strconv.FormatInt(rate, 10),
		"-chardev", "socket,id=serial,path=" + at("serial") + ",server=on,wait=off", "-serial", "chardev:serial",
		"-qmp", "unix:" + at("qmp") + ",server=on,wait=off", "-qmp", "unix:" + qmp + ",server=on,wait=off",
		"-blockdev", "node-name=file0,driver=file,filename=" + disk + ",cache.direct=on,aio=threads,locking=auto,auto-read-only=on,discard=unmap",
		"-blockdev", "node-name=disk0,driver=raw,file=file0,discard=unmap,detect-zeroes=unmap", "-device", "virtio-blk-pci,drive=disk0"}
	if incoming != "" {
		args = append(args, "-incoming", incoming)
	}
	p, err := r.start(nil, append(args, extra...)...)
	if err != nil {
		return nil, err
	}
	v := &vm{p: p, qmp: qmp, more: make(chan struct{}), times: map[string]time.Time{}}
	if v.serial, err = dialSoon(ctx, p, at("serial")); err != nil {
		return nil, err
	}
	go lines(v.serial, v.hear)
	if v.monitor, err = qemu.Dial(ctx, at("qmp")); err != nil {
		return nil, err
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
	return v, nil
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
	v.said = append(v.said, strings.TrimSpace(line))
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

// writes is how many blocks the guest says that it has written.
func (v *vm) writes() (n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, line := range v.said {
		var beat, writes int64
		if k, _ := fmt.Sscanf(line, "HB %d %d", &beat, &writes); k == 2 {
			n = max(n, writes)
		}
	}
	return n
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
