package plan

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

func readPartitions(t *testing.T, path string) []Extent {
	t.Helper()
	f, size := open(t, path)
	parts, err := partitions(&source{ctx: context.Background(), r: f, size: size, left: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

var startAndSectors = regexp.MustCompile(`(?m)^\s*(\d+)\s+(\d+)$`)

// fdisk makes a table from a script in sfdisk's language and says where fdisk
// itself then sees the partitions.
func fdisk(t *testing.T, path, script string, sector int64) []Extent {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	unit := strconv.FormatInt(sector, 10)
	run(t, "I\n"+file+"\nw\n", "fdisk", "-b", unit, path)
	var parts []Extent
	out := run(t, "", "fdisk", "-b", unit, "-l", "-o", "Start,Sectors", path)
	for _, m := range startAndSectors.FindAllStringSubmatch(out, -1) {
		start, _ := strconv.ParseInt(m[1], 10, 64)
		count, _ := strconv.ParseInt(m[2], 10, 64)
		parts = append(parts, Extent{start * sector, count * sector})
	}
	return parts
}

func byOffset(a, b Extent) int { return int(a.Off - b.Off) }

const (
	gptScript = "label: gpt\nsize=3M\nstart=12M, size=1M, type=uefi\nsize=7M\n"
	mbrScript = "label: dos\nstart=63, size=2000, type=83, bootable\nsize=4M, type=82\n" +
		"size=20M, type=5\nsize=2M, type=83\nsize=1M, type=83\nsize=3M, type=83\nsize=100K, type=83\n"
)

func TestPartitionsAgainstFdisk(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		sector       int64
	}{
		{"gpt", gptScript, 512},
		{"gpt, 4096-byte sectors", gptScript, 4096},
		{"gpt, many entries", "label: gpt\ntable-length: 1024\nsize=1M\n", 512},
		{"gpt, no partition", "label: gpt\n", 512},
		{"mbr with logical partitions", mbrScript, 512},
		{"mbr, no partition", "label: dos\n", 512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := blank(t, 64<<20)
			want := fdisk(t, path, tt.script, tt.sector)
			got := readPartitions(t, path)
			slices.SortFunc(got, byOffset)
			slices.SortFunc(want, byOffset)
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func overwrite(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedGPT(t *testing.T) {
	const size = 64 << 20
	for _, unit := range []int64{512, 4096} {
		path := blank(t, size)
		want := fdisk(t, path, gptScript, unit)
		for _, damage := range []struct {
			name string
			off  int64
		}{
			{"header", unit + 40}, {"entries", 2*unit + 33}, {"signature", unit},
		} {
			overwrite(t, path, damage.off, []byte{0xa5})
			if got := readPartitions(t, path); !slices.Equal(got, want) {
				t.Errorf("sectors of %d, primary %s damaged: got %v, want %v", unit, damage.name, got, want)
			}
		}
		overwrite(t, path, size-unit+17, []byte{0xa5})
		if got := readPartitions(t, path); got != nil {
			t.Errorf("sectors of %d, both damaged: got %v, want none", unit, got)
		}
	}
}

func TestStaleGPT(t *testing.T) {
	path := blank(t, 64<<20)
	fdisk(t, path, gptScript, 512)
	overwrite(t, path, 446, make([]byte, 64)) // no protective entry
	if got := readPartitions(t, path); got != nil {
		t.Errorf("got %v, want none", got)
	}
}

func TestPartitionsCutToTheImage(t *testing.T) {
	path := blank(t, 64<<20)
	fdisk(t, path, "label: dos\nstart=2048, size=32M\nsize=8M\n", 512)
	if err := os.Truncate(path, 20<<20+100); err != nil {
		t.Fatal(err)
	}
	want := []Extent{{1 << 20, 19 << 20}}
	if got := readPartitions(t, path); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestLogicalLoop: a chain that never ends is left.
func TestLogicalLoop(t *testing.T) {
	path := blank(t, 64<<20)
	fdisk(t, path, "label: dos\nstart=2048, size=20M, type=5\nsize=2M\nsize=1M\n", 512)
	// The second entry of the second record points to itself.
	second := int64(1<<20 + 1<<20 + 2<<20)
	overwrite(t, path, second+446+16, []byte{0, 0, 0, 0, 5, 0, 0, 0, 0, 0x18, 0, 0, 1, 0, 0, 0})
	if got := readPartitions(t, path); len(got) > 1+maxLogical {
		t.Errorf("%d partitions", len(got))
	}
}
