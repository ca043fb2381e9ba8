package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// entry is a journal record as a test wrote it.
type entry struct {
	ops     []Op
	data    []byte
	off     int64
	durable uint64
}

// tape is a journal file in memory.
type tape struct {
	w       *JournalSealer
	bytes   []byte
	entries []entry
}

func newTape(t testing.TB, w world) *tape {
	t.Helper()
	j, err := NewJournalSealer(w.seal, JournalHeader{Image: fill32(1), Host: w.host.Public(), Era: 1, Term: 2, Number: 3, Base: fill32(4)}, w.host.JournalKey, Tag{})
	if err != nil {
		t.Fatal(err)
	}
	return &tape{w: j, bytes: j.Header()}
}

type fataler interface{ Fatal(args ...any) }

func (j *tape) add(t fataler, durable int, ops []Op, data ...[]byte) {
	off := int64(len(j.bytes))
	b, err := j.w.Record(j.bytes, ops, data, uint64(durable))
	if err != nil {
		t.Fatal(err)
	}
	if len(b)%JournalAlign != 0 {
		t.Fatal("a record that does not end on a multiple of 4,096")
	}
	j.bytes = b
	j.entries = append(j.entries, entry{ops, bytes.Join(data, nil), off, uint64(durable)})
}

func write(sector uint64, data []byte) Op {
	return Op{Kind: OpWrite, A: sector, B: uint64(len(data) / SectorSize)}
}

// play returns how many records could be read, and what came then. All must be as
// they were written.
func (j *tape) play(t fataler, w world, file []byte) (n int, err error) {
	s, err := NewJournalScanner(w.keys, bytes.NewReader(file), int64(len(file)), w.host.JournalKey)
	if err != nil {
		return 0, err
	}
	for ; ; n++ {
		ops, data, off, err := s.Next()
		if err != nil {
			if _, _, _, again := s.Next(); again != err {
				t.Fatal("another error the second time: ", again)
			}
			return n, err
		}
		if n >= len(j.entries) {
			t.Fatal("more records than were written")
		}
		e := &j.entries[n]
		if !slices.Equal(ops, e.ops) || !bytes.Equal(data, e.data) || off != e.off {
			t.Fatal("a record that was never written")
		}
	}
}

func TestJournalRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(rt *rapid.T) {
		w := w.withSuite(crypto.Suite(rapid.Uint8Range(1, 2).Draw(rt, "suite")))
		j := newTape(t, w)
		for range rapid.IntRange(0, 6).Draw(rt, "records") {
			var ops []Op
			var data [][]byte
			for range rapid.IntRange(0, 5).Draw(rt, "ops") {
				switch OpKind(rapid.Uint8Range(1, 3).Draw(rt, "kind")) {
				case OpWrite:
					d := sectors(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 3).Draw(rt, "sectors"))
					ops, data = append(ops, write(rapid.Uint64Range(0, 1<<39).Draw(rt, "at"), d)), append(data, d)
				case OpZero:
					ops = append(ops, Op{OpZero, rapid.Uint64Range(0, 1<<39).Draw(rt, "at"), 1 << 39})
				case OpResize:
					ops = append(ops, Op{OpResize, rapid.Uint64Range(1, MaxImageSize).Draw(rt, "size"), 0})
				}
			}
			j.add(rt, rapid.IntRange(0, len(j.bytes)).Draw(rt, "durable"), ops, data...)
		}
		tail := make([]byte, rapid.IntRange(0, 9000).Draw(rt, "tail"))
		n, err := j.play(rt, w, append(slices.Clone(j.bytes), tail...))
		if n != len(j.entries) || err != io.EOF {
			rt.Fatalf("%d records, %v, want %d and EOF", n, err, len(j.entries))
		}
	})
}

