package crypto

import (
	"fmt"
	"testing"
)

func BenchmarkKey(b *testing.B) {
	e := NewEpoch()
	salt := NewSalt()
	header := make([]byte, 32)
	for _, frames := range []int{2, 33, 257} {
		table := make([]byte, 4*frames)
		b.Run(fmt.Sprintf("frames=%d", frames), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e.Key(PurposeSegment, 7, salt, header, table)
			}
		})
	}
}

func BenchmarkMaster(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NewEpoch().Master()
	}
}

func benchmarkSizes(b *testing.B, run func(b *testing.B, s Suite, size int)) {
	for _, s := range suites {
		for _, size := range []int{4 << 10, 32 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%v/%dKiB", s, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				run(b, s, size)
			})
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, s Suite, size int) {
		sealer, err := NewSealer(s, Key{1})
		if err != nil {
			b.Fatal(err)
		}
		plaintext := make([]byte, size)
		dst := make([]byte, 0, size+Overhead)
		for b.Loop() {
			sealer.Seal(dst, plaintext, nil, false)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, s Suite, size int) {
		sealer, err := NewSealer(s, Key{1})
		if err != nil {
			b.Fatal(err)
		}
		opener, err := NewOpener(s, Key{1})
		if err != nil {
			b.Fatal(err)
		}
		sealed := sealer.Seal(nil, make([]byte, size), nil, true)
		dst := make([]byte, 0, size)
		for b.Loop() {
			if _, err := opener.Open(dst, 0, true, sealed, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSealFresh is what one scattered write costs: a salt, a key, a frame.
func BenchmarkSealFresh(b *testing.B) {
	e := NewEpoch()
	plaintext := make([]byte, 4<<10)
	dst := make([]byte, 0, len(plaintext)+Overhead)
	b.SetBytes(int64(len(plaintext)))
	b.ReportAllocs()
	for b.Loop() {
		s, err := NewSealer(AES256GCM, e.Key(PurposeSegment, 7, NewSalt(), plaintext[:40]))
		if err != nil {
			b.Fatal(err)
		}
		s.Seal(dst, plaintext, nil, true)
	}
}
