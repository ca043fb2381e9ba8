package crashtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/fs/powercut"
)

// disk is the file system beneath the store and the host directory.
type disk struct {
	dir   string
	fs    *powercut.FS
	mount *powercut.Mount
}

func (d *disk) plugIn() (err error) {
	d.mount, err = d.fs.Mount(d.dir)
	return err
}

func (d *disk) unplug() error {
	if d.mount == nil {
		return nil
	}
	if err := d.mount.Unmount(); err != nil {
		return fmt.Errorf("unmount the disk: %w", err)
	}
	d.mount = nil
	return nil
}

// future is what may be found after a cut.
type future struct {
	before *powercut.FS // with all that was written
	seeds  []uint64
	disks  []*powercut.FS
	may    states
	names  *names
}

// cut cuts the power beneath a daemon that runs, in several ways at one moment, and kills it.
func (w *world) cut(d *disk, ways int) (*future, error) {
	f := &future{before: d.fs.Synced(), names: w.names.copy()}
	now := w.model.freeze() // acknowledged before the cut, so durable
	for range ways {
		seed := w.r.Uint64()
		f.seeds = append(f.seeds, seed)
		f.disks = append(f.disks, d.fs.Cut(seed))
	}
	err := w.kill()
	f.may = now.done()
	return f, err
}

// survive starts the store on each of the disks that a cut may have left, and goes on with the last.
func (w *world) survive(d *disk, f *future) error {
	for i, fs := range f.disks {
		d.fs, w.names = fs, f.names.copy()
		if err := d.plugIn(); err != nil {
			return err
		}
		before := fs.Synced()
		took, err := w.start()
		if err == nil {
			w.opens = append(w.opens, took)
			err = w.look(f.may)
		}
		if err != nil {
			if dir := os.Getenv("SEALDISK_CRASH_KEEP"); dir != "" {
				err = errors.Join(err, before.Save(filepath.Join(dir, "cut")), f.before.Save(filepath.Join(dir, "before")))
			}
			return fmt.Errorf("cut with seed %d: %w", f.seeds[i], err)
		}
		if i == len(f.disks)-1 {
			return nil
		}
		if err := w.kill(); err != nil {
			return err
		}
		if err := d.unplug(); err != nil {
			return err
		}
	}
	return nil
}

// TestPowerCut: nothing that was acknowledged is lost or torn when the power is cut, whatever of the
// rest has reached the disk.
func TestPowerCut(t *testing.T) {
	cuts := int(number(t, "SEALDISK_CRASH_CUTS", 3))
	const ways = 3
	scratch, r := t.TempDir(), chooser(t)
	d := &disk{dir: filepath.Join(scratch, "disk"), fs: powercut.New()}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.plugIn(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.unplug(); err != nil {
			t.Error(err)
		}
	})
	w, err := create(d.dir, scratch, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stop(t) })
	if err := w.open(); err != nil {
		t.Fatal(err)
	}
	for round := 0; round < cuts; round += ways {
		var f *future
		crash := func() (err error) {
			f, err = w.cut(d, ways)
			return err
		}
		err := w.play(300*time.Millisecond, 2500*time.Millisecond, crash)
		if err == nil {
			err = d.unplug()
		}
		if err == nil {
			err = w.survive(d, f)
		}
		if err == nil && round/ways%2 == 0 {
			err = w.cutAfterKill(d)
		}
		if err != nil {
			t.Fatalf("cut %d: %v", round, err)
		}
	}
	if err := w.finish(); err != nil {
		t.Fatal(err)
	}
}

// cutAfterKill kills the daemon while the image is written, starts it again, and cuts the power while it
// replays or when it has just done so: what it builds on then may not have been synced by the first.
func (w *world) cutAfterKill(d *disk) error {
	if err := w.play(0, time.Second, w.kill); err != nil {
		return err
	}
	if err := w.begin(); err != nil {
		return err
	}
	wait := time.After(time.Duration(w.r.Int64N(int64(500 * time.Millisecond))))
	if w.r.IntN(2) == 0 {
		select {
		case <-w.up:
		case <-time.After(patience):
		}
		if _, err := w.read(imageName); err != nil {
			return err
		}
	} else {
		<-wait
	}
	f, err := w.cut(d, 2)
	if err != nil {
		return err
	}
	if err := d.unplug(); err != nil {
		return err
	}
	return w.survive(d, f)
}