// TestJournalAfterCrash loses and flips parts of what was not durable, and of what was.
func TestJournalAfterCrash(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(rt *rapid.T) {
		j := newTape(t, w)
		durable := 0
		for i := range rapid.IntRange(1, 8).Draw(rt, "records") {
			d := sectors(uint64(i), rapid.IntRange(1, 3).Draw(rt, "sectors"))
			j.add(rt, durable, []Op{write(uint64(i), d)}, d)
			if rapid.Bool().Draw(rt, "sync") {
				durable = len(j.bytes)
			}
		}
		file := slices.Clone(j.bytes)
		// Something is bad in record bad, and perhaps the file ends after it.
		bad := rapid.IntRange(0, len(j.entries)-1).Draw(rt, "bad")
		at := int(j.entries[bad].off)
		size := journalRecord + int(binary.BigEndian.Uint32(file[at+4:]))
		flip := rapid.IntRange(0, 8*size-1).Draw(rt, "bit")
		file[at+flip/8] ^= 1 << (flip % 8)
		keep := rapid.IntRange(bad+1, len(j.entries)).Draw(rt, "keep")
		if keep < len(j.entries) {
			clear(file[j.entries[keep].off:])
		}
		want := false // does a later record say that this place was durable?
		for _, e := range j.entries[bad+1 : keep] {
			want = want || e.durable > uint64(at)
		}
		n, err := j.play(rt, w, file)
		if n != bad {
			rt.Fatalf("%d records before the bad one, want %d", n, bad)
		}
		var c *blockstore.CorruptError
		if got := errors.As(err, &c); got != want || !got && err != io.EOF {
			rt.Fatalf("%v, corrupt: want %v", err, want)
		}
	})
}

func TestJournalForeignRecords(t *testing.T) {
	w := newWorld()
	d := sectors(1, 1)
	old := newTape(t, w)
	for i := range 5 {
		old.add(t, len(old.bytes), []Op{write(uint64(i), d)}, d)
	}
	j := newTape(t, w)
	j.add(t, 4096, []Op{write(9, d)}, d)
	file := append(slices.Clone(j.bytes), old.bytes[len(j.bytes):]...)
	if n, err := j.play(t, w, file); n != 1 || err != io.EOF {
		t.Errorf("a recycled file: %d records, %v, want 1 and EOF", n, err)
	}
	// A record moved, repeated, or left out is not the next one.
	j.add(t, len(j.bytes), []Op{write(10, d)}, d)
	j.add(t, len(j.bytes), []Op{write(11, d)}, d)
	first, second, third := j.entries[0].off, j.entries[1].off, j.entries[2].off
	for name, parts := range map[string][][]byte{
		"second left out": {j.bytes[:second], j.bytes[third:]},
		"first twice":     {j.bytes[:second], j.bytes[first:]},
		"swapped":         {j.bytes[:second], j.bytes[third:], j.bytes[second:third]},
	} {
		n, err := j.play(t, w, bytes.Join(parts, nil))
		if n != 1 || !errors.Is(err, blockstore.ErrCorrupt) {
			t.Errorf("%s: %d records, %v, want 1 and corrupt", name, n, err)
		}
	}
	if n, err := j.play(t, w, j.bytes[:third]); n != 2 || err != io.EOF {
		t.Errorf("cut after the second: %d records, %v", n, err)
	}
}

// TestJournalForgedHeaders: what merely looks like records costs bounded work.
func TestJournalForgedHeaders(t *testing.T) {
	w := newWorld()
	j := newTape(t, w)
	forged := make([]byte, 400*JournalAlign)
	for off := 0; off < len(forged); off += JournalAlign {
		copy(forged[off:], "SDjr")
		binary.BigEndian.PutUint32(forged[off+4:], uint32(len(forged)-off-journalRecord))
		binary.BigEndian.PutUint64(forged[off+16:], 1<<40)
	}
	n, err := j.play(t, w, append(slices.Clone(j.bytes), forged...))
	if n != 0 || !errors.Is(err, blockstore.ErrCorrupt) {
		t.Errorf("%d records, %v, want 0 and corrupt", n, err)
	}
}

