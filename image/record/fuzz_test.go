package record

import (
	"bytes"
	"encoding/binary"
	"io"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sealdisk/sealdisk/crypto"
)

// What a parser accepts must encode to the same bytes again: there is one encoding
// of each value. Bodies are fuzzed as plaintext; sealed, nothing would get through.

func TestFuzzCorpus(t *testing.T) {
	for _, name := range []string{
		"FuzzSegment", "FuzzRuns", "FuzzCompressed", "FuzzLeaf", "FuzzInner", "FuzzCommitBody",
		"FuzzSnapshots", "FuzzDepMap", "FuzzCatalogue", "FuzzJournalHeader", "FuzzJournalBody", "FuzzJournalScan",
	} {
		files, err := filepath.Glob(filepath.Join("testdata", "fuzz", name, "*"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s has no corpus, %v", name, err)
		}
	}
}

// FuzzSegment: the header may say anything; a reader's memory stays bounded.
func FuzzSegment(f *testing.F) {
	w := newWorld()
	var salt crypto.Salt
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 64 { // else the epoch, which is random, would end each run
			id := w.seal.Epoch.ID()
			b = slices.Clone(b)
			copy(b[16:], id[:])
			copy(b[32:], salt[:])
		}
		s, err := OpenSegment(w.seal.Epoch, 0, salt, b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		if s.Frames() < 1 || s.DataLen() > MaxSegmentSectors*SectorSize+s.FrameSize() {
			t.Fatalf("%d frames, %d bytes", s.Frames(), s.DataLen())
		}
		if _, err := s.Runs(); !known(err) {
			t.Fatal(err)
		}
		if _, err := readAll(s); !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzRuns(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		runs, sectors, err := parseRuns(b)
		if err != nil {
			return
		}
		if got := appendRuns(nil, runs); !bytes.Equal(got, b) || sectors != total(runs) {
			t.Fatalf("got %x, want %x", got, b)
		}
	})
}

func FuzzCompressed(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, c, frameLog, wantSectors uint8) {
		frameLog = MinFrameLog + frameLog%(MaxFrameLog-MinFrameLog+1)
		want := int(wantSectors) * SectorSize % (1<<frameLog + SectorSize)
		got, err := decompress([]byte("before"), b, Zstd+Compression(c%2), frameLog, want)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		n := len(got) - len("before")
		if want != 0 && n != want || n == 0 || n > 1<<frameLog || n%SectorSize != 0 {
			t.Fatalf("%d bytes, want %d", n, want)
		}
	})
}

func FuzzLeaf(f *testing.F) {
	f.Fuzz(func(t *testing.T, public, body []byte) {
		if len(body) < 9 {
			return
		}
		l, err := decodeLeaf(public, body, binary.BigEndian.Uint64(body[1:]))
		if err != nil {
			return
		}
		gotPublic, gotBody, err := l.encode()
		if err != nil || !bytes.Equal(gotPublic, public) || !bytes.Equal(gotBody, body) {
			t.Fatalf("got %x %x, %v, want %x %x", gotPublic, gotBody, err, public, body)
		}
	})
}

func FuzzInner(f *testing.F) {
	f.Fuzz(func(t *testing.T, public, body []byte) {
		if len(body) < 10 {
			return
		}
		n, err := decodeInner(public, body, body[1], binary.BigEndian.Uint64(body[2:]))
		if err != nil {
			return
		}
		gotPublic, gotBody, err := n.encode()
		if err != nil || !bytes.Equal(gotPublic, public) || !bytes.Equal(gotBody, body) {
			t.Fatalf("got %x %x, %v, want %x %x", gotPublic, gotBody, err, public, body)
		}
	})
}

func FuzzCommitBody(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := decodeBody(b)
		if err != nil {
			return
		}
		if got, err := body.encode(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("got %x, %v, want %x", got, err, b)
		}
	})
}

func FuzzSnapshots(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		wire, err := decodeSnapshots(b)
		if err != nil {
			return
		}
		if got, err := encode("", wire); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("got %x, %v, want %x", got, err, b)
		}
	})
}

func FuzzDepMap(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeDepMap(b)
		if err != nil {
			return
		}
		if got, err := m.encode(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("got %x, %v, want %x", got, err, b)
		}
	})
}

func FuzzCatalogue(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCatalogue(b)
		if err != nil {
			return
		}
		if got, err := c.encode(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("got %x, %v, want %x", got, err, b)
		}
	})
}

func FuzzJournalHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, front []byte) {
		b := append(front, make([]byte, JournalHeaderSize)...)[:JournalHeaderSize]
		h, err := ParseJournalHeader(b)
		if err != nil {
			return
		}
		got := append(h.append(nil), b[journalHeader:journalHeader+crypto.Overhead]...)
		got = append(got, make([]byte, JournalHeaderSize-len(got))...)
		if !bytes.Equal(got, b) {
			t.Fatalf("got %x, want %x", got, b)
		}
	})
}

func FuzzJournalBody(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		ops, data, err := parseBody(nil, b)
		if err != nil {
			return
		}
		if got := append(appendOps(nil, ops), data...); !bytes.Equal(got, b) {
			t.Fatalf("got %x, want %x", got, b)
		}
	})
}

// FuzzJournalScan: whatever lies in the file, a scan ends, with an error of one of
// the known kinds.
func FuzzJournalScan(f *testing.F) {
	w := newWorld()
	j := newTape(f, w)
	d := sectors(1, 1)
	j.add(f, 0, []Op{write(1, d)}, d)
	f.Fuzz(func(t *testing.T, tail []byte) {
		file := append(slices.Clone(j.bytes), tail...)
		n, err := j.play(t, w, file)
		if n != 1 || !known(err) && err != io.EOF {
			t.Fatalf("%d records, %v", n, err)
		}
	})
}
