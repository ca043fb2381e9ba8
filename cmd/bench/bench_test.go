package main

import (
	"errors"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/cmd/bench/report"
)

func TestParseFio(t *testing.T) {
	const half = `{"iops": 10.5, "bw_bytes": 43008, "io_bytes": 4096, "clat_ns": {"percentile": {"99.000000": 1500}}}`
	const none = `{"iops": 0, "bw_bytes": 0, "io_bytes": 0, "clat_ns": {}}`
	got, err := parseFio([]byte("fio: a warning\n" + `{"jobs": [{"error": 0, "read": ` + half + `, "write": ` + none + `}]}`))
	want := direction{IOPS: 10.5, Bytes: 43008, Total: 4096, P99: 1500 * time.Nanosecond}
	if err != nil || got.Read != want || got.Write != (direction{}) {
		t.Errorf("got %+v, %v, want %+v and no writes", got, err, want)
	}
	for name, text := range map[string]string{
		"nothing":      "",
		"a message":    "fio: no such file",
		"cut":          `{"jobs": [{"error": 0, "read": `,
		"no job":       `{"jobs": []}`,
		"an error":     `{"jobs": [{"error": 5, "read": ` + half + `, "write": ` + none + `}]}`,
		"nothing done": `{"jobs": [{"error": 0, "read": ` + none + `, "write": ` + none + `}]}`,
	} {
		if got, err := parseFio([]byte(text)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestRates(t *testing.T) {
	points, err := parseRates(strings.NewReader("1000, 100, 1, 4096, 0\n2000, 300, 1, 4096, 0\n3001, 800, 1, 4096, 0\n"))
	want := []report.Point{{T: 1, V: 100}, {T: 2, V: 300}, {T: 3.001, V: 800}}
	if err != nil || !slices.Equal(points, want) {
		t.Fatalf("got %v, %v, want %v", points, err, want)
	}
	if got, ok := firstRate(points, 2*time.Second); !ok || got != 200 {
		t.Errorf("first two seconds: got %v, %v, want 200", got, ok)
	}
	if _, ok := firstRate(nil, time.Second); ok {
		t.Error("no points gave a rate")
	}
	for _, text := range []string{"1000", "a, 1, 1", "1, b, 1"} {
		if got, err := parseRates(strings.NewReader(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}

func TestProcText(t *testing.T) {
	if got, err := field("VmPeak:\t  10 kB\nVmHWM:\t  1234 kB\n", "VmHWM:"); err != nil || got != 1234 {
		t.Errorf("VmHWM: got %d, %v, want 1234", got, err)
	}
	if got, err := field("VmPeak: 10 kB\n", "VmHWM:"); err == nil {
		t.Errorf("an absent key: got %d, want an error", got)
	}
	if got, err := parseDeviceStat("  1 2 3 4 5 6 70 8 9\n"); err != nil || got != 70*512 {
		t.Errorf("device: got %d, %v, want %d", got, err, 70*512)
	}
	if got, err := parseDeviceStat("1 2 3 4 5 6"); err == nil {
		t.Errorf("a short line: got %d, want an error", got)
	}
}

func TestNoiseIsTheSameEachTime(t *testing.T) {
	a, _ := io.ReadAll(noise(5000))
	b, _ := io.ReadAll(noise(5000))
	c, _ := io.ReadAll(noise(5001))
	if len(a) != 5000 || !slices.Equal(a, b) || slices.Equal(a, c[:5000]) {
		t.Errorf("got %d bytes, same %v, same for another length %v, want 5000, true, false", len(a), slices.Equal(a, b), slices.Equal(a, c[:5000]))
	}
}

func TestPersist(t *testing.T) {
	flaky, other := errors.New("qemu-img: Unable to get accurate CPU usage"), errors.New("no space")
	for _, tt := range []struct {
		answers []error
		want    error
		calls   int
	}{
		{[]error{nil}, nil, 1}, {[]error{flaky, flaky, nil}, nil, 3}, {[]error{flaky, other}, other, 2},
		{slices.Repeat([]error{flaky}, 20), flaky, 10},
	} {
		calls := 0
		got := persist(func() error { calls++; return tt.answers[calls-1] })
		if got != tt.want || calls != tt.calls {
			t.Errorf("got %v after %d calls, want %v after %d", got, calls, tt.want, tt.calls)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args string
		out  string
		ok   bool
	}{
		{"", defaultPage, true}, {"--quick", "", true}, {"--only READS,cold", "", true},
		{"--quick --out x.md", "x.md", true}, {"--only nothing", "", false}, {"--rounds -1", "", false}, {"more", "", false},
	} {
		got, err := parse(strings.Fields(tt.args))
		if (err == nil) != tt.ok || tt.ok && got.out != tt.out {
			t.Errorf("%q: got %q, %v, want %q, ok %v", tt.args, got.out, err, tt.out, tt.ok)
		}
	}
}

// TestParseProfile: every line of pprof counts once, for the part its function belongs to.
func TestParseProfile(t *testing.T) {
	text := `File: sealdisk
Type: cpu
Duration: 2s, Total samples = 3s (150.0%)
Showing nodes accounting for 3000ms, 100% of 3000ms total
      flat  flat%   sum%        cum   cum%
    1500ms 50.00% 50.00%     1500ms 50.00%  crypto/internal/fips140/sha256.blockSHANI
     900ms 30.00% 80.00%      900ms 30.00%  internal/runtime/syscall/linux.Syscall6
     450ms 15.00% 95.00%      900ms 30.00%  github.com/sealdisk/sealdisk/crypto.(*Sealer).Seal (inline)
     150ms  5.00%   100%      150ms  5.00%  runtime.mallocgc
         0     0%   100%     3000ms   100%  runtime.goexit
`
	got, err := parseProfile(text)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{"hash": 0.5, "system calls": 0.3, "sealdisk": 0.15, "runtime": 0.05}
	if got.Server != 1.5 || !maps.EqualFunc(got.Parts, want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
		t.Errorf("got %v of %v processors, want %v", got.Parts, got.Server, want)
	}
	for _, bad := range []string{"", "Duration: 2s, Total samples = 0 ( 0%)\n", "Duration: 2s, Total samples = 3s (150.0%)\n"} {
		if _, err := parseProfile(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
