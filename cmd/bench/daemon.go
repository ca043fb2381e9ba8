package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon is a server process that this program started.
type daemon struct {
	cmd   *exec.Cmd
	mount string
	done  chan struct{} // closed when the process has been waited for
	log   string
}

// start runs a server in the foreground and returns when something is mounted at mount.
func (b *bench) start(ctx context.Context, mount string, env []string, name string, args ...string) (*daemon, error) {
	log, err := os.CreateTemp(b.dir, "log.*")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// A server outlives ctx, so that clean can unmount it in order.
	cmd := b.prepare(context.WithoutCancel(ctx), name, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, mount: mount, done: make(chan struct{}), log: log.Name()}
	go func() {
		cmd.Wait()
		close(d.done)
	}()
	b.running = append(b.running, d)
	limit := time.Now().Add(60 * time.Second)
	for !slices.Contains(mountsBelow(b.dir), mount) {
		select {
		case <-d.done:
			b.forget(d)
			return nil, fmt.Errorf("%s ended before it mounted: %s", filepath.Base(name), d.tail())
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(limit) {
			return nil, fmt.Errorf("%s mounts nothing: %s", filepath.Base(name), d.tail())
		}
	}
	return d, nil
}

func (d *daemon) tail() string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(text))
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// wait returns when the process has ended, or an error if it takes longer than that.
func (d *daemon) wait(limit time.Duration) error {
	select {
	case <-d.done:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("process %d does not end: %s", d.pid(), d.tail())
	}
}

// written is what an ended process caused to be written to devices, in bytes.
func (d *daemon) written() int64 {
	if usage, ok := d.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		return int64(usage.Oublock) * 512
	}
	return 0
}

// unmounted takes the mount away and waits for the process.
func (b *bench) unmounted(d *daemon) error {
	var err error
	for range 100 { // a process that had the file open may not be reaped yet
		if err = unix.Unmount(d.mount, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", d.mount, err)
	}
	return b.ended(d)
}

// ended waits for a process that was asked to end.
func (b *bench) ended(d *daemon) error {
	if err := d.wait(5 * time.Minute); err != nil {
		return err
	}
	b.forget(d)
	return nil
}

func (b *bench) forget(d *daemon) {
	b.running = slices.DeleteFunc(b.running, func(o *daemon) bool { return o == d })
	os.Remove(d.log)
}

// endAll ends what still runs: asked, then detached from its mount, then killed.
func (b *bench) endAll() {
	for _, d := range slices.Backward(slices.Clone(b.running)) {
		d.cmd.Process.Signal(syscall.SIGTERM)
		if d.wait(10*time.Second) != nil {
			unix.Unmount(d.mount, unix.MNT_DETACH)
			d.cmd.Process.Kill()
			<-d.done
		}
		b.forget(d)
	}
}

// mountsBelow lists the mount points in a folder, the newest first.
func mountsBelow(dir string) (list []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			list = append(list, f[4])
		}
	}
	slices.Reverse(list)
	return list
}
