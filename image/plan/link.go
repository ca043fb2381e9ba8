package plan

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Link is the network path over which an image is expected to travel.
type Link struct {
	BitsPerSecond int64
	RTT           time.Duration // round-trip time
}

// Limits that no real link exceeds; they keep what a user types sane.
const (
	maxBitsPerSecond = 1e15
	maxRTT           = time.Minute
)

// rateUnits are the decimal units that tc(8) and iperf use.
var rateUnits = []struct {
	suffix string
	bits   float64
}{
	{"tbit", 1e12}, {"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1},
}

// ParseLink reads a rate and a round-trip time, such as "1gbit/5ms" or
// "2.5gbit/0.2ms". The rate is a decimal number of bit, kbit, mbit, gbit or
// tbit per second (powers of 1000, any case), the time is in Go's notation.
func ParseLink(s string) (Link, error) {
	rate, rtt, ok := strings.Cut(s, "/")
	if !ok {
		return Link{}, fmt.Errorf("plan: link %q is not RATE/RTT, such as 1gbit/5ms", s)
	}
	bps, err := ParseRate(rate)
	if err != nil {
		return Link{}, fmt.Errorf("plan: link %q: %w", s, err)
	}
	d, err := time.ParseDuration(rtt)
	if err != nil {
		return Link{}, fmt.Errorf("plan: link %q: %w", s, err)
	}
	if d <= 0 || d > maxRTT {
		return Link{}, fmt.Errorf("plan: link %q: round-trip time must be above 0 and at most %v", s, maxRTT)
	}
	return Link{BitsPerSecond: bps, RTT: d}, nil
}

// ParseRate reads a rate in bits per second, as [ParseLink] has it.
func ParseRate(s string) (int64, error) {
	s = strings.ToLower(s)
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		if strings.Trim(number, "0123456789.") != "" {
			return 0, fmt.Errorf("rate %q is not a decimal number", number)
		}
		f, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return 0, fmt.Errorf("rate %q is not a decimal number", number)
		}
		if f *= u.bits; f < 1 || f > maxBitsPerSecond {
			return 0, fmt.Errorf("rate %q is out of range", s)
		}
		return int64(math.Round(f)), nil
	}
	return 0, fmt.Errorf("rate %q has no unit: bit, kbit, mbit, gbit or tbit", s)
}

// String gives the link in the notation that [ParseLink] reads.
func (l Link) String() string {
	for _, u := range rateUnits {
		if unit := int64(u.bits); l.BitsPerSecond >= unit && l.BitsPerSecond%unit == 0 {
			return fmt.Sprintf("%d%s/%v", l.BitsPerSecond/unit, u.suffix, l.RTT)
		}
	}
	return fmt.Sprintf("%dbit/%v", l.BitsPerSecond, l.RTT)
}

// Ratio is the paper's transmission ratio: the bytes that must be in flight to
// keep the link busy, rate × round-trip time. It saturates and is 0 for a link
// without a positive rate and time.
func (l Link) Ratio() int64 {
	if l.BitsPerSecond <= 0 || l.RTT <= 0 {
		return 0
	}
	const bitNanoseconds = 8 * uint64(time.Second)
	hi, lo := bits.Mul64(uint64(l.BitsPerSecond), uint64(l.RTT))
	if hi >= bitNanoseconds {
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, bitNanoseconds)
	return int64(min(q, math.MaxInt64))
}

// BlockSize gives the planning grid for a link, in bytes: the power of two
// nearest to its ratio ÷ 8 (the smaller of two that are as near), at least
// [MinBlock] and at most [MaxBlock]. Without a link it is MinBlock.
func BlockSize(l *Link) int64 {
	if l == nil {
		return MinBlock
	}
	want := l.Ratio() / 8
	size := int64(MinBlock)
	for size < MaxBlock && want-size > 2*size-want {
		size *= 2
	}
	return size
}

// CheckBlockSize refuses a block size that is no power of two from [MinBlock]
// to [MaxBlock].
func CheckBlockSize(n int64) error {
	if n < MinBlock || n > MaxBlock || n&(n-1) != 0 {
		return fmt.Errorf("plan: block size %d is not a power of two from %d to %d", n, MinBlock, MaxBlock)
	}
	return nil
}
