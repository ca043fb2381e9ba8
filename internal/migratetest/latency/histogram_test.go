package latency

import (
	"errors"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for i := range buckets - 1 {
		low, high := least(i), least(i+1)
		if low >= high {
			t.Fatalf("bucket %d: from %v to %v", i, low, high)
		}
		for d, want := range map[time.Duration]int{low: i, high - 1: i, high: i + 1} {
			if got := bucket(d); got != want {
				t.Errorf("%v: got bucket %d, want %d", d, got, want)
			}
		}
	}
	for d, want := range map[time.Duration]int{-time.Second: 0, 1000 * time.Hour: buckets - 1} {
		if got := bucket(d); got != want {
			t.Errorf("%v: got bucket %d, want %d", d, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	var h, before Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: got %v", got)
	}
	for range 1000 {
		h.Add(time.Hour)
	}
	before = h
	for us := 1; us <= 1000; us++ {
		h.Add(time.Duration(us) * time.Microsecond)
	}
	h = h.Since(before)
	if got := h.Count(); got != 1000 {
		t.Fatalf("got %d, want 1000", got)
	}
	for share, want := range map[float64]time.Duration{0: time.Microsecond, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := h.Quantile(share); got < want*15/16 || got > want*17/16+time.Microsecond {
			t.Errorf("%v: got %v, want about %v", share, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, text := range []string{"-", "0:1", "3:7,223:18446744073709551615"} {
		h, err := Parse(text)
		if err != nil || h.String() != text {
			t.Errorf("%q: got %v, %v", text, h, err)
		}
	}
	for _, text := range []string{"", "1", "1:1,1:1", "2:1,1:1", "224:1", "1:0", "-1:1", "1:-1", "1:1,", "a:1"} {
		if h, err := Parse(text); !errors.Is(err, ErrText) || h != (Histogram{}) {
			t.Errorf("%q: got %v, %v", text, h, err)
		}
	}
}
