package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/internal/measure"
)

// noise gives n incompressible bytes, the same for the same n.
func noise(n int64) io.Reader { return measure.Noise("sealdisk bench "+strconv.FormatInt(n, 10), n) }

// noiseFile writes n bytes of noise.
func noiseFile(name string, n int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(f, noise(n), make([]byte, mib))
	return errors.Join(err, f.Close())
}

// makeImage makes the raw image of the transfers, once: ext4 with files of this system's /usr and
// with random ones. Its bytes are the same on each machine that has the same /usr.
func (b *bench) makeImage(ctx context.Context) (name string, allocated int64, err error) {
	name = b.path("image.raw")
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		b.say("make the image: %d MiB", b.image/mib)
		if err := b.fillImage(ctx, name); err != nil {
			return "", 0, fmt.Errorf("make the image: %w", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return "", 0, err
	}
	return name, st.Blocks * 512, nil
}

func (b *bench) fillImage(ctx context.Context, name string) error {
	tree := b.path("tree")
	defer os.RemoveAll(tree)
	if err := os.MkdirAll(tree+"/random", 0o755); err != nil {
		return err
	}
	if err := copyFiles(ctx, "/usr", tree+"/usr", b.usr); err != nil {
		return err
	}
	const piece = 16 * mib
	for n := int64(0); n*piece < b.noise; n++ {
		if err := noiseFile(fmt.Sprintf("%s/random/%03d", tree, n), piece+n); err != nil {
			return err
		}
	}
	if err := writeDisk(name, "", b.image); err != nil {
		return err
	}
	_, err := b.command(ctx, "mkfs.ext4", "-q", "-F", "-U", "5ea1d15c-0000-4000-8000-000000000001",
		"-E", "hash_seed=5ea1d15c-0000-4000-8000-000000000002,root_owner=0:0", "-d", tree, name)
	return err
}

// copyFiles copies regular files of at most 64 MiB, by name, until limit bytes are reached.
func copyFiles(ctx context.Context, from, to string, limit int64) error {
	total := int64(0)
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() > 64*mib {
			return nil
		}
		if err != nil {
			return err
		}
		if total += info.Size(); total > limit {
			return fs.SkipAll
		}
		relative, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return copyFile(name, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// warm reads a file once, so that it is in the page cache.
func warm(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, f, make([]byte, mib))
	return err
}

// stored is how many bytes of the device the files below a folder or a file occupy, less what has the given name.
func stored(root, less string) (total int64, err error) {
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == less {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return err
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}
