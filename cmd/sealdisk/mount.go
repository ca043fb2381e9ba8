package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/daemon"
	"github.com/sealdisk/sealdisk/internal/home"
)

// readyFD is set for the process that mount -d leaves behind: the number of the
// descriptor on which it says, in a line of JSON, that the mount is up, or why not.
const readyFD = "SEALDISK_READY_FD"

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "show the images of the store, or those named, as files in DIR",
		ArgsUsage: "DIR [NAME…] | PEER:NAME DIR",
		Description: `DIR/NAME is the raw disk, DIR/NAME@SNAP a snapshot, read-only. Runs until SIGINT or
SIGTERM or until sealdisk umount, then commits what was written; with -d in the
background. If the store is mounted already the same process serves DIR too. An end that
is asked for while files are open waits for them; asked for twice it does not.
Tells systemd when it is ready (Type=notify).
PEER:NAME pulls the image lazily first: it can be used at once, and the rest comes while it is.

Example: sealdisk mount -d /mnt/images
         qemu-system-x86_64 -drive file=/mnt/images/debian,format=raw,cache=none …`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "d", Usage: "run in the background; return when the mount is up"},
			&cli.BoolFlag{Name: "read-only", Usage: "let nobody write"},
			&cli.BoolFlag{Name: "allow-other", Usage: "let other users pass; the files' modes still hold"},
			&cli.IntFlag{Name: "uid", Usage: "owner `U` of the files", Value: -1, DefaultText: "who mounts"},
			&cli.IntFlag{Name: "gid", Usage: "group `G` of the files", Value: -1, DefaultText: "who mounts"},
			&cli.StringFlag{Name: "log-file", Usage: "`FILE` for the log of -d", DefaultText: "log in the host directory"},
			&cli.StringFlag{Name: "cache", Usage: "`BYTES` of opened data kept in memory", Value: "128M"},
		},
		Action: mount,
	}
}

func mount(c *cli.Context) error {
	a, err := args(c, 1, -1)
	if err != nil {
		return err
	}
	e := envOf(c)
	var lazily *daemon.PullRequest
	if peer, name, ok := strings.Cut(a[0], ":"); ok && len(a) == 2 && peer != "" && name != "" {
		lazily = &daemon.PullRequest{Peers: []string{peer}, Remote: name, Name: name, Lazy: true}
		a = []string{a[1], name}
	}
	r := daemon.MountRequest{
		Names: a[1:], ReadOnly: c.Bool("read-only"), AllowOther: c.Bool("allow-other"),
		UID: c.Int("uid"), GID: c.Int("gid"),
	}
	if len(r.Names) == 0 {
		r.Names = nil
	}
	if r.Dir, err = filepath.Abs(a[0]); err != nil {
		return err
	}
	o := e.options(c)
	o.Persistent = true
	if o.CacheBytes, err = parseSize(c.String("cache")); err != nil {
		return err
	}
	ready := os.Getenv(readyFD)
	if c.Bool("d") && ready == "" {
		return detach(c, e, o, r, lazily)
	}
	m := &mounting{env: e, dir: r.Dir, lazily: lazily}
	var told sync.Once // how the mounting went
	tell := func(err error) { told.Do(func() { tellReady(ready, daemon.AsError(err)) }) }
	err = m.run(c.Context, o, r, tell)
	tell(err)
	return err
}

// unmountRetry is how soon a mount that was busy is tried again.
const unmountRetry = 250 * time.Millisecond

// mounting is a mount command in the foreground, which may be the daemon.
type mounting struct {
	*env
	dir    string
	lazily *daemon.PullRequest // what to pull before it is mounted
	conn   *daemon.Conn
}

// errLeft: the user did not want to wait for files of the mount to be closed.
var errLeft = &daemon.Error{Code: daemon.CodeInUse, Message: "ended while files of the mount were open", Hint: "what was not flushed is lost"}

