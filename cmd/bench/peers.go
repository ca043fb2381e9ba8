package main

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
)

// secret is the password of all peers; it protects nothing.
const secret = "bench-password"

// luksSecret and iterTime: QEMU spends its default two seconds on each derivation of a key; a tenth
// of that keeps it out of the figures.
const (
	luksSecret = "secret,id=s,data=" + secret
	iterTime   = "200"
)

// A gocryptfsTarget is a file in a gocryptfs.
type gocryptfsTarget struct{ server }

func (t *gocryptfsTarget) Name() string { return report.Gocryptfs }
func (t *gocryptfsTarget) Path() string { return t.mnt() + "/disk" }

func (t *gocryptfsTarget) passfile() string { return t.dir + "/pass" }
func (t *gocryptfsTarget) cipher() string   { return t.dir + "/cipher" }

// format makes an empty file system.
func (t *gocryptfsTarget) format(ctx context.Context) error {
	if err := errors.Join(os.RemoveAll(t.cipher()), os.MkdirAll(t.cipher(), 0o700), os.MkdirAll(t.mnt(), 0o700)); err != nil {
		return err
	}
	if err := os.WriteFile(t.passfile(), []byte(secret+"\n"), 0o600); err != nil {
		return err
	}
	_, err := t.b.command(ctx, "gocryptfs", "-q", "-init", "-scryptn", "12", "-passfile", t.passfile(), t.cipher())
	return err
}

func (t *gocryptfsTarget) Create(ctx context.Context, source string, size int64) error {
	if err := t.format(ctx); err != nil {
		return err
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	var err error
	if source == "" {
		_, err = t.b.command(ctx, "truncate", "-s", strconv.FormatInt(size, 10), t.Path())
	} else {
		_, err = t.b.command(ctx, "cp", source, t.Path())
	}
	return errors.Join(err, t.Stop(ctx))
}

func (t *gocryptfsTarget) Start(ctx context.Context) error {
	return t.started(t.b.start(ctx, t.mnt(), nil, "gocryptfs", "-q", "-fg", "-passfile", t.passfile(), t.cipher(), t.mnt()))
}

// A qemuTarget is a FUSE export of qemu-storage-daemon. Its mount point is a file.
type qemuTarget struct {
	server
	format string // qcow2, with LUKS in it, or luks
}

func (t *qemuTarget) Name() string {
	if t.format == "qcow2" {
		return report.LUKSQcow2
	}
	return report.LUKSRaw
}

func (t *qemuTarget) Path() string  { return t.mnt() + "/disk" }
func (t *qemuTarget) image() string { return t.dir + "/image" }

func (t *qemuTarget) Create(ctx context.Context, source string, size int64) error {
	if err := os.WriteFile(t.Path(), nil, 0o600); err != nil {
		return err
	}
	return persist(func() error {
		if source != "" {
			return t.b.toLUKS(ctx, t.format, source, t.image())
		}
		return t.b.emptyLUKS(ctx, t.format, t.image(), size)
	})
}

// emptyLUKS makes an image without data.
func (b *bench) emptyLUKS(ctx context.Context, format, image string, size int64) error {
	_, err := b.command(ctx, "qemu-img", append([]string{"create", "-q", "-f", format, "--object", luksSecret},
		append(luksOptions(format), image, strconv.FormatInt(size, 10))...)...)
	return err
}

// persist repeats what makes a LUKS image. QEMU first counts how many derivations fit into iterTime,
// and gives up now and then because the kernel counts its processor time too coarsely.
func persist(f func() error) error {
	var err error
	for range 10 {
		if err = f(); err == nil || !strings.Contains(err.Error(), "accurate CPU usage") {
			break
		}
	}
	return err
}

func luksOptions(format string) []string {
	if format == "qcow2" {
		return []string{"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=" + iterTime}
	}
	return []string{"-o", "key-secret=s,iter-time=" + iterTime}
}

// toLUKS seals a raw file as qemu-img does by default.
func (b *bench) toLUKS(ctx context.Context, format, source, image string) error {
	_, err := b.command(ctx, "qemu-img", append([]string{"convert", "-f", "raw", "-O", format, "--object", luksSecret},
		append(luksOptions(format), source, image)...)...)
	return err
}

// fromLUKS is the way back.
func (b *bench) fromLUKS(ctx context.Context, format, image, raw string) error {
	option := "driver=luks,key-secret=s,file.filename=" + image
	if format == "qcow2" {
		option = "driver=qcow2,encrypt.key-secret=s,file.filename=" + image
	}
	_, err := b.command(ctx, "qemu-img", "convert", "-O", "raw", "--object", luksSecret, "--image-opts", option, raw)
	return err
}

func (t *qemuTarget) Start(ctx context.Context) error {
	node := "driver=luks,node-name=disk,file=file,key-secret=s"
	if t.format == "qcow2" {
		node = "driver=qcow2,node-name=disk,file=file,encrypt.format=luks,encrypt.key-secret=s"
	}
	return t.started(t.b.start(ctx, t.Path(), nil, "qemu-storage-daemon",
		"--object", luksSecret,
		"--blockdev", "driver=file,node-name=file,filename="+t.image(),
		"--blockdev", node,
		"--export", "type=fuse,id=export,node-name=disk,mountpoint="+t.Path()+",writable=on"))
}

// Stop unmounts the export; the process stays then and is told to end.
func (t *qemuTarget) Stop(context.Context) error {
	if t.d == nil {
		return nil
	}
	if err := t.d.Cmd.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	if err := t.d.Wait(2 * time.Minute); err != nil {
		return err
	}
	t.b.forget(t.d)
	t.d = nil
	return nil
}
