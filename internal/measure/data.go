package measure

import (
	"fmt"
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

// Number prints three digits, or all before the point; of what is less than 0.1 two.
func Number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}
