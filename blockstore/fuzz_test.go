package blockstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What a fuzz target's seeds are: the vectors, and what stands in testdata/fuzz.
func seeds(f *testing.F, names ...string) {
	all := vectors()
	for _, name := range names {
		f.Add(all[name])
	}
}

// check: what parses encodes to the same bytes, and nothing but a known error refuses.
func check(t *testing.T, b []byte) {
	if err := reencodes(b); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

func FuzzParseRecord(f *testing.F) {
	seeds(f, "inner", "leaf-patch", "leaf-empty", "snapshot-table")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 6 && string(b[:4]) == "SDrc" && Kind(b[6]) != KindCommit {
			check(t, b)
		}
		ParseRecord(b)
	})
}

func FuzzParseCommit(f *testing.F) {
	seeds(f, "commit", "commit-first")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 6 && string(b[:4]) == "SDrc" && Kind(b[6]) == KindCommit {
			check(t, b)
		}
		ParseCommit(b)
	})
}

// The public part alone: a fuzzer gets further without a container around it.
func FuzzParseCommitPublic(f *testing.F) {
	for _, c := range []*CommitPublic{sampleCommit(), firstCommit()} {
		f.Add(mustEncode(EncodeCommitPublic(c)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 60000 {
			check(t, seal(Header{Suite: 1, Kind: KindCommit, Public: b}, make([]byte, 80)))
		}
	})
}

func FuzzParseLease(f *testing.F) {
	seeds(f, "lease", "lease-first")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4 && string(b[:4]) == "SDls" {
			check(t, b)
		}
		ParseLease(b)
	})
}

func FuzzParseSegmentHeader(f *testing.F) {
	seeds(f, "segment")
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4 && string(b[:4]) == "SDsg" {
			check(t, b)
		}
		ParseSegmentHeader(b)
	})
}

func FuzzParseNodePublic(f *testing.F) {
	for _, p := range []NodePublic{sampleNode(), samplePatch(), {}} {
		f.Add(AppendNodePublic(nil, p))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseNodePublic(b)
		if err == nil && string(AppendNodePublic(nil, p)) != string(b) {
			t.Error("it encodes to other bytes")
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}

func FuzzParseSnapshotPublic(f *testing.F) {
	f.Add(AppendSnapshotPublic(nil, SnapshotPublic{{ID: id32(1), Tag: id16(2)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseSnapshotPublic(b)
		if err == nil && string(AppendSnapshotPublic(nil, p)) != string(b) {
			t.Error("it encodes to other bytes")
		}
	})
}

func TestFuzzCorpora(t *testing.T) {
	for _, name := range []string{"FuzzParseRecord", "FuzzParseCommit", "FuzzParseCommitPublic", "FuzzParseLease",
		"FuzzParseSegmentHeader", "FuzzParseNodePublic", "FuzzParseSnapshotPublic"} {
		entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", name))
		if err != nil || len(entries) == 0 {
			t.Errorf("%s has no committed seeds: %v", name, err)
		}
	}
}