// run tells when the mount is up. If it is refused, but others have come for
// mounts of theirs to this process meanwhile, it tells so and serves those.
func (m *mounting) run(ctx context.Context, o daemon.Options, r daemon.MountRequest, tell func(error)) (err error) {
	m.conn, err = daemon.Connect(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if !errors.Is(err, errLeft) { // else the store must look as if the machine had stopped
			err = errors.Join(err, m.conn.Close())
		}
	}()
	if err := m.conn.Unlock(); err != nil {
		return err
	}
	again := make(chan os.Signal, 1) // signals after the one that ends ctx
	signal.Notify(again, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(again)
	refused := m.pullAndMount(ctx, r)
	switch {
	case refused == nil:
		tell(nil)
		_, _ = systemd.SdNotify(false, systemd.SdNotifyReady) // no systemd, no message
		m.say("mounted at %s", m.dir)
	case m.conn.Serves():
		tell(refused)
		m.say("%v; serving the mounts of others", refused)
	default:
		return refused
	}
	return errors.Join(refused, m.serve(ctx, again))
}

func (m *mounting) pullAndMount(ctx context.Context, r daemon.MountRequest) error {
	if m.lazily != nil {
		if err := m.conn.Call(ctx, daemon.OpPull, m.lazily, nil, nil, m.show); err != nil {
			return err
		}
	}
	return m.conn.Call(ctx, daemon.OpMount, r, nil, nil, m.show)
}

// serve returns when the mount has ended or, in the process that has the store,
// all mounts. When ctx is done it ends them.
func (m *mounting) serve(ctx context.Context, again <-chan os.Signal) error {
	ended := make(chan error, 1)
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() { ended <- m.conn.Wait(life, m.dir) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_, _ = systemd.SdNotify(false, systemd.SdNotifyStopping)
	select {
	case <-again: // the signal that ended ctx comes here too
	case <-time.After(unmountRetry): // unless it came before the mount was asked for
	}
	return m.end(life, ended, again)
}

// end unmounts all that this process serves, or just dir if it serves nothing.
// While files are open it tries again and again, until another signal comes: then
// it detaches the mounts, and at the one after that it leaves.
func (m *mounting) end(ctx context.Context, ended <-chan error, again <-chan os.Signal) error {
	m.conn.Refuse() // or there is no end
	retry := time.NewTicker(unmountRetry)
	defer retry.Stop()
	err := m.unmountAll(ctx, false)
	if err != nil {
		m.say("%v; closing them ends the mount, another signal detaches it", err)
	}
	for forced := false; ; {
		select {
		case err := <-ended:
			return err
		case <-retry.C:
			if err != nil && !forced {
				err = m.unmountAll(ctx, false)
			}
		case <-again:
			if forced {
				return errLeft
			}
			forced = true
			if err := m.unmountAll(ctx, true); err != nil {
				m.say("%v", err)
			}
		}
	}
}

func (m *mounting) unmountAll(ctx context.Context, force bool) error {
	dirs := []string{m.dir}
	if m.conn.Local() {
		var st daemon.Status
		if err := m.conn.Call(ctx, daemon.OpStatus, daemon.Nothing{}, nil, &st, nil); err != nil {
			return err
		}
		dirs = st.Mounts
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, m.conn.Call(ctx, daemon.OpUnmount, daemon.UnmountRequest{Dir: dir, Force: force}, nil, nil, nil))
	}
	return errors.Join(errs...)
}

func tellReady(fd string, failure *daemon.Error) {
	if fd == "" {
		return
	}
	f := os.NewFile(3, readyFD) // detach always makes it 3
	defer f.Close()
	if failure == nil {
		failure = &daemon.Error{}
	}
	_ = json.NewEncoder(f).Encode(failure) // a parent that has gone does not mind
}

// detach asks a daemon that runs already for the mount, or starts one that
// outlives this process.
func detach(c *cli.Context, e *env, o daemon.Options, r daemon.MountRequest, lazily *daemon.PullRequest) error {
	if client := daemon.Running(c.Context, e.store); client != nil {
		var err error
		if lazily != nil {
			err = client.Call(c.Context, daemon.OpPull, lazily, nil, nil, e.show)
		}
		if err == nil {
			err = client.Call(c.Context, daemon.OpMount, r, nil, nil, e.show)
		}
		if !errors.Is(err, daemon.ErrUnreachable) {
			return err
		}
	}
	pass, err := home.AskPassphrase(e.home, o.Prompt)
	if err != nil {
		return err
	}
	path := c.String("log-file")
	if path == "" {
		path = filepath.Join(e.home, "log")
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	defer log.Close()
	if err := e.profiles.end(); err != nil { // the other process makes its own
		return err
	}
	return spawn(log, pass)
}

// spawn runs this command line again, in a session of its own, and returns when
// the other process says that the mount is up.
func spawn(log *os.File, pass string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("background: %w", err)
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("background: %w", err)
	}
	defer readyR.Close()
	defer readyW.Close()
	passR, passW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("background: %w", err)
	}
	defer passR.Close()
	defer passW.Close()
	// What a shell or a script has open must not stay open for as long as the mount.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("background: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir, _ = os.Getwd()
	cmd.Env = append(withoutPassphrase(os.Environ()), readyFD+"=3", passphraseFD+"=4")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{readyW, passR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("background: %w", err)
	}
	_ = readyW.Close()                      // the other process has it
	_, _ = io.WriteString(passW, pass+"\n") // fits into the pipe
	_ = passW.Close()
	line, err := bufio.NewReader(readyR).ReadBytes('\n')
	if err != nil {
		return errors.Join(&daemon.Error{Code: daemon.CodeInternal, Message: "the background process ended before the mount was up", Hint: "its log is " + log.Name()}, cmd.Wait())
	}
	var failure daemon.Error
	if err := json.Unmarshal(line, &failure); err != nil {
		return fmt.Errorf("background: %w", err)
	}
	if failure.Code != "" {
		_ = cmd.Wait() // it has said why
		return &failure
	}
	return cmd.Process.Release()
}

