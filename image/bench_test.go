package image

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/sealdisk/sealdisk/image/record"
)

const benchSize = 64 << 20

// benchDisk is a disk full of bytes that do not compress, all of it committed.
func benchDisk(t testing.TB) *Disk {
	t.Helper()
	r := newRig(t)
	d := r.open(r.create(benchSize), OpenOptions{})
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil { // the test's own has ended
			t.Error(err)
		}
	})
	buf := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < benchSize; off += int64(len(buf)) {
		_, _ = random.Read(buf)
		if _, err := d.WriteAt(t.Context(), buf, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func readVector(t testing.TB, d *Disk, off int64, n int) {
	if _, err := d.ReadVector(t.Context(), off, n); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkRead4K reads single sectors: opened before, or each with its frame to open.
func BenchmarkRead4K(b *testing.B) {
	d := benchDisk(b)
	b.Run("opened", func(b *testing.B) {
		b.SetBytes(sectorSize)
		b.ReportAllocs()
		for b.Loop() {
			readVector(b, d, 0, sectorSize)
		}
	})
	b.Run("sealed", func(b *testing.B) {
		b.SetBytes(sectorSize)
		b.ReportAllocs()
		for off := int64(0); b.Loop(); off = (off + 1<<20 + sectorSize) % benchSize {
			b.StopTimer()
			d.s.frames.InvalidateAll()
			b.StartTimer()
			readVector(b, d, off, sectorSize)
		}
	})
}

// BenchmarkRead1M reads in sequence what has to be opened.
func BenchmarkRead1M(b *testing.B) {
	d := benchDisk(b)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for off := int64(0); b.Loop(); off = (off + 1<<20) % benchSize {
		if off == 0 {
			d.s.frames.InvalidateAll()
		}
		readVector(b, d, off, 1<<20)
	}
}

func BenchmarkWrite4K(b *testing.B) {
	d := benchDisk(b)
	page := make([]byte, sectorSize)
	b.SetBytes(sectorSize)
	b.ReportAllocs()
	for off := int64(0); b.Loop(); off = (off + 37*sectorSize) % benchSize {
		if _, err := d.WriteAt(b.Context(), page, off); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFlush makes one sector durable.
func BenchmarkFlush(b *testing.B) {
	d := benchDisk(b)
	page := make([]byte, sectorSize)
	for off := int64(0); b.Loop(); off = (off + 37*sectorSize) % benchSize {
		if _, err := d.WriteAt(b.Context(), page, off); err != nil {
			b.Fatal(err)
		}
		if err := d.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommit seals 8 MiB: in one piece, in sectors here and there, and as a region
// that is planned again.
func BenchmarkCommit(b *testing.B) {
	const size = 8 << 20
	for name, step := range map[string]int64{"sequence": sectorSize, "scattered": 2 * sectorSize} {
		b.Run(name, func(b *testing.B) {
			d := benchDisk(b)
			page := make([]byte, sectorSize)
			b.SetBytes(size)
			for i := byte(0); b.Loop(); i++ {
				page[0] = i
				for n := range int64(size / sectorSize) {
					if _, err := d.WriteAt(b.Context(), page, n*step); err != nil {
						b.Fatal(err)
					}
				}
				if err := d.Commit(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("merge", func(b *testing.B) {
		d := benchDisk(b)
		b.SetBytes(record.RegionSize)
		for b.Loop() {
			d.commitMu.Lock()
			err := d.commitOnce(b.Context(), nil, map[uint64]wear{0: ragged})
			d.commitMu.Unlock()
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestAllocations holds the data path to a budget: what is allocated for each request
// is collected while a guest waits.
func TestAllocations(t *testing.T) {
	d := benchDisk(t)
	page := make([]byte, sectorSize)
	for _, tt := range []struct {
		name string
		most float64
		do   func()
	}{
		{"read of an opened sector", 2, func() { readVector(t, d, 0, sectorSize) }},
		{"read of an opened MiB", 6, func() { readVector(t, d, 4<<20, 1<<20) }},
		{"write of a dirty sector", 0, func() {
			if _, err := d.WriteAt(t.Context(), page, 0); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		tt.do()
		got := testing.AllocsPerRun(100, tt.do)
		t.Logf("%s: %v allocations", tt.name, got)
		if got > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", tt.name, got, tt.most)
		}
	}
}