func TestJournalHeader(t *testing.T) {
	w := newWorld()
	d := sectors(1, 1)
	j := newTape(t, w)
	j.add(t, 4096, []Op{write(9, d)}, d)
	j.add(t, len(j.bytes), []Op{write(9, d)}, d)
	h, err := ParseJournalHeader(j.bytes[:JournalHeaderSize])
	if err != nil || h != j.w.header || h.Epoch != w.seal.Epoch.ID() {
		t.Errorf("header %+v, %v, want %+v", h, err, j.w.header)
	}
	for i := range 8 * JournalHeaderSize {
		if i > 8*192 && i%8 != 0 {
			continue // of the padding one bit of each byte will do
		}
		file := slices.Clone(j.bytes)
		file[i/8] ^= 1 << (i % 8)
		if n, err := j.play(t, w, file); n != 0 || !known(err) {
			t.Errorf("header bit %d: %d records, %v", i, n, err)
		}
	}
	for n := range JournalHeaderSize {
		if _, err := j.play(t, w, j.bytes[:n]); !errors.Is(err, blockstore.ErrCorrupt) {
			t.Fatalf("file of %d bytes: %v", n, err)
		}
	}
	w.keys.Epochs = w.keys.Epochs[:1]
	if _, err := j.play(t, w, j.bytes); !errors.Is(err, ErrNoEpoch) {
		t.Errorf("another keyring: %v", err)
	}
}

func TestJournalRefusesToSeal(t *testing.T) {
	w := newWorld()
	j := newTape(t, w)
	d := sectors(1, 2)
	for name, c := range map[string]struct {
		ops     []Op
		data    []byte
		durable uint64
	}{
		"kind 0":         {[]Op{{0, 1, 1}}, nil, 0},
		"kind 4":         {[]Op{{4, 1, 1}}, nil, 0},
		"no sectors":     {[]Op{{OpZero, 1, 0}}, nil, 0},
		"beyond 2^52":    {[]Op{{OpZero, 1 << 40, 1}}, nil, 0},
		"overflow":       {[]Op{{OpZero, 1, 1<<64 - 1}}, nil, 0},
		"resize to 0":    {[]Op{{OpResize, 0, 0}}, nil, 0},
		"resize and b":   {[]Op{{OpResize, 1, 1}}, nil, 0},
		"too much data":  {[]Op{{OpWrite, 1, 1}}, d, 0},
		"too little":     {[]Op{{OpWrite, 1, 3}}, d, 0},
		"not a sector":   {[]Op{{OpWrite, 1, 1}}, d[:100], 0},
		"over 4 MiB":     {[]Op{{OpWrite, 1, 1025}}, make([]byte, 1025*4096), 0},
		"too many ops":   {make([]Op, MaxJournalOps+1), nil, 0},
		"durable beyond": {nil, nil, 4097},
	} {
		if _, err := j.w.Record(nil, c.ops, [][]byte{c.data}, c.durable); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	big := make([]byte, MaxJournalData)
	j.add(t, 4096, []Op{write(0, big)}, big)
	many := make([]Op, MaxJournalOps)
	for i := range many {
		many[i] = Op{OpZero, uint64(i), 1}
	}
	j.add(t, 4096, many)
	if n, err := j.play(t, w, j.bytes); n != 2 || err != io.EOF {
		t.Errorf("the largest records: %d, %v", n, err)
	}
}

type failing struct {
	r   io.ReaderAt
	off int64 // from where on reading fails
}

var errDisk = errors.New("input/output error")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.off {
		return 0, errDisk
	}
	return f.r.ReadAt(p, off)
}

// TestJournalReadError: a disk that fails is neither the end nor corruption.
func TestJournalReadError(t *testing.T) {
	w := newWorld()
	d := sectors(1, 1)
	j := newTape(t, w)
	j.add(t, 4096, []Op{write(9, d)}, d)
	j.bytes = append(j.bytes, make([]byte, 3*4096)...)
	for off := range int64(len(j.bytes) - 4096 + journalRecord) {
		s, err := NewJournalScanner(w.keys, failing{bytes.NewReader(j.bytes), off}, int64(len(j.bytes)), w.host.JournalKey)
		for err == nil {
			_, _, _, err = s.Next()
		}
		if !errors.Is(err, errDisk) {
			t.Fatalf("disk fails at %d: %v", off, err)
		}
	}
}
