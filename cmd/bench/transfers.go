package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
)

// A transfer seals the image and gives it back. Both give the largest resident set of a process of
// ours, in bytes, or 0.
type transfer struct {
	name, needs string
	reset       func(context.Context) error // makes what seal needs, not measured; may be nil
	seal        func(context.Context) (int64, error)
	open        func(context.Context) (int64, error)
	header      func(context.Context) error // what seal does besides, however little data there is; may be nil
	parts       []string                    // files and folders that hold what was sealed
}

// raw is where every transfer writes the image that it opens.
func (b *bench) raw() string { return b.path("out.raw") }

// transfers measures import and export, which follow each other for each contender.
func (b *bench) transfers(ctx context.Context) error {
	image, allocated, err := b.makeImage(ctx)
	if err != nil {
		return err
	}
	defer os.Remove(image)
	var list []*transfer
	for _, t := range b.allTransfers(image) {
		if b.have(t.needs, t.name) {
			list = append(list, t)
		}
	}
	defer func() {
		for _, t := range list {
			t.remove()
		}
	}()
	failed := map[*transfer]bool{}
	for b.round = range b.rounds {
		for _, half := range []func(context.Context, *transfer, string, int64, bool) error{b.seal, b.open} {
			for _, t := range list {
				if failed[t] {
					continue
				}
				if err := half(ctx, t, image, allocated, b.round == 0); err != nil {
					failed[t] = true
					b.fail("transfer by "+t.name, err)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
	}
	return nil
}

func (t *transfer) remove() error {
	var errs []error
	for _, p := range t.parts {
		errs = append(errs, os.RemoveAll(p))
	}
	return errors.Join(errs...)
}

func (b *bench) seal(ctx context.Context, t *transfer, image string, allocated int64, _ bool) error {
	if err := t.remove(); err != nil {
		return err
	}
	if t.reset != nil {
		if err := t.reset(ctx); err != nil {
			return err
		}
	}
	if err := warm(image); err != nil {
		return err
	}
	var took time.Duration
	peak := int64(0)
	err := persist(func() (err error) { // the time of a failed attempt does not count
		took, err = b.timed(func() (err error) {
			peak, err = t.seal(ctx)
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	b.add("import/rate", t.name, float64(allocated)/1e6/took.Seconds())
	header, err := b.headerTime(ctx, t)
	if err != nil {
		return err
	}
	if header < took { // else the machine was too uneven to tell
		b.add("import/data", t.name, float64(allocated)/1e6/(took-header).Seconds())
	}
	if peak > 0 {
		b.results.Peak("memory/import", t.name, float64(peak)/mib)
	}
	size := int64(0)
	for _, p := range t.parts {
		n, err := stored(p, "reserve")
		if err != nil {
			return err
		}
		size += n
	}
	b.results.Add("import/stored", t.name, float64(size)/1e6)
	return nil
}

// headerTime is what a transfer takes without data, as far as that is known.
func (b *bench) headerTime(ctx context.Context, t *transfer) (took time.Duration, err error) {
	if t.header == nil {
		return 0, nil
	}
	err = persist(func() error {
		took, err = b.timed(func() error { return t.header(ctx) })
		return err
	})
	return took, err
}

// open measures the way back, and in the first round whether it gives the same bytes.
func (b *bench) open(ctx context.Context, t *transfer, image string, allocated int64, check bool) error {
	if !b.wanted("export") {
		return nil
	}
	defer os.Remove(b.raw())
	peak := int64(0)
	took, err := b.timed(func() (err error) {
		peak, err = t.open(ctx)
		return err
	})
	if err != nil {
		return err
	}
	b.add("export/rate", t.name, float64(allocated)/1e6/took.Seconds())
	if peak > 0 {
		b.results.Peak("memory/export", t.name, float64(peak)/mib)
	}
	if check {
		_, err = b.command(ctx, "cmp", image, b.raw())
	}
	return err
}

func (b *bench) allTransfers(image string) []*transfer {
	return []*transfer{
		b.sealdiskTransfer(image, report.None, "none"), b.sealdiskTransfer(image, report.Zstd, "zstd"),
		b.luksTransfer(image, report.LUKSQcow2, "qcow2"), b.luksTransfer(image, report.LUKSRaw, "luks"),
		b.resticTransfer(image, report.ResticNone, "off"), b.resticTransfer(image, report.Restic, "auto"),
		b.gocryptfsTransfer(image), b.opensslTransfer(image), b.cpTransfer(image),
	}
}

func (b *bench) sealdiskTransfer(image, name, compress string) *transfer {
	dir := b.path("transfer-" + compress)
	s := &sealdiskTarget{server: server{b: b, dir: dir}, env: sealdiskEnv(dir)}
	return &transfer{
		name: name, parts: []string{dir},
		reset: func(ctx context.Context) error {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			return s.reset(ctx)
		},
		seal: func(ctx context.Context) (int64, error) {
			return s.profiledCommand(ctx, "import/"+compress, "import", "--format", "raw", "--compress", compress, image, diskName)
		},
		open: func(ctx context.Context) (int64, error) {
			return s.profiledCommand(ctx, "export/"+compress, "export", diskName, b.raw())
		},
	}
}

func (b *bench) luksTransfer(image, name, format string) *transfer {
	file := b.path("transfer." + format)
	return &transfer{
		name: name, needs: "qemu-img", parts: []string{file},
		header: func(ctx context.Context) error {
			empty := b.path("empty." + format)
			return errors.Join(b.emptyLUKS(ctx, format, empty, b.image), os.Remove(empty))
		},
		seal: func(ctx context.Context) (int64, error) { return 0, b.toLUKS(ctx, format, image, file) },
		open: func(ctx context.Context) (int64, error) { return 0, b.fromLUKS(ctx, format, file, b.raw()) },
	}
}

// resticTransfer backs the file up into a repository; restic writes holes as zeros.
func (b *bench) resticTransfer(image, name, compression string) *transfer {
	repo := b.path("restic-" + compression)
	restic := func(ctx context.Context, args ...string) (int64, error) {
		_, peak, err := b.runEnv(ctx, []string{"RESTIC_PASSWORD=" + secret, "RESTIC_REPOSITORY=" + repo}, "restic",
			append([]string{"--quiet", "--no-cache", "--compression", compression}, args...)...)
		return peak, err
	}
	return &transfer{
		name: name, needs: "restic", parts: []string{repo},
		reset: func(ctx context.Context) error {
			_, err := restic(ctx, "init")
			return err
		},
		seal: func(ctx context.Context) (int64, error) { return restic(ctx, "backup", image) },
		open: func(ctx context.Context) (int64, error) {
			target := b.path("restored")
			peak, err := restic(ctx, "restore", "latest", "--target", target)
			if err != nil {
				return 0, err
			}
			// It restores the whole path; the rename is part of no other contender, and takes no time.
			err = os.Rename(filepath.Join(target, strings.TrimPrefix(image, "/")), b.raw())
			return peak, errors.Join(err, os.RemoveAll(target))
		},
	}
}

func (b *bench) gocryptfsTransfer(image string) *transfer {
	g := &gocryptfsTarget{server{b: b, dir: b.path("transfer-gocryptfs")}}
	mounted := func(ctx context.Context, from, to string) (int64, error) {
		err := g.Start(ctx)
		if err == nil {
			_, err = b.command(ctx, "cp", from, to)
		}
		return 0, errors.Join(err, g.Stop(ctx))
	}
	return &transfer{
		name: report.Gocryptfs, needs: "gocryptfs", parts: []string{g.cipher()},
		reset: g.format,
		seal:  func(ctx context.Context) (int64, error) { return mounted(ctx, image, g.Path()) },
		open:  func(ctx context.Context) (int64, error) { return mounted(ctx, g.Path(), b.raw()) },
	}
}

// opensslTransfer enciphers without authentication, holes too.
func (b *bench) opensslTransfer(image string) *transfer {
	file := b.path("transfer.openssl")
	enc := func(ctx context.Context, args ...string) (int64, error) {
		_, err := b.command(ctx, "openssl", append([]string{"enc", "-aes-256-ctr", "-pbkdf2", "-pass", "pass:" + secret}, args...)...)
		return 0, err
	}
	return &transfer{
		name: report.OpenSSL, needs: "openssl", parts: []string{file},
		seal: func(ctx context.Context) (int64, error) { return enc(ctx, "-in", image, "-out", file) },
		open: func(ctx context.Context) (int64, error) { return enc(ctx, "-d", "-in", file, "-out", b.raw()) },
	}
}

func (b *bench) cpTransfer(image string) *transfer {
	file := b.path("transfer.cp")
	cp := func(ctx context.Context, from, to string) (int64, error) {
		_, err := b.command(ctx, "cp", from, to)
		return 0, err
	}
	return &transfer{
		name: report.Cp, needs: "cp", parts: []string{file},
		seal: func(ctx context.Context) (int64, error) { return cp(ctx, image, file) },
		open: func(ctx context.Context) (int64, error) { return cp(ctx, file, b.raw()) },
	}
}
