package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/daemon"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the daemon of the store: for peers, and for mounts",
		Description: `Runs until SIGINT or SIGTERM, then commits what was written and ends; transfers that are cut
go on when they are asked for again. All other commands, mount among them, use it while it
runs. Peers, and what they may do, can be changed meanwhile. Tells systemd when it is ready
(Type=notify); scripts/sealdisk.service is a unit.

Example: sealdisk serve --listen :7443 --mount /mnt/images`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "answer peers at `ADDRESS:PORT`"},
			&cli.StringFlag{Name: "metrics", Usage: "answer Prometheus at `ADDRESS:PORT`, to whoever asks"},
			&cli.StringFlag{Name: "mount", Usage: "show all images in `DIR`"},
			&cli.StringFlag{Name: "guests", Usage: "peers may move guests to the QEMUs whose QMP sockets are in `DIR`"},
			&cli.BoolFlag{Name: "allow-other", Usage: "let other users pass the mount; the files' modes still hold"},
			&cli.IntFlag{Name: "uid", Usage: "owner `U` of the files of --mount", Value: -1, DefaultText: "who serves"},
			&cli.IntFlag{Name: "gid", Usage: "group `G` of the files of --mount", Value: -1, DefaultText: "who serves"},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT` of the log: text or json", Value: "text"},
			&cli.DurationFlag{Name: "source-timeout", Usage: "how long readers wait for what is missing of an image that is not whole here", Value: time.Minute},
			&cli.StringFlag{Name: "cache", Usage: "`BYTES` of opened data kept in memory", Value: "128M"},
		},
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	if _, err := args(c, 0, 0); err != nil {
		return err
	}
	e := envOf(c)
	if err := e.logAs(c.String("log-format"), c.String("log-level")); err != nil {
		return err
	}
	o := e.options(c)
	o.Persistent, o.SourceTimeout = true, c.Duration("source-timeout")
	var err error
	if o.CacheBytes, err = parseSize(c.String("cache")); err != nil {
		return err
	}
	if dir := c.String("guests"); dir != "" {
		if o.Guests, err = filepath.Abs(dir); err != nil {
			return err
		}
	}
	s := &serving{
		mounting: mounting{env: e}, listen: c.String("listen"), metrics: c.String("metrics"),
		shows: daemon.MountRequest{AllowOther: c.Bool("allow-other"), UID: c.Int("uid"), GID: c.Int("gid")},
	}
	if dir := c.String("mount"); dir != "" {
		if s.dir, err = filepath.Abs(dir); err != nil {
			return err
		}
	}
	return s.run(c.Context, o)
}

// logAs makes the log one of records in JSON, or of text.
func (e *env) logAs(format, level string) error {
	var at slog.Level
	if err := at.UnmarshalText([]byte(level)); err != nil {
		return usage("--log-level %q is not debug, info, warn or error", level)
	}
	switch format {
	case "text":
	case "json":
		e.log = slog.New(slog.NewJSONHandler(e.err, &slog.HandlerOptions{Level: at}))
	default:
		return usage("--log-format %q is not text or json", format)
	}
	return nil
}

// serving is a serve command: a daemon that ends when it is told to.
type serving struct {
	mounting
	listen, metrics string
	shows           daemon.MountRequest // what --mount is to be like
}

func (s *serving) run(ctx context.Context, o daemon.Options) (err error) {
	s.conn, err = daemon.Connect(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if !errors.Is(err, errLeft) {
			err = errors.Join(err, s.conn.Close())
		}
	}()
	if !s.conn.Local() {
		return &daemon.Error{Code: daemon.CodeInUse, Message: "another process serves the store", Hint: "sealdisk stats names it; umount and end that one first"}
	}
	if err := s.conn.Unlock(); err != nil {
		return err
	}
	again := make(chan os.Signal, 1) // signals after the one that ends ctx
	signal.Notify(again, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(again)
	quiet, failed, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer quiet()
	_, _ = systemd.SdNotify(false, systemd.SdNotifyReady) // no systemd, no message
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	_, _ = systemd.SdNotify(false, systemd.SdNotifyStopping)
	quiet()
	return errors.Join(err, s.endMounts(ctx, again))
}

// open begins to listen and mounts. Quiet ends the listening.
func (s *serving) open(ctx context.Context) (quiet func(), failed <-chan error, err error) {
	failures := make(chan error, 2)
	listening, stop := context.WithCancel(context.WithoutCancel(ctx))
	var all sync.WaitGroup
	quiet = func() {
		stop()
		all.Wait()
	}
	listen := func(flag, address string, answer func(context.Context, net.Listener) error) error {
		if address == "" {
			return nil
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
		all.Go(func() {
			if err := answer(listening, l); err != nil {
				failures <- fmt.Errorf("--%s: %w", flag, err)
			}
		})
		s.say("%s: listening at %s", flag, l.Addr())
		return nil
	}
	err = listen("listen", s.listen, s.conn.Listen)
	if err == nil {
		err = listen("metrics", s.metrics, s.conn.Metrics)
	}
	if err == nil && s.dir != "" {
		s.shows.Dir = s.dir
		if err = s.conn.Call(ctx, daemon.OpMount, s.shows, nil, nil, s.show); err == nil {
			s.say("mounted at %s", s.dir)
		}
	}
	if err != nil {
		quiet()
	}
	return quiet, failures, err
}

// endMounts ends all mounts of the daemon, as the mount command does.
func (s *serving) endMounts(ctx context.Context, again <-chan os.Signal) error {
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	s.conn.Refuse()
	go func() { ended <- s.conn.Wait(life, "") }()
	select {
	case <-again: // the signal that ended ctx comes here too
	default:
	}
	return s.end(life, ended, again)
}
