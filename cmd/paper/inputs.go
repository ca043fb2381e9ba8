package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sealdisk/sealdisk/cmd/paper/page"
	"github.com/sealdisk/sealdisk/internal/measure"
)

// set is the ten machines with their figures in one unit.
type set struct {
	unit   string
	bytes  int64   // of the unit
	share  float64 // of a third of the figure, that the files have; the smaller, the faster
	rounds int
	sparse bool // fixed images too: they do not fit the disk else
}

// data is how many bytes the files of a machine have: a third of its size, or a share of that.
func (s set) data(m page.Machine) int64 {
	return int64(float64(m.Figure*s.bytes) / 3 * s.share)
}

// input is an image that stands for a machine.
type input struct {
	page.Machine
	name   string
	file   string
	source string // the file, or the device that it is imported from
}

// birth is when everything in an image was made, in seconds since 1970.
const birth = 1556668800

// makeInput makes the image of a machine: ext4 with files that compress and files that do not, the same bytes
// in each run. It is imported from a loop device if the machine is linked.
func (e *evaluation) makeInput(ctx context.Context, s set, m page.Machine) (*input, error) {
	in := &input{Machine: m, name: fmt.Sprintf("vm%d-%s", m.Number, strings.ToLower(s.unit))}
	in.file = e.path(in.name + ".raw")
	in.source = in.file
	tree := e.path("tree")
	defer os.RemoveAll(tree)
	script, err := fillTree(tree, fmt.Sprintf("sealdisk paper %s %d", s.unit, m.Number), s.data(m))
	if err != nil {
		return in, err
	}
	fixed := !m.Linked && !s.sparse
	if err := e.makeFileSystem(ctx, in.file, m.Figure*s.bytes, fixed, tree, script); err != nil {
		return in, fmt.Errorf("make %s: %w", in.name, err)
	}
	if m.Linked {
		if in.source, err = e.attach(ctx, in.file, s.sparse); err != nil {
			return in, err
		}
	}
	return in, nil
}

// makeFileSystem makes a file an ext4 file system with a tree in it. The script of debugfs sets the times
// that mkfs takes from the tree: nobody can set all of them there, and reading changes some.
func (e *evaluation) makeFileSystem(ctx context.Context, file string, size int64, fixed bool, tree, script string) error {
	if err := makeDisk(file, size, fixed); err != nil {
		return err
	}
	env := []string{"SOURCE_DATE_EPOCH=" + strconv.Itoa(birth), "E2FSPROGS_FAKE_TIME=" + strconv.Itoa(birth)}
	_, _, err := e.commands.Run(ctx, env, "mkfs.ext4", "-q", "-F", "-U", "5ea1d15c-0000-4000-8000-00000000e7a1",
		"-E", "hash_seed=5ea1d15c-0000-4000-8000-00000000e7a2,root_owner=0:0,nodiscard,lazy_itable_init=1,lazy_journal_init=1", "-d", tree, file)
	if err != nil {
		return err
	}
	commands := tree + ".debugfs"
	if err := os.WriteFile(commands, []byte(script), 0o600); err != nil {
		return err
	}
	_, _, err = e.commands.Run(ctx, env, "debugfs", "-w", "-f", commands, file)
	return errors.Join(err, os.Remove(commands))
}

// makeDisk makes a file of zeros, with its blocks or without them.
func makeDisk(file string, size int64, blocks bool) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if blocks {
		zeros := make([]byte, mib)
		for left := size; left > 0 && err == nil; left -= int64(len(zeros)) {
			_, err = f.Write(zeros[:min(left, int64(len(zeros)))])
		}
	} else {
		err = f.Truncate(size)
	}
	return errors.Join(err, f.Close())
}

// fillTree makes files of total bytes, half of them text and half of them noise, in folders; all follows
// from the seed. It gives the script that debugfs makes the image the same in each run with.
func fillTree(tree, seed string, total int64) (script string, err error) {
	rng := seeded(seed)
	largest := float64(min(max(total/40, 64*kib), 32*mib))
	sif := setTimes("/")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return "", err
	}
	for n, left := 0, total; left > 0; n++ {
		size := min(left, int64(2*kib*math.Pow(largest/(2*kib), rng.Float64())))
		left -= size
		folder, file := fmt.Sprintf("d%02d", n/16), fmt.Sprintf("f%04d", n)
		if n%16 == 0 {
			if err := os.Mkdir(filepath.Join(tree, folder), 0o755); err != nil {
				return "", err
			}
			sif += setTimes("/" + folder)
		}
		content := measure.Noise(seed+strconv.Itoa(n), size)
		if n%2 == 0 {
			content = io.LimitReader(&text{rng: rng}, size)
		}
		if err := writeFile(filepath.Join(tree, folder, file), content); err != nil {
			return "", err
		}
		sif += setTimes("/" + folder + "/" + file)
	}
	return sif, setModes(tree)
}

// setTimes gives the commands of debugfs that set the times of a file or folder, which mkfs takes from the tree.
func setTimes(name string) string {
	var b strings.Builder
	for _, which := range []string{"atime", "ctime", "mtime"} {
		fmt.Fprintf(&b, "sif %s %s @%d\n", name, which, birth)
	}
	return b.String()
}

// seeded gives numbers that follow from the first 32 bytes of the seed.
func seeded(seed string) *rand.Rand {
	var key [32]byte
	copy(key[:], seed)
	return rand.New(rand.NewChaCha8(key))
}

func writeFile(name string, content io.Reader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256*kib)
	_, err = io.Copy(w, content)
	return errors.Join(err, w.Flush(), f.Close())
}

// setModes gives all files the same modes, whatever the umask.
func setModes(tree string) error {
	return filepath.WalkDir(tree, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(name, 0o755)
		}
		return os.Chmod(name, 0o644)
	})
}

// text is lines as a log has them; they compress to about a quarter.
type text struct {
	rng  *rand.Rand
	rest []byte
	line int
}

var words = strings.Fields("accepted address after bridge cache closed connection daemon device disk failed from guest handler host image " +
	"interface kernel link lease memory mount network opened peer port queue ready request reset retry running segment service session " +
	"started state stopped storage target timeout transfer unit update user virtual volume waiting worker")

// Read implements io.Reader.
func (t *text) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(t.rest) == 0 {
			var b bytes.Buffer
			t.line++
			fmt.Fprintf(&b, "%08d %x", t.line, t.rng.Uint32())
			for range 6 + t.rng.IntN(8) {
				b.WriteByte(' ')
				b.WriteString(words[t.rng.IntN(len(words))])
			}
			b.WriteByte('\n')
			t.rest = b.Bytes()
		}
		c := copy(p[n:], t.rest)
		t.rest = t.rest[c:]
		n += c
	}
	return n, nil
}

// attach gives a loop device for a file, read-only. A direct one does not keep a second copy in the page cache.
func (e *evaluation) attach(ctx context.Context, file string, direct bool) (string, error) {
	device, err := e.run(ctx, "losetup", "--find", "--show", "--read-only", "--direct-io="+map[bool]string{false: "off", true: "on"}[direct], file)
	if err != nil {
		return "", err
	}
	e.devices = append(e.devices, device)
	return device, nil
}

func (e *evaluation) detach(device string) error {
	_, err := e.run(context.Background(), "losetup", "--detach", device)
	return err
}

// dropInput removes an image and its device.
func (e *evaluation) dropInput(in *input) error {
	var errs []error
	for _, d := range e.devices { // this image's, or none
		errs = append(errs, e.detach(d))
	}
	e.devices = nil
	return errors.Join(append(errs, os.Remove(in.file))...)
}
