package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
)

var unixTime = time.Unix(1_600_000_000, 0)

// TestErrnos goes through the table with wrapped errors, alone and mixed.
func TestErrnos(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{image.ErrReadOnly, syscall.EROFS},
		{image.ErrNotHolder, syscall.EROFS},
		{image.ErrShrink, syscall.EPERM},
		{image.ErrTooLarge, syscall.EFBIG},
		{image.ErrInUse, syscall.EBUSY},
		{image.ErrClosed, syscall.EIO},
		{image.ErrRolledBack, syscall.EIO},
		{blockstore.ErrNoSpace, syscall.ENOSPC},
		{blockstore.ErrNotFound, syscall.EIO},
		{blockstore.ErrCorrupt, syscall.EIO},
		{crypto.ErrAuth, syscall.EIO},
		{ErrNoImage, syscall.ENOENT},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.EIO},
		{fs.ErrNotExist, syscall.EIO}, // a file of the store, never "no such image"
		{errors.New("anything"), syscall.EIO},
		{errors.Join(ErrNoImage, crypto.ErrAuth), syscall.EIO},
		{errors.Join(context.Canceled, blockstore.ErrCorrupt), syscall.EIO},
	} {
		if got := errnoOf(fmt.Errorf("reading: %w", c.err)); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 1<<20)
	r.lib.add("disk@one", 1<<20)
	r.child("refusals", r.opts.Dir)
}

func TestListing(t *testing.T) {
	r := newRig(t, func(o *Options) { o.UID, o.GID, o.AllowOther = 12, 34, true })
	names := []string{}
	for i := range 300 {
		for _, name := range []string{fmt.Sprintf("disk %03d", i), fmt.Sprintf("disk %03d@ß", i)} {
			if _, err := r.lib.add(name, 1<<20).WriteAt(t.Context(), []byte{1}, 9); err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
	}
	r.child("listing", append([]string{r.opts.Dir}, names...)...)
}

func TestReadOnlyMount(t *testing.T) {
	r := newRig(t, func(o *Options) { o.ReadOnly = true })
	r.lib.add("disk", 1<<20)
	for _, do := range []string{"truncate", "fill"} {
		path := r.opts.Dir
		if do == "fill" {
			path = r.path("disk")
		}
		if err := childError(do, path, "x"); err == nil || !strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("%s: %v, want EROFS", do, err)
		}
	}
	r.child("expect", r.path("disk"), "\x00")
}

func TestFallocate(t *testing.T) {
	r := newRig(t, nil)
	d := r.lib.add("disk", 1<<20)
	r.child("fallocate", r.opts.Dir)
	if d.Size() != 1<<20+4096 {
		t.Errorf("size is %d", d.Size())
	}
}

func TestTruncate(t *testing.T) {
	r := newRig(t, nil)
	d := r.lib.add("disk", 1<<20)
	r.child("truncate", r.opts.Dir)
	if d.Size() != 1<<20+9 {
		t.Errorf("size is %d", d.Size())
	}
}

func TestLocks(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 1<<20)
	r.child("locks", r.opts.Dir)
}

// TestSync counts flushes: fsync, fdatasync and each synchronous write make at least one, a close none.
func TestSync(t *testing.T) {
	r := newRig(t, nil)
	d := r.lib.add("disk", 1<<20)
	r.child("fill", r.path("disk"), "x")
	if _, n := d.counts(); n != 0 {
		t.Errorf("%d flushes after a close", n)
	}
	r.child("sync", r.opts.Dir)
	if _, n := d.counts(); n < 5 {
		t.Errorf("%d flushes, want 5", n)
	}
	r.child("read", r.path("disk"))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closes != 6 {
		t.Errorf("%d closes, want 6", d.closes)
	}
}

// TestCloseError shows that close(2) waits for Closing and returns its error.
func TestCloseError(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 1<<20).failWith(func(op string, _ int64) error {
		if op == "close" {
			return blockstore.ErrNoSpace
		}
		return nil
	})
	if err := childError("fill", r.path("disk"), "x"); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("close: %v, want ENOSPC", err)
	}
}

// TestFailures shows that a disk's errors are EIO and that the log names image and place.
func TestFailures(t *testing.T) {
	var log bytes.Buffer
	r := newRig(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	r.lib.add("disk", 1<<20).failWith(func(op string, off int64) error {
		return fmt.Errorf("a frame of the segment: %w", crypto.ErrAuth)
	})
	r.child("fail", r.opts.Dir)
	if err := r.s.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"op=read image=disk offset=8192", "op=write image=disk offset=12288", "op=fsync image=disk", "a frame of the segment"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
}

// TestFaultLogIsBounded shows that a flood of errors is not a flood of lines, and that the loss is told.
func TestFaultLogIsBounded(t *testing.T) {
	var log bytes.Buffer
	f := newFaults(slog.New(slog.NewTextHandler(&log, nil)))
	for i := range 10_000 {
		f.status("read", "disk", int64(i), crypto.ErrAuth)
	}
	if n := strings.Count(log.String(), "\n"); n < 16 || n > 30 {
		t.Errorf("%d lines for 10000 errors", n)
	}
	if f.dropped.Load() < 9000 {
		t.Errorf("%d dropped", f.dropped.Load())
	}
}

// TestDirectWriteDropsPages lets a cached read begin and end while a direct write
// is under way: the kernel has dropped the page before the write and does not again.
func TestDirectWriteDropsPages(t *testing.T) {
	r := newRig(t, nil)
	d := r.lib.add("disk", 4096)
	read := make(chan struct{}, 1)
	d.gateWith(func(op string) {
		if op == "write" {
			r.lib.add("begun", 1)
			<-read
		} else {
			select {
			case read <- struct{}{}:
			default:
			}
		}
	})
	r.child("race", r.opts.Dir)
}

// TestPagesAreKept shows that a second open reads from the page cache, until the
// image changed behind the kernel and Invalidate said so.
func TestPagesAreKept(t *testing.T) {
	r := newRig(t, nil)
	d := r.lib.add("disk", 1<<20)
	r.child("fill", r.path("disk"), "a")
	r.child("expect", r.path("disk"), "a")
	before, _ := d.counts()
	r.child("expect", r.path("disk"), "a")
	if after, _ := d.counts(); after != before {
		t.Errorf("%d reads of what was cached", after-before)
	}
	if _, err := d.WriteAt(t.Context(), bytes.Repeat([]byte("b"), 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	r.s.Invalidate("disk")
	r.child("expect", r.path("disk"), "b")
}

// TestNames follows an image through a new size, a new name and its end.
func TestNames(t *testing.T) {
	r := newRig(t, nil)
	d := r.lib.add("disk", 1<<20)
	r.child("fill", r.path("disk"), "a")
	if err := d.Resize(t.Context(), 2<<20); err != nil {
		t.Fatal(err)
	}
	r.s.Invalidate("disk")
	r.child("fill", r.path("disk"), "b")
	if reads, _ := d.counts(); d.sector(511)[0] != 'b' {
		t.Errorf("the new part was not written (%d reads)", reads)
	}
	r.lib.rename("disk", "other")
	r.s.Invalidate("disk")
	r.child("expect", r.path("other"), "b")
	if err := childError("expect", r.path("disk"), "b"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("the old name: %v, want ENOENT", err)
	}
	r.lib.rename("other", "")
	r.s.Invalidate("other")
	if err := childError("expect", r.path("other"), "b"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a removed image: %v, want ENOENT", err)
	}
}
