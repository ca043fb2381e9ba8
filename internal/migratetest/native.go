package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sealdisk/sealdisk/transfer/qemu"
)

// native is QEMU's own way: a file with LUKS at either host, the disk by a mirror to a server for network
// block devices, and then the memory, both over TLS. It takes the guest's pages and the copy of the
// disk, which are all plain at the source and are sealed anew at the destination.
type native struct {
	r        *rig
	from, to *host
	name     string
	image    string
	rate     int64
	qcow2    bool // has the LUKS; else the file is nothing else
	blocking bool // the guest's writes wait for the mirror
	target   *vm
}

const (
	nbdPort    = "10809"
	ramPort    = "10810"
	keyLength  = 32
	quickly    = "iter-time=10" // for the passphrase: nobody guesses this one
	mirrorNode = "mirror"
	pollEvent  = 5 * time.Millisecond
)

// errNotInStep: the mirror does not catch up with the guest.
var errNotInStep = errors.New("the mirror never was in step with the guest")

// mirrorTimeout is how long the mirror may take to be in step with the guest.
const mirrorTimeout = 60 * time.Second

func (n *native) file(h *host) string { return filepath.Join(h.dir, n.name+".luks") }
func (n *native) key() string         { return filepath.Join(n.r.dir, "luks.key") }

func (n *native) format() string {
	if n.qcow2 {
		return "qcow2"
	}
	return "luks"
}

// sealed gives the arguments by which qemu-img makes such a file.
func (n *native) sealed() []string {
	options := "key-secret=key," + quickly
	if n.qcow2 {
		options = "encrypt.format=luks,encrypt.key-secret=key,encrypt." + quickly
	}
	return []string{"--object", "secret,id=key,file=" + n.key(), "-o", options}
}

func (n *native) machine(h *host, endpoint, incoming string) machine {
	return machine{
		name: n.name + "-" + h.name, disks: []string{n.file(h)}, rate: n.rate, seed: seedOf(n.name), incoming: incoming, format: n.format(), key: n.key(), at: h,
		more: []string{"-object", "tls-creds-x509,id=tls,endpoint=" + endpoint + ",verify-peer=on,dir=" + n.r.dir},
	}
}

func (n *native) seal(context.Context) (machine, error) {
	if _, err := os.Stat(n.key()); err != nil {
		if err := errors.Join(os.WriteFile(n.key(), []byte(strings.Repeat("k", keyLength)), 0o600), writeCertificates(n.r.dir, n.to.address)); err != nil {
			return machine{}, err
		}
	}
	return n.machine(n.from, "client", ""), n.put(n.from, "data", "convert", "-t", "none", "-f", "raw", "-O", n.format())
}

// put makes a host's file from one that qemu-img makes once, as its passphrase takes seconds. Nothing
// of it is left to be written back meanwhile.
func (n *native) put(h *host, what string, command ...string) error {
	template := filepath.Join(n.r.dir, what+"."+n.format())
	if _, err := os.Stat(template); err != nil {
		if err := n.make(template, what == "data", command); err != nil {
			return err
		}
	}
	_, err := run("cp", "--sparse=auto", template, n.file(h))
	if err == nil {
		_, err = run("sync", n.file(h))
	}
	return err
}

// make makes a file, with the data or empty.
func (n *native) make(file string, data bool, command []string) error {
	i, err := os.Stat(n.image)
	if err != nil {
		return err
	}
	args := slices.Concat([]string{"qemu-img"}, command, n.sealed())
	if data {
		args = append(args, n.image, file)
	} else {
		args = append(args, file, fmt.Sprint(i.Size()))
	}
	for range 10 { // it measures its own speed, and fails at times on a busy machine
		if _, err = run(args...); err == nil {
			return nil
		}
	}
	return errors.Join(err, os.RemoveAll(file))
}

// await makes an empty disk at the destination and the QEMU that waits there, and serves the disk.
func (n *native) await(ctx context.Context) error {
	if err := n.put(n.to, "empty", "create", "-q", "-f", n.format()); err != nil {
		return err
	}
	var err error
	if n.target, err = n.r.startVM(ctx, n.machine(n.to, "server", "defer")); err != nil {
		return err
	}
	return commands(ctx, n.target.monitor, []command{
		{"nbd-server-start", object{"addr": object{"type": "inet", "data": object{"host": n.to.address, "port": nbdPort}}, "tls-creds": "tls"}},
		{"block-export-add", object{"type": "nbd", "id": mirrorNode, "node-name": "disk0", "name": "disk0", "writable": true}},
		{"migrate-set-parameters", object{"tls-creds": "tls"}},
		{"migrate-incoming", object{"uri": "tcp:" + n.to.address + ":" + ramPort}},
	})
}

// carry mirrors the disk, and moves the memory once the mirror is in step.
func (n *native) carry(ctx context.Context, source *vm) (*vm, error) {
	mode := "background"
	if n.blocking {
		mode = "write-blocking"
	}
	err := commands(ctx, source.monitor, []command{
		{"blockdev-add", object{"node-name": mirrorNode, "driver": "nbd", "server": object{"type": "inet", "host": n.to.address, "port": nbdPort}, "export": "disk0", "tls-creds": "tls",
			"discard": "unmap", "detect-zeroes": "unmap"}}, // zeros do not go over the link
		{"blockdev-mirror", object{"job-id": mirrorNode, "device": "disk0", "target": mirrorNode, "sync": "full", "granularity": 4096, "copy-mode": mode}},
		{"migrate-set-parameters", object{"tls-creds": "tls"}},
	})
	if err != nil {
		return nil, err
	}
	inStep, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	for source.when("BLOCK_JOB_READY").IsZero() {
		if err := wait(inStep, pollEvent); err != nil {
			if !source.when("BLOCK_JOB_ERROR").IsZero() || ctx.Err() != nil {
				return nil, fmt.Errorf("mirror: %w", err)
			}
			return nil, fmt.Errorf("%w, for %v", errNotInStep, mirrorTimeout)
		}
	}
	report, err := source.monitor.Migrate(ctx, qemu.Options{
		URI: "tcp:" + n.to.address + ":" + ramPort, Downtime: downtime,
		Paused: func(ctx context.Context) error { return n.cut(ctx, source) },
	})
	n.r.note("%+v", report)
	return n.target, err
}

// cut ends the mirror while the guest stands still: all of the disk is there then, and nobody but the
// QEMU there writes it.
func (n *native) cut(ctx context.Context, source *vm) error {
	if err := source.monitor.Execute(ctx, "block-job-cancel", object{"device": mirrorNode}, nil); err != nil {
		return err
	}
	if err := source.happened(ctx, "BLOCK_JOB_COMPLETED"); err != nil {
		return err
	}
	return n.target.monitor.Execute(ctx, "nbd-server-stop", nil, nil)
}

func (n *native) remove(_ context.Context, source, _ *vm) error {
	for _, v := range []*vm{source, n.target} {
		if v != nil { // it would wait for the server that has gone
			v.p.end(syscall.SIGKILL)
		}
	}
	for _, h := range []*host{n.from, n.to} {
		if err := os.Remove(n.file(h)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

type object = map[string]any

// command is one of QMP.
type command struct {
	name      string
	arguments object
}

func commands(ctx context.Context, m *qemu.Monitor, list []command) error {
	for _, c := range list {
		if err := m.Execute(ctx, c.name, c.arguments, nil); err != nil {
			return err
		}
	}
	return nil
}
