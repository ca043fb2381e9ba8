package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
	"github.com/sealdisk/sealdisk/internal/daemon"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// host is a store with its daemon. All that it does it is asked for over the socket that the commands use.
type host struct {
	name, namespace string
	listen          string // where it answers peers
	dir, mnt        string
	server          *measure.Server
	api             *daemon.Client

	Recipients []string `json:"recipients"` // to whom an image is sealed that it is to open
}

// makeHosts starts the daemons and makes the source and each destination peers of each other.
func (e *evaluation) makeHosts(ctx context.Context) (err error) {
	if e.source, err = e.makeHost(ctx, "source", near, "0.0.0.0:7443"); err != nil {
		return err
	}
	for way, sink := range [page.Ways]struct{ namespace, listen, source string }{
		page.Loopback: {near, "127.0.0.1:7444", "127.0.0.1:7443"},
		page.Gigabit:  {far, addresses[far] + ":7443", addresses[near] + ":7443"},
	} {
		h, err := e.makeHost(ctx, page.Way(way).String(), sink.namespace, sink.listen)
		if err != nil {
			return err
		}
		e.sinks[way] = h
		if err := errors.Join(meet(ctx, e.source, h, sink.listen), meet(ctx, h, e.source, sink.source)); err != nil {
			return err
		}
	}
	return nil
}

func (e *evaluation) makeHost(ctx context.Context, name, namespace, listen string) (*host, error) {
	h := &host{name: name, namespace: namespace, listen: listen, dir: e.path(name)}
	h.mnt = filepath.Join(h.dir, "mnt")
	if err := os.MkdirAll(h.mnt, 0o700); err != nil {
		return nil, err
	}
	made, err := e.command(ctx, h, "init", "--json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(made), h); err != nil {
		return nil, err
	}
	line := e.line(h, "serve", "--listen", listen, "--mount", h.mnt)
	if h.server, err = e.commands.Start(ctx, nil, line[0], line[1:]...); err != nil {
		return nil, err
	}
	mounted := func() bool { return slices.Contains(measure.MountsBelow(e.dir), h.mnt) }
	if err := h.server.Until(ctx, time.Minute, mounted); err != nil {
		h.end()
		return nil, err
	}
	if h.api = daemon.Running(ctx, h.store()); h.api == nil {
		h.end()
		return nil, errors.New("nobody answers at the socket of " + name)
	}
	return h, nil
}

func (h *host) store() string           { return filepath.Join(h.dir, "store") }
func (h *host) file(name string) string { return filepath.Join(h.mnt, name) }
func (h *host) end()                    { h.server.End(nil) }

// line is a command line of sealdisk as that host runs it.
func (e *evaluation) line(h *host, args ...string) []string {
	return e.network.in(h.namespace, append([]string{e.sealdisk, "--quiet", "--store", h.store(), "--home", filepath.Join(h.dir, "home")}, args...)...)
}

// command runs sealdisk as that host.
func (e *evaluation) command(ctx context.Context, h *host, args ...string) (string, error) {
	line := e.line(h, args...)
	return e.run(ctx, line[0], line[1:]...)
}

// meet makes there, who answers at address, a peer of here that may do everything.
func meet(ctx context.Context, here, there *host, address string) error {
	var is daemon.Peers
	if err := there.api.Call(ctx, daemon.OpPeers, daemon.Nothing{}, nil, &is, nil); err != nil {
		return err
	}
	p := daemon.Peer{Name: there.name, Address: address, Fingerprint: is.Fingerprint}
	if err := here.api.Call(ctx, daemon.OpPeerAdd, p, nil, nil, nil); err != nil {
		return err
	}
	return here.api.Call(ctx, daemon.OpPeerAllow, daemon.PeerAllowRequest{Name: there.name, Role: "host"}, nil, nil, nil)
}

// ask has a daemon do something and gives how long it took.
func (h *host) ask(ctx context.Context, op string, request, result any) (time.Duration, error) {
	began := time.Now()
	err := h.api.Call(ctx, op, request, nil, result, nil)
	return time.Since(began), err
}

// pull brings an image from the source.
func (h *host) pull(ctx context.Context, name string, lazy bool) (daemon.Pulled, time.Duration, error) {
	var got daemon.Pulled
	took, err := h.ask(ctx, daemon.OpPull, daemon.PullRequest{Peers: []string{"source"}, Remote: name, Name: name, Lazy: lazy}, &got)
	return got, took, err
}

// remove drops an image, and gives its space back. A file of a mount that was just closed is in use a little longer.
func (h *host) remove(ctx context.Context, name string) error {
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := h.ask(ctx, daemon.OpRemove, daemon.NameRequest{Name: name, Force: true}, nil)
		if err == nil {
			break
		}
		var failure *daemon.Error
		if !errors.As(err, &failure) || failure.Code != daemon.CodeInUse || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, err := h.ask(ctx, daemon.OpCollect, daemon.Nothing{}, nil)
	return err
}
