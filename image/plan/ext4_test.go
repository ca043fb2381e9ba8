package plan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// run runs one of the tools that these tests need: e2fsprogs and fdisk.
func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "DEBUGFS_PAGER=__none__")
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return string(out)
}

// blank makes an image file without data.
func blank(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, info.Size()
}

// tree makes a folder of files for mke2fs -d: a large one, many small ones,
// one with holes.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	write := func(name string, size int) {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rng.Uint32() | 1)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("large", 10<<20)
	for i := range 60 {
		write(fmt.Sprintf("small%d", i), 20_000+rng.IntN(200_000))
	}
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(1000) {
		if _, err := f.WriteAt([]byte("data"), i*16384); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Symlink(strings.Repeat("l", 500), filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

var (
	inodeLine  = regexp.MustCompile(`(?m)^debugfs: .*$`)
	linksField = regexp.MustCompile(`Links: (\d+)`)
	blockField = regexp.MustCompile(`\(([^)]*)\):(\d+)(?:-(\d+))?`)
	superField = func(name string) *regexp.Regexp { return regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`) }
)

// oracle asks debugfs for the blocks of every inode, and says which 64 KiB
// boundaries of the image lie inside a run of them.
func oracle(t *testing.T, path string, off int64) map[int64]bool {
	t.Helper()
	device := fmt.Sprintf("%s?offset=%d", path, off)
	super := run(t, "", "dumpe2fs", "-h", device)
	field := func(name string) int64 {
		n, err := strconv.ParseInt(superField(name).FindStringSubmatch(super)[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	block := field("Block size")
	var commands strings.Builder
	for i := range field("Inode count") {
		if i+1 != resizeInode {
			fmt.Fprintf(&commands, "stat <%d>\n", i+1)
		}
	}
	answers := inodeLine.Split(run(t, commands.String(), "debugfs", "-f", "-", device), -1)
	want := make(map[int64]bool)
	for _, answer := range answers {
		links := linksField.FindStringSubmatch(answer)
		if links == nil || links[1] == "0" {
			continue
		}
		_, blocks, ok := strings.Cut(answer, "BLOCKS:\n")
		if !ok {
			_, blocks, _ = strings.Cut(answer, "EXTENTS:\n")
		}
		var lo, hi int64 // bytes
		for _, m := range blockField.FindAllStringSubmatch(blocks, -1) {
			if strings.HasPrefix(m[1], "ETB") {
				continue
			}
			first, _ := strconv.ParseInt(m[2], 10, 64)
			last := first
			if m[3] != "" {
				last, _ = strconv.ParseInt(m[3], 10, 64)
			}
			if off+first*block != hi {
				lo = off + first*block
			}
			hi = off + (last+1)*block
			for at := (lo>>16 + 1) << 16; at < hi; at += 64 << 10 {
				want[at] = true
			}
		}
	}
	return want
}

// ext4Analyser is the one that Analyse finds in an image, or nil.
func ext4Analyser(t *testing.T, r io.ReaderAt, size int64) Analyser {
	t.Helper()
	found, err := Analyse(context.Background(), r, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range found {
		if a.Name() == "ext4" {
			return a
		}
	}
	return nil
}

func TestExt4AgainstDebugfs(t *testing.T) {
	dir := tree(t)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"ext4", nil},
		{"1k blocks", []string{"-b", "1024"}},
		{"64k blocks", []string{"-b", "65536", "-E", "offset=1048576"}},
		{"offset", []string{"-E", "offset=1052672"}},
		{"odd offset", []string{"-b", "1024", "-E", "offset=32256"}},
		{"no 64bit", []string{"-O", "^64bit"}},
		{"no checksums", []string{"-O", "^metadata_csum,^uninit_bg"}},
		{"meta_bg", []string{"-b", "1024", "-O", "meta_bg,^resize_inode"}},
		{"meta_bg, no sparse_super", []string{"-b", "1024", "-O", "meta_bg,^resize_inode,^sparse_super,^64bit"}},
		{"sparse_super2", []string{"-b", "1024", "-O", "sparse_super2,meta_bg,^resize_inode"}},
		{"bigalloc", []string{"-O", "bigalloc", "-C", "65536"}},
		{"bigalloc 1k", []string{"-b", "1024", "-O", "bigalloc", "-C", "16384"}},
		{"small groups", []string{"-b", "1024", "-g", "1024", "-O", "^flex_bg,^resize_inode"}},
		{"inline data, large inodes", []string{"-I", "1024", "-O", "inline_data"}},
		{"ext3", []string{"-t", "ext3"}},
		{"ext2", []string{"-t", "ext2", "-b", "1024"}},
		{"revision 0", []string{"-t", "ext2", "-r", "0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := blank(t, 64<<20)
			args := append([]string{"-q", "-F", "-N", "128", "-d", dir}, tt.args...)
			if !slices.Contains(args, "-t") {
				args = append(args, "-t", "ext4")
			}
			run(t, "", "mke2fs", append(args, path, "56M")...)
			off := int64(0)
			for _, arg := range tt.args {
				if s, ok := strings.CutPrefix(arg, "offset="); ok {
					off, _ = strconv.ParseInt(s, 10, 64)
				}
			}
			if off != 0 { // a partition, so that it is found
				script := fmt.Sprintf("label: dos\nstart=%d, size=%d, type=83\n", off/512, 56<<20/512)
				fdisk(t, path, script, 512)
			}
			checkExt4(t, path, off)
		})
	}
}

func checkExt4(t *testing.T, path string, off int64) {
	t.Helper()
	want := oracle(t, path, off)
	if len(want) < 10<<20/MinBlock {
		t.Fatalf("debugfs told of %d boundaries only", len(want))
	}
	f, size := open(t, path)
	a := ext4Analyser(t, f, size)
	if a == nil {
		t.Fatal("no file system found")
	}
	for next := int64(MinBlock); next < size; next += MinBlock {
		if got := a.Depends(next, MinBlock) == Depends; got != want[next] {
			t.Errorf("boundary %d: %v, want %v", next, got, want[next])
		}
	}
}

// TestExt4Fragmented has deleted files and one whose extents need a tree.
func TestExt4Fragmented(t *testing.T) {
	path := blank(t, 24<<20)
	run(t, "", "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-N", "2048", path)
	dir := t.TempDir()
	small, large := filepath.Join(dir, "small"), filepath.Join(dir, "large")
	if err := errors.Join(
		os.WriteFile(small, bytes.Repeat([]byte("s"), 9000), 0o600),
		os.WriteFile(large, bytes.Repeat([]byte("l"), 12<<20), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	var commands strings.Builder
	for i := range 1700 {
		fmt.Fprintf(&commands, "write %s f%d\n", small, i)
	}
	for i := range 1700 {
		if i%10 != 0 {
			fmt.Fprintf(&commands, "rm f%d\n", i)
		}
	}
	fmt.Fprintf(&commands, "write %s large\n", large)
	run(t, commands.String(), "debugfs", "-w", "-f", "-", path)
	if stat := run(t, "", "debugfs", "-R", "stat large", path); !strings.Contains(stat, "(ETB") {
		t.Fatalf("the file has no tree:\n%s", stat)
	}
	checkExt4(t, path, 0)
}

// TestExt4Plan: a contiguous file becomes segments of 1 MiB.
func TestExt4Plan(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "large"), bytes.Repeat([]byte("x"), 10<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := blank(t, 64<<20)
	fdisk(t, path, "label: gpt\nstart=2048, size=98304\n", 512)
	run(t, "", "mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, "-E", "offset=1048576", path, "48M")
	f, size := open(t, path)
	analysers, err := Analyse(context.Background(), f, size)
	if err != nil {
		t.Fatal(err)
	}
	if len(analysers) != 2 || analysers[0].Name() != "partition" || analysers[1].Name() != "ext4" {
		t.Fatalf("analysers %v", analysers)
	}
	p := New(Input{Size: size, Analysers: analysers})
	full, data := 0, 0
	for r := range size / Region {
		region := make([]byte, Region)
		if _, err := f.ReadAt(region, r*Region); err != nil {
			t.Fatal(err)
		}
		var runs []Run
		for i := range uint16(SectorsPerRegion) {
			if !bytes.Equal(region[int(i)*Sector:][:Sector], make([]byte, Sector)) {
				runs = append(runs, Run{i, 1})
			}
		}
		for _, s := range p.Region(r, runs) {
			data += s.Sectors()
			if s.Sectors() == MaxSegment/Sector {
				full++
			}
		}
	}
	rep := p.Report()
	// The file may cross a region and need not begin on a block's edge, so two
	// of its ten mebibytes may be spread over smaller segments.
	if full < 8 || rep.Merged < 10*15-20 || data < 10<<20/Sector || rep.ReductionPercent < 70 {
		t.Errorf("%d full segments, %d sectors of data, report %+v", full, data, rep)
	}
	if got := analysers[0].Depends(1<<20, MinBlock); got != Never {
		t.Errorf("at the partition's start: %v", got)
	}
}

func TestAnalyseNothing(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 1023, 1024, 2047, 2048, 4096, 1 << 20} {
		found, err := Analyse(context.Background(), bytes.NewReader(make([]byte, size)), size)
		if len(found) != 0 || err != nil {
			t.Errorf("%d zero bytes: %v, %v", size, found, err)
		}
	}
}

// faulty fails to read from a byte on.
type faulty struct {
	io.ReaderAt
	from int64
	err  error
}

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestAnalyseErrors(t *testing.T) {
	path := blank(t, 16<<20)
	run(t, "", "mke2fs", "-q", "-F", "-t", "ext4", path)
	f, size := open(t, path)
	bad := errors.New("bad medium")
	for _, from := range []int64{0, 512, 1024, 4096, 8192} {
		if _, err := Analyse(context.Background(), faulty{f, from, bad}, size); !errors.Is(err, bad) {
			t.Errorf("medium bad from %d: %v", from, err)
		}
	}
	if _, err := Analyse(context.Background(), io.NewSectionReader(f, 0, 4096), size); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("source that shrank: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Analyse(ctx, f, size); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
