package record

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

func BenchmarkOpenFrame4K(b *testing.B) {
	w := newWorld()
	for _, c := range []Compression{None, Zstd, S2} {
		b.Run(c.String(), func(b *testing.B) {
			w.seal.Compression = c
			data := bytes.Repeat(sectors(1, 2)[4096:], 64)
			obj, salt, _, err := w.seal.Segment(nil, 5, []Run{{0, 64}}, data, 12)
			if err != nil {
				b.Fatal(err)
			}
			dst := make([]byte, 0, 4096)
			b.SetBytes(4096)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s, err := OpenSegment(w.seal.Epoch, 5, salt, obj)
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Expect(64); err != nil {
					b.Fatal(err)
				}
				if _, err := s.OpenFrame(dst, i%64); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSealSegment(b *testing.B) {
	w := newWorld()
	for _, c := range []Compression{None, Zstd, S2} {
		for _, compressible := range []bool{false, true} {
			b.Run(fmt.Sprintf("%v/compressible=%v", c, compressible), func(b *testing.B) {
				w.seal.Compression = c
				data := sectors(1, 256)
				if compressible {
					data = bytes.Repeat(data[4096:8192], 256)
				}
				dst := make([]byte, 0, 2<<20)
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					if _, _, _, err := w.seal.Segment(dst, 5, []Run{{0, 256}}, data, 15); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpenLeaf1024(b *testing.B) {
	w := newWorld()
	leaf, err := w.seal.Leaf(largeLeaf(w, 1024))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := OpenLeaf(w.keys, leaf, 3); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealLeaf1024(b *testing.B) {
	w := newWorld()
	l := largeLeaf(w, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.seal.Leaf(l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJournalRecord4K(b *testing.B) {
	w := newWorld()
	j := newTape(b, w)
	d := sectors(1, 1)
	ops := []Op{write(1, d)}
	dst := make([]byte, 0, 8192)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := j.w.Record(dst, ops, [][]byte{d}, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJournalScan(b *testing.B) {
	w := newWorld()
	j := newTape(b, w)
	d := sectors(1, 16)
	for range 200 {
		j.add(b, 0, []Op{write(1, d)}, d)
	}
	file := append(j.bytes, make([]byte, 16<<20)...)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := j.play(b, w, file); n != 200 || err != io.EOF {
			b.Fatal(n, err)
		}
	}
}
