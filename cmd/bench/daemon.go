package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// A daemon is a server process that this program started.
type daemon struct {
	*measure.Server
	mount string
}

// start runs a server in the foreground and returns when something is mounted at mount.
func (b *bench) start(ctx context.Context, mount string, env []string, name string, args ...string) (*daemon, error) {
	s, err := b.commands.Start(ctx, env, name, args...)
	if err != nil {
		return nil, err
	}
	d := &daemon{Server: s, mount: mount}
	b.running = append(b.running, d)
	mounted := func() bool { return slices.Contains(measure.MountsBelow(b.dir), mount) }
	if err := d.Until(ctx, 60*time.Second, mounted); err != nil {
		return nil, err
	}
	return d, nil
}

// written is what an ended process caused to be written to devices, in bytes.
func (d *daemon) written() int64 {
	if usage, ok := d.Cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
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
	if err := d.Wait(5 * time.Minute); err != nil {
		return err
	}
	b.forget(d)
	return nil
}

func (b *bench) forget(d *daemon) {
	b.running = slices.DeleteFunc(b.running, func(o *daemon) bool { return o == d })
	d.Forget()
}

// endAll ends what still runs: asked, then detached from its mount, then killed.
func (b *bench) endAll() {
	for _, d := range slices.Backward(slices.Clone(b.running)) {
		d.End(func() { unix.Unmount(d.mount, unix.MNT_DETACH) })
		b.forget(d)
	}
}
