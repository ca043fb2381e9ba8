package plan

import (
	"math"
	"testing"
	"time"
)

func TestParseLink(t *testing.T) {
	for _, tt := range []struct {
		in    string
		want  Link
		ratio int64
		block int64
	}{
		{"1gbit/5ms", Link{1e9, 5 * time.Millisecond}, 625_000, 64 << 10},
		{"100mbit/20ms", Link{1e8, 20 * time.Millisecond}, 250_000, 64 << 10},
		{"10gbit/0.2ms", Link{1e10, 200 * time.Microsecond}, 250_000, 64 << 10},
		{"10GBit/5ms", Link{1e10, 5 * time.Millisecond}, 6_250_000, 512 << 10},
		{"2.5gbit/1s", Link{25e8, time.Second}, 312_500_000, 1 << 20},
		{"1bit/1ns", Link{1, 1}, 0, 64 << 10},
		{"56kbit/300ms", Link{56_000, 300 * time.Millisecond}, 2100, 64 << 10},
		{"1000tbit/1m", Link{1e15, time.Minute}, 75e14, 1 << 20},
	} {
		got, err := ParseLink(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("ParseLink(%q) = %v, %v; want %v", tt.in, got, err, tt.want)
			continue
		}
		if r := got.Ratio(); r != tt.ratio {
			t.Errorf("%s: Ratio() = %d, want %d", tt.in, r, tt.ratio)
		}
		if b := BlockSize(&got); b != tt.block {
			t.Errorf("%s: BlockSize = %d, want %d", tt.in, b, tt.block)
		}
		again, err := ParseLink(got.String())
		if err != nil || again != got {
			t.Errorf("ParseLink(%q) = %v, %v; want %v", got.String(), again, err, got)
		}
	}
}

func TestParseLinkRefuses(t *testing.T) {
	for _, in := range []string{
		"", "/", "1gbit", "1gbit/", "/5ms", "gbit/5ms", "1/5ms", "-1gbit/5ms", "0gbit/5ms", "0x1gbit/5ms",
		"1e3mbit/5ms", "nanbit/5ms", "infgbit/5ms", "1 gbit/5ms", "1gbit/5", "1gbit/0s", "1gbit/-5ms",
		"1gbit/2m", "1001tbit/5ms", "0.1bit/5ms", "1gbit/5ms/1", "1.2.3gbit/5ms", "1gbyte/5ms",
	} {
		if got, err := ParseLink(in); err == nil {
			t.Errorf("ParseLink(%q) = %v, want an error", in, got)
		}
	}
}

func TestRatioSaturates(t *testing.T) {
	for _, tt := range []struct {
		link Link
		want int64
	}{
		{Link{}, 0},
		{Link{-1, time.Second}, 0},
		{Link{1, -time.Second}, 0},
		{Link{math.MaxInt64, math.MaxInt64}, math.MaxInt64},
		{Link{math.MaxInt64, 8 * time.Second}, math.MaxInt64},
	} {
		if got := tt.link.Ratio(); got != tt.want {
			t.Errorf("%+v: Ratio() = %d, want %d", tt.link, got, tt.want)
		}
	}
}

func TestBlockSizeNearest(t *testing.T) {
	if got := BlockSize(nil); got != MinBlock {
		t.Errorf("BlockSize(nil) = %d, want %d", got, MinBlock)
	}
	// ratio ÷ 8 in the middle between two powers takes the smaller one.
	for _, tt := range []struct{ eighth, want int64 }{
		{0, 64 << 10}, {96<<10 - 1, 64 << 10}, {96 << 10, 64 << 10}, {96<<10 + 1, 128 << 10},
		{128 << 10, 128 << 10}, {192 << 10, 128 << 10}, {192<<10 + 1, 256 << 10},
		{768 << 10, 512 << 10}, {768<<10 + 1, 1 << 20}, {1 << 30, 1 << 20},
	} {
		l := Link{BitsPerSecond: tt.eighth * 64, RTT: time.Second}
		if got := BlockSize(&l); got != tt.want {
			t.Errorf("ratio %d: BlockSize = %d, want %d", l.Ratio(), got, tt.want)
		}
	}
}

func TestCheckBlockSize(t *testing.T) {
	for n := int64(MinBlock); n <= MaxBlock; n *= 2 {
		if err := CheckBlockSize(n); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []int64{-MinBlock, 0, 1, MinBlock - 1, MinBlock + 1, 3 * MinBlock, MinBlock / 2, 2 * MaxBlock} {
		if CheckBlockSize(n) == nil {
			t.Errorf("CheckBlockSize(%d) = nil, want an error", n)
		}
	}
}
