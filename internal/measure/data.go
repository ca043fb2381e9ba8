package measure

import (
	"io"
	"math/rand/v2"
	"slices"
)

// Noise gives n incompressible bytes, the same for the same seed, of which 32 bytes count.
func Noise(seed string, n int64) io.Reader {
	var s [32]byte
	copy(s[:], seed)
	return io.LimitReader(rand.NewChaCha8(s), n)
}

// Median gives the middle of the values, between the two middle ones if their number is even, and 0
// of none. It leaves their order.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Clone(values)
	slices.Sort(v)
	mid := len(v) / 2
	if len(v)%2 == 1 {
		return v[mid]
	}
	return (v[mid-1] + v[mid]) / 2
}

// Mean of the values, 0 of none.
func Mean(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
