package plan

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// update makes the seeds again from images that mke2fs and fdisk make now.
var update = flag.Bool("update", false, "write the fuzz seeds again")

// A fuzz input is a sparse image of 16 MiB and edits to it. The image is pieces
// of 256 bytes, each after its number (16 bits, little-endian). An edit is four
// bytes: a position in that encoding (16 bits) and two bytes to exclusive-or
// there; so the fuzzer changes single fields of a valid structure. What is left
// over at the end of either is ignored.
const (
	pieceSize  = 256
	sparseSize = pieceSize << 16
)

type sparse map[uint16][]byte

func parseSparse(image, edits []byte) sparse {
	b := slices.Clone(image)
	for ; len(edits) >= 4; edits = edits[4:] {
		if at := int(binary.LittleEndian.Uint16(edits)); at+1 < len(b) {
			b[at] ^= edits[2]
			b[at+1] ^= edits[3]
		}
	}
	s := make(sparse)
	for ; len(b) >= 2+pieceSize; b = b[2+pieceSize:] {
		s[binary.LittleEndian.Uint16(b)] = b[2:][:pieceSize]
	}
	return s
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	n := 0
	for n < len(p) {
		if off >= sparseSize {
			return n, io.EOF
		}
		length := min(pieceSize-int(off%pieceSize), len(p)-n)
		if piece := s[uint16(off/pieceSize)]; piece != nil {
			copy(p[n:][:length], piece[off%pieceSize:])
		}
		n += length
		off += int64(length)
	}
	return n, nil
}

// recorder keeps what is read and not zero, as a fuzz input.
type recorder struct {
	r    io.ReaderAt
	seen sparse
}

func (rec recorder) ReadAt(p []byte, off int64) (int, error) {
	for k := off / pieceSize; k*pieceSize < off+int64(len(p)); k++ {
		piece := make([]byte, pieceSize)
		if _, err := rec.r.ReadAt(piece, k*pieceSize); err != nil {
			return 0, err
		}
		if !bytes.Equal(piece, make([]byte, pieceSize)) {
			rec.seen[uint16(k)] = piece
		}
	}
	return rec.r.ReadAt(p, off)
}

func (rec recorder) input() []byte {
	var keys []uint16
	for k := range rec.seen {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b []byte
	for _, k := range keys {
		b = append(binary.LittleEndian.AppendUint16(b, k), rec.seen[k]...)
	}
	return b
}

// signGPT makes the checksums of both headers right, so that the fuzzer gets
// past them.
func signGPT(s sparse, sector int64) {
	le := binary.LittleEndian
	for _, lba := range []int64{1, sparseSize/sector - 1} {
		h := make([]byte, sector)
		if n, err := s.ReadAt(h, lba*sector); n < len(h) || err != nil || !bytes.HasPrefix(h, []byte("EFI PART")) {
			continue
		}
		if count, width := le.Uint32(h[80:]), le.Uint32(h[84:]); count <= 256 && width <= 256 && le.Uint64(h[72:]) < sparseSize {
			table := make([]byte, count*width)
			if got, _ := s.ReadAt(table, int64(le.Uint64(h[72:]))*sector); got == len(table) {
				le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
			}
		}
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(sector, int64(le.Uint32(h[12:])))]))
		s[uint16(lba*sector/pieceSize)] = h[:pieceSize]
	}
}

func FuzzPartitions(f *testing.F) {
	f.Fuzz(func(t *testing.T, image, edits []byte) {
		s := parseSparse(image, edits)
		signGPT(s, 512)
		signGPT(s, 4096)
		checkPartitions(t, s)
	})
}