func withoutPassphrase(env []string) []string {
	var out []string
	for _, v := range env {
		if !strings.HasPrefix(v, passphraseFile+"=") && !strings.HasPrefix(v, passphraseFD+"=") {
			out = append(out, v)
		}
	}
	return out
}

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Usage:     "end a mount",
		ArgsUsage: "DIR",
		Description: `Returns when all that was written is in the store. Refused while files are open, unless
--force detaches the mount: then they work until they are closed.

Example: sealdisk umount /mnt/images`,
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "also while files are open"}},
		Action: umount,
	}
}

func umount(c *cli.Context) error {
	a, err := args(c, 1, 1)
	if err != nil {
		return err
	}
	e := envOf(c)
	dir, err := filepath.Abs(a[0])
	if err != nil {
		return err
	}
	if client := daemon.Running(c.Context, e.store); client != nil {
		err := client.Call(c.Context, daemon.OpUnmount, daemon.UnmountRequest{Dir: dir, Force: c.Bool("force")}, nil, nil, nil)
		if failure := daemon.AsError(err); failure == nil || failure.Code != daemon.CodeNotFound {
			return err
		}
	}
	return umountAlone(c.Context, dir, c.Bool("force"))
}

// umountAlone ends a mount whose daemon is not there or is another store's.
func umountAlone(ctx context.Context, dir string, force bool) error {
	flags := []string{"-u", dir}
	if force {
		flags = []string{"-u", "-z", dir}
	}
	out, err := exec.CommandContext(ctx, "fusermount3", flags...).CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return &daemon.Error{Code: daemon.CodePermission, Message: "fusermount3 was not found", Hint: "install the package fuse3"}
	case err != nil && strings.Contains(string(out), "busy"):
		return &daemon.Error{Code: daemon.CodeInUse, Message: dir + " is in use", Hint: "close the files, or --force detaches it"}
	case err != nil:
		return &daemon.Error{Code: daemon.CodeNotFound, Message: fmt.Sprintf("nothing of this store is mounted at %s", dir), Hint: strings.TrimSpace(string(out))}
	}
	return nil
}
