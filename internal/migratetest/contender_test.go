package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealdisk/sealdisk/internal/migratetest/latency"
)

// TestLoad: what counts is between the last samples before the two moments, or just after the second.
func TestLoad(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	var list []sample
	var h latency.Histogram
	for i := range 5 { // at 0, 1, … 4 s; i milliseconds for each of 100 writes in the second before
		for range 100 {
			h.Add(time.Duration(i) * time.Millisecond)
		}
		list = append(list, sample{at(float64(i)), h, h})
	}
	for _, tt := range []struct {
		from, to float64
		rate     float64
		median   time.Duration
	}{
		{1.5, 1.6, 100, 2 * time.Millisecond}, {2, 2.5, 100, 3 * time.Millisecond}, {0.1, 2.1, 100, 2 * time.Millisecond},
		{3.5, 9, 100, 4 * time.Millisecond}, {-1, 0.5, 100, time.Millisecond}, {8, 9, 0, 0},
	} {
		got := load(list, at(tt.from), at(tt.to))
		if got.Rate != tt.rate || got.Write.Median < tt.median*15/16 || got.Write.Median > tt.median*17/16 || got.Write != got.Flush {
			t.Errorf("from %v to %v: got %+v, want %v writes a second of %v", tt.from, tt.to, got, tt.rate, tt.median)
		}
	}
	if got := load(nil, at(0), at(1)); got.Rate != 0 {
		t.Errorf("of nothing: got %+v", got)
	}
}

func TestSamples(t *testing.T) {
	v := &vm{more: make(chan struct{})}
	for _, line := range []string{"HB 1 2 3", "TIMES 1:2 -", "TIMES x -", "TIMES 1:2", "TIMES 1:3 4:5\r"} {
		v.hear(line)
	}
	list := v.samples()
	if len(list) != 2 || list[0].write.Count() != 2 || list[0].flush.Count() != 0 || list[1].write.Count() != 3 || list[1].flush.Count() != 5 {
		t.Errorf("got %v", list)
	}
}

// TestCertificates: the authority stands for the server by its address, and for the client.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	if err := writeCertificates(dir, "10.1.2.3"); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(ca) {
		t.Fatalf("no authority: %v", err)
	}
	for _, tt := range []struct {
		name, host string
		usage      x509.ExtKeyUsage
		want       bool
	}{
		{"server", "10.1.2.3", x509.ExtKeyUsageServerAuth, true}, {"server", "10.1.2.4", x509.ExtKeyUsageServerAuth, false},
		{"client", "", x509.ExtKeyUsageClientAuth, true}, {"client", "", x509.ExtKeyUsageServerAuth, false},
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, tt.name+"-cert.pem"), filepath.Join(dir, tt.name+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: tt.host, KeyUsages: []x509.ExtKeyUsage{tt.usage}})
		if (err == nil) != tt.want {
			t.Errorf("%s as %q: got %v, want success %v", tt.name, tt.host, err, tt.want)
		}
	}
}
