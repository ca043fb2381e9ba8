package fs

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/internal/imagetest"
)

func TestMain(m *testing.M) { os.Exit(imagetest.Main(m, jobs)) }

// rig is a library with a mount that can be made again.
type rig struct {
	t    *testing.T
	lib  *memLibrary
	opts Options
	s    *Server
}

// newRig mounts an empty library; change sets options and may be nil.
func newRig(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, lib: newMemLibrary(), opts: Options{
		Dir: t.TempDir(), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Logger: slog.New(slog.DiscardHandler),
	}}
	if change != nil {
		change(&r.opts)
	}
	if err := r.mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.s.Unmount(context.Background()); err != nil {
			t.Errorf("at the end: %v", err)
			r.s.Detach(context.Background())
		}
		if n := r.lib.handles(); n != 0 {
			t.Errorf("%d handles are open after the unmount", n)
		}
	})
	return r
}

func (r *rig) mount() (err error) {
	r.s, err = Mount(context.Background(), r.lib, r.opts)
	return err
}

// remount is what a child waits for when it opens its file again.
func (r *rig) remount() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.s.Unmount(ctx); err != nil {
		return err
	}
	return r.mount()
}

func (r *rig) path(name string) string { return filepath.Join(r.opts.Dir, name) }

// child runs a job with arguments.
func (r *rig) child(do string, args ...string) {
	r.t.Helper()
	if err := imagetest.Child(context.Background(), imagetest.Job{Do: do, Args: args}); err != nil {
		r.t.Error(err)
	}
}

// TestContract holds a mounted file to what every image must keep.
func TestContract(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range imagetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			r.lib.add(c.Name, c.Size)
			err := imagetest.Child(t.Context(), imagetest.Job{Do: "contract", Case: c.Name, Path: r.path(c.Name), Remount: r.remount})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestModel does random operations, buffered, direct and mapped, across remounts.
func TestModel(t *testing.T) {
	r := newRig(t, nil)
	for seed, size := range []int64{0, 777, 24<<20 + 4321} {
		r.lib.add("disk", size)
		err := imagetest.Child(t.Context(), imagetest.Job{Do: "model", Path: r.path("disk"), Remount: r.remount,
			ModelOptions: imagetest.ModelOptions{Seed: uint64(seed), Ops: imagetest.Ops(8000), MaxSize: size + 8<<20, Reopens: 4}})
		if err != nil {
			t.Error(err)
		}
		r.s.Invalidate("disk")
	}
}

// TestParallel lets neighbours work within one sector.
func TestParallel(t *testing.T) {
	r := newRig(t, nil)
	r.lib.add("disk", 6<<20+99)
	err := imagetest.Child(t.Context(), imagetest.Job{Do: "parallel", Path: r.path("disk"), Remount: r.remount,
		ModelOptions: imagetest.ModelOptions{Seed: 5, Ops: imagetest.Ops(12000), Workers: 6}})
	if err != nil {
		t.Error(err)
	}
}
