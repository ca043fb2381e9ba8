package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Steps of faults that take no more than a host.

func killSource(f *faulty, _ context.Context) error         { f.a.kill(); return nil }
func killDestination(f *faulty, _ context.Context) error    { f.b.kill(); return nil }
func restartSource(f *faulty, _ context.Context) error      { return f.a.again() }
func restartDestination(f *faulty, _ context.Context) error { return f.b.again() }
func bootsHere(f *faulty, ctx context.Context) error        { return f.boots(ctx, f.a) }
func bootsThere(f *faulty, ctx context.Context) error       { return f.boots(ctx, f.b) }
func linkDown(f *faulty, _ context.Context) error           { return f.link("down") }
func linkUp(f *faulty, _ context.Context) error             { return f.link("up") }
func contHere(f *faulty, ctx context.Context) error         { return f.source.cont(ctx) }
func contThere(f *faulty, ctx context.Context) error        { return f.target.cont(ctx) }

// cutFor cuts the link for a while.
func cutFor(d time.Duration) step {
	return func(f *faulty, ctx context.Context) error { return f.cut(ctx, d) }
}

// noLimit lets what is left go fast.
func noLimit(f *faulty, _ context.Context) error { return f.r.limit("") }

// crashSource and crashDestination end a QEMU as a crash does.
func crashSource(f *faulty, _ context.Context) error {
	f.source.p.end(syscall.SIGKILL)
	return nil
}

func crashDestination(f *faulty, _ context.Context) error {
	f.target.p.end(syscall.SIGKILL)
	return nil
}

// waits starts the QEMU that waits for the guest.
func waits(f *faulty, ctx context.Context) error { return f.wait(ctx, false) }

// handToNobody moves the guest to a QEMU that has gone: QEMU takes it back.
func handToNobody(f *faulty, ctx context.Context) error {
	if err := plainMigrate(ctx, f.source, f.uri(), 0); err == nil {
		return errors.New("QEMU moved the guest to nobody")
	}
	return nil
}

// handOver moves the guest to the QEMU that waits; both QEMUs say that all went well, whatever
// becomes of the disk.
func handOver(f *faulty, ctx context.Context) error { return plainMigrate(ctx, f.source, f.uri(), 0) }

// contFails checks that the guest cannot go on at the destination, and says why QEMU does not let it.
func contFails(f *faulty, ctx context.Context) error {
	err := f.target.cont(ctx)
	if err == nil {
		return errors.New("the guest goes on at the destination")
	}
	f.r.note("%v", err)
	if s := f.target.status(ctx); s == "running" {
		return fmt.Errorf("the guest is %q at the destination", s)
	}
	return nil
}

// stopped checks that QEMU has stopped a guest because its disk fails.
func stoppedHere(f *faulty, ctx context.Context) error { return f.source.becomes(ctx, "io-error") }

func stoppedThere(f *faulty, ctx context.Context) error { return f.target.becomes(ctx, "io-error") }

// tryAgain cancels a migration of QEMU's on its way.
func cancelled(f *faulty, ctx context.Context) error {
	if err := f.wait(ctx, false); err != nil {
		return err
	}
	slow := map[string]int64{"max-bandwidth": 1 << 20}
	if err := f.source.monitor.Execute(ctx, "migrate-set-parameters", slow, nil); err != nil {
		return err
	}
	if err := f.source.monitor.Execute(ctx, "migrate", map[string]string{"uri": f.uri()}, nil); err != nil {
		return err
	}
	if err := wait(ctx, time.Second); err != nil {
		return err
	}
	if err := f.source.monitor.Execute(ctx, "migrate_cancel", nil, nil); err != nil {
		return err
	}
	f.target.stop()
	f.target = nil
	return f.source.runs(ctx)
}

// cancelDriven cancels QEMU's migration behind the back of the command.
func cancelDriven(f *faulty, ctx context.Context) error {
	return f.source.monitor.Execute(ctx, "migrate_cancel", nil, nil)
}

// fillDestination leaves the destination no room until freeDestination.
func fillDestination(f *faulty, _ context.Context) error { return f.b.fill() }

func freeDestination(f *faulty, _ context.Context) error { return f.b.empty() }

// refused gives the command, which fails before it copies, with --dry-run, too.
func refused(f *faulty, ctx context.Context) error {
	for _, args := range [][]string{{"--dry-run"}, nil} {
		err := f.migrate(ctx, "", "prepare", args...)
		if err == nil {
			err = f.gaveUp(ctx)
		}
		if err != nil {
			return fmt.Errorf("%v: %w", args, err)
		}
	}
	return nil
}

// allow changes what one host lets the other do.
func allow(at, whom, role string) step {
	return func(f *faulty, _ context.Context) error {
		_, err := f.r.hosts[at].do("peer", "allow", whom, role)
		return err
	}
}

// wrongIdentity gives the destination an identity for that of nobody, until rightIdentity.
func wrongIdentity(f *faulty, _ context.Context) error {
	other := filepath.Join(f.r.dir, f.name+".other")
	if _, err := run(f.r.sealdisk, "--store", filepath.Join(other, "store"), "--home", filepath.Join(other, "home"), "init"); err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(f.b.dir, "home", name) }
	f.b.daemon.end(syscall.SIGINT)
	if err := os.Rename(at("identity"), at("identity.right")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(other, "home", "identity"), at("identity")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(other), f.b.serve())
}

func rightIdentity(f *faulty, _ context.Context) error {
	at := func(name string) string { return filepath.Join(f.b.dir, "home", name) }
	f.b.daemon.end(syscall.SIGINT)
	return errors.Join(os.Rename(at("identity.right"), at("identity")), f.b.serve())
}

// knows brings the image to the destination beforehand.
func knows(f *faulty, _ context.Context) error {
	_, err := f.b.do("pull", f.a.name+":"+f.name)
	return err
}

// takeLease takes the lease at the destination, by force.
func takeLease(f *faulty, _ context.Context) error {
	_, err := f.b.do("lease", "take", "--force", "--identity", filepath.Join(f.a.dir, "home", "identity"), f.name)
	return err
}

// dropRecipient makes the destination one that has no key of what is written from now on.
func dropRecipient(f *faulty, _ context.Context) error {
	text, err := os.ReadFile(filepath.Join(f.b.dir, "home", "recipients"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "age1") {
			_, err := f.a.do("recipients", "rm", f.name, strings.TrimSpace(line))
			return err
		}
	}
	return fmt.Errorf("no recipient in %q", text)
}

// untilArmed returns when the handover is armed.
func (f *faulty) untilArmed(ctx context.Context) error { return f.command.says(ctx, "armed") }

// verifies checks that the guest runs at the destination and has what it wrote.
func (f *faulty) verifies(ctx context.Context) error {
	if err := f.target.runs(ctx); err != nil {
		return fmt.Errorf("at the destination: %w", err)
	}
	_, err := f.target.verify(ctx)
	return err
}

// reads has the guest read what it wrote, which does not end while that is not there.
func (f *faulty) reads(context.Context) error {
	_, err := f.target.serial.Write([]byte("verify\n"))
	return err
}

// whole returns when all of the disk is at the destination.
func (f *faulty) whole(ctx context.Context) error {
	if _, err := f.b.do("fill", "--wait", f.name); err != nil {
		return err
	}
	return errors.Join(f.b.check(f.name), f.a.refuses(f.name))
}