// checkPartitions reads the table of an image and returns what it has.
func checkPartitions(t *testing.T, s sparse) []Extent {
	t.Helper()
	parts, err := partitions(&source{ctx: context.Background(), r: s, size: sparseSize, left: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if p.Off < 0 || p.Len <= 0 || p.Off+p.Len > sparseSize {
			t.Fatalf("partition %v is outside", p)
		}
	}
	a := newPartitioned(parts, sparseSize)
	for _, cut := range a.cuts {
		for block := int64(MinBlock); block <= MaxBlock; block *= 2 {
			if next := cut / block * block; next > 0 && a.Depends(next, block) != Never {
				t.Fatalf("cut %d, block size %d, boundary %d: not Never", cut, block, next)
			}
		}
	}
	return parts
}

func FuzzExt4(f *testing.F) {
	f.Fuzz(func(t *testing.T, image, edits []byte) {
		checkJoined(t, parseSparse(image, edits))
	})
}

// checkJoined analyses an image and counts the boundaries that are joined.
func checkJoined(t *testing.T, s sparse) int {
	t.Helper()
	found, err := analyse(&source{ctx: context.Background(), r: s, size: sparseSize, left: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, a := range found {
		n += len(verdicts(a, sparseSize, MinBlock, Depends))
	}
	return n
}

// TestDamaged flips bits of valid images at random.
func TestDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	edits := func(length int) []byte {
		var b []byte
		for range 1 + rng.IntN(4) {
			b = binary.LittleEndian.AppendUint16(b, uint16(rng.IntN(length)))
			b = binary.LittleEndian.AppendUint16(b, uint16(rng.Uint32()>>rng.IntN(16)<<rng.IntN(16)))
		}
		return b
	}
	for _, image := range seeds(t, "FuzzExt4") {
		for range 400 {
			checkJoined(t, parseSparse(image, edits(len(image))))
		}
	}
	for _, image := range seeds(t, "FuzzPartitions") {
		for range 400 {
			s := parseSparse(image, edits(len(image)))
			signGPT(s, 512)
			signGPT(s, 4096)
			checkPartitions(t, s)
		}
	}
}

// seeds reads the images of the committed inputs of a fuzz target.
func seeds(t *testing.T, target string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "fuzz", target, "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s has no seeds: %v", target, err)
	}
	found := make(map[string][]byte)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(b), "\n")
		if len(lines) != 4 {
			t.Fatalf("%s: %d lines", path, len(lines))
		}
		quoted := strings.TrimSuffix(strings.TrimPrefix(lines[1], "[]byte("), ")")
		data, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		found[filepath.Base(path)] = []byte(data)
	}
	return found
}

// TestSeeds: the corpora are there and reach what they are for. A seed whose
// name begins with "bad" is one that must give no information.
func TestSeeds(t *testing.T) {
	if *update {
		writeSeeds(t)
	}
	for name, image := range seeds(t, "FuzzExt4") {
		if n := checkJoined(t, parseSparse(image, nil)); (n > 0) == strings.HasPrefix(name, "bad") {
			t.Errorf("%s: %d boundaries", name, n)
		}
	}
	for name, image := range seeds(t, "FuzzPartitions") {
		if parts := checkPartitions(t, parseSparse(image, nil)); (len(parts) > 0) == strings.HasPrefix(name, "bad") {
			t.Errorf("%s: %v", name, parts)
		}
	}
}

func writeSeeds(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), 500<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	holes, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(6) {
		if _, err := holes.WriteAt([]byte("x"), i<<16); err != nil {
			t.Fatal(err)
		}
	}
	if err := holes.Close(); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"ext4":     {"-t", "ext4", "-N", "16", "-b", "4096"},
		"ext4-1k":  {"-t", "ext4", "-N", "16", "-b", "1024"},
		"ext2":     {"-t", "ext2", "-N", "16", "-b", "1024"},
		"meta_bg":  {"-t", "ext4", "-N", "64", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,^flex_bg"},
		"bigalloc": {"-t", "ext4", "-N", "16", "-O", "bigalloc"},
	} {
		path := blank(t, sparseSize)
		run(t, "", "mke2fs", append([]string{"-q", "-F", "-d", dir, path, "16M"}, args...)...)
		seed := record(t, path)
		saveSeed(t, "FuzzExt4", name, seed)
		if name == "ext4" {
			saveSeed(t, "FuzzExt4", "bad-cut", seed[:2*(2+pieceSize)])
		}
	}
	for name, script := range map[string]string{
		"gpt": gptScript, "mbr": "label: dos\nstart=63, size=2000, type=83\nsize=6M, type=5\nsize=1M\nsize=2M\n",
	} {
		path := blank(t, sparseSize)
		fdisk(t, path, script, 512)
		saveSeed(t, "FuzzPartitions", name, record(t, path))
	}
	path := blank(t, sparseSize)
	fdisk(t, path, "label: gpt\nsize=3M\nsize=7M\n", 4096)
	saveSeed(t, "FuzzPartitions", "gpt4096", record(t, path))
	overwrite(t, path, 4096, []byte("bad"))
	saveSeed(t, "FuzzPartitions", "gpt4096-backup", record(t, path))
	overwrite(t, path, sparseSize-4096, []byte("bad"))
	saveSeed(t, "FuzzPartitions", "bad-gpt", record(t, path))
}

// record cuts an image down to what Analyse reads of it.
func record(t *testing.T, path string) []byte {
	t.Helper()
	f, size := open(t, path)
	rec := recorder{f, make(sparse)}
	if _, err := Analyse(context.Background(), rec, size); err != nil {
		t.Fatal(err)
	}
	return rec.input()
}

func saveSeed(t *testing.T, target, name string, data []byte) {
	t.Helper()
	path := filepath.Join("testdata", "fuzz", target, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n[]byte(%q)\n", data, "\x04\x01\x00\x00"), 0o666); err != nil {
		t.Fatal(err)
	}
}
