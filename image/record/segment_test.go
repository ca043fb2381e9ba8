package record

import (
	"bytes"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// readAll opens all data frames of a segment.
func readAll(s *Segment) (data []byte, err error) {
	for i := range s.Frames() {
		n := len(data)
		if data, err = s.OpenFrame(data, i); err != nil {
			return nil, err
		}
		if got := len(data) - n; got != s.FrameSize() && i < s.Frames()-1 {
			return nil, errors.New("a short frame in the middle")
		}
	}
	return data, nil
}

func TestSegmentRoundTrip(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		w := w.withSuite(crypto.Suite(rapid.Uint8Range(1, 2).Draw(t, "suite")))
		w.seal.Compression = Compression(rapid.Uint8Range(0, 2).Draw(t, "compression"))
		runs := drawRuns(t)
		region := rapid.Uint64Range(0, 1<<28).Draw(t, "region")
		frameLog := rapid.Uint8Range(MinFrameLog, MaxFrameLog).Draw(t, "frame")
		data := sectors(rapid.Uint64().Draw(t, "seed"), total(runs))
		prefix := []byte("before")
		out, salt, _, err := w.seal.Segment(slices.Clone(prefix), region, runs, data, frameLog)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(out, prefix) {
			t.Fatal("what was in dst is gone")
		}
		obj := out[len(prefix):]
		if len(obj) > blockstore.MaxSegment {
			t.Fatalf("a segment of %d bytes", len(obj))
		}
		s, err := OpenSegment(w.seal.Epoch, region, salt, obj)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Runs(); err != nil || !slices.Equal(got, runs) {
			t.Fatalf("runs %v, %v, want %v", got, err, runs)
		}
		if s.DataLen() < len(data) || s.DataLen() >= len(data)+s.FrameSize() {
			t.Fatalf("DataLen %d for %d bytes", s.DataLen(), len(data))
		}
		for _, expect := range []bool{false, true} {
			if expect {
				if err := s.Expect(total(runs)); err != nil {
					t.Fatal(err)
				}
				if s.DataLen() != len(data) {
					t.Fatalf("DataLen %d, want %d", s.DataLen(), len(data))
				}
			}
			if got, err := readAll(s); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("data differs, %v", err)
			}
		}
	})
}

func TestSegmentCompresses(t *testing.T) {
	w := newWorld()
	data := bytes.Repeat([]byte("text "), MaxSegmentSectors*SectorSize/5+1)[:MaxSegmentSectors*SectorSize]
	for c, want := range map[Compression][2]int{None: {1 << 20, 1<<20 + 3000}, Zstd: {0, 1 << 17}, S2: {0, 1 << 17}} {
		w.seal.Compression = c
		obj, _, _, err := w.seal.Segment(nil, 1, []Run{{0, 256}}, data, 15)
		if err != nil {
			t.Fatal(err)
		}
		if len(obj) < want[0] || len(obj) > want[1] {
			t.Errorf("%v: %d bytes, want %d to %d", c, len(obj), want[0], want[1])
		}
	}
}

// Where nothing becomes smaller not every frame is tried, and one that does ends that.
func TestSegmentGivesUpCompressing(t *testing.T) {
	w := newWorld()
	w.seal.Compression = S2
	const frame = 1 << MinFrameLog
	text := bytes.Repeat([]byte("text "), frame/5+1)[:frame]
	noise := make([]byte, frame)
	crand.Read(noise)
	var data []byte
	for i := range 32 { // noise, but for frames 7, 16, 17 and 23
		part := noise
		if slices.Contains([]int{7, 16, 17, 23}, i) {
			part = text
		}
		data = append(data, part...)
	}
	obj, salt, _, err := w.seal.Segment(nil, 1, []Run{{0, 32}}, data, MinFrameLog)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenSegment(w.seal.Epoch, 1, salt, obj)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readAll(s); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("data differs, %v", err)
	}
	var small []int
	for i := range s.Frames() {
		if _, n := s.Sealed(i); n < frame {
			small = append(small, i)
		}
	}
	// 7 follows four in vain and more; 16 is one in eight, and 17 its neighbour.
	if want := []int{16, 17}; !slices.Equal(small, want) {
		t.Errorf("compressed frames %v, want %v", small, want)
	}
}

func TestSegmentRefusesToSeal(t *testing.T) {
	w := newWorld()
	data := sectors(1, 4)
	for name, c := range map[string]struct {
		runs     []Run
		data     []byte
		frameLog uint8
	}{
		"no runs":         {nil, nil, 12},
		"too little data": {[]Run{{0, 4}}, data[:4095], 12},
		"empty run":       {[]Run{{0, 0}, {1, 4}}, data, 12},
		"adjacent runs":   {[]Run{{0, 2}, {2, 2}}, data, 12},
		"descending runs": {[]Run{{9, 2}, {2, 2}}, data, 12},
		"out of region":   {[]Run{{4093, 4}}, data, 12},
		"257 sectors":     {[]Run{{0, 257}}, sectors(1, 257), 12},
		"frame of 2 KiB":  {[]Run{{0, 4}}, data, 11},
		"frame of 256 K":  {[]Run{{0, 4}}, data, 18},
	} {
		if _, _, _, err := w.seal.Segment(nil, 0, c.runs, c.data, c.frameLog); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	w.seal.Suite = 3
	if _, _, _, err := w.seal.Segment(nil, 0, []Run{{0, 4}}, data, 12); !errors.Is(err, crypto.ErrSuite) {
		t.Errorf("suite 3: %v", err)
	}
}

func TestSegmentBelongsToItsPlace(t *testing.T) {
	w := newWorld()
	runs, data := []Run{{7, 3}}, sectors(1, 3)
	obj, salt, _, err := w.seal.Segment(nil, 5, runs, data, 12)
	if err != nil {
		t.Fatal(err)
	}
	other, otherSalt, _, err := w.seal.Segment(nil, 5, runs, data, 12)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSegment(w.seal.Epoch, 5, salt, other); !errors.Is(err, blockstore.ErrCorrupt) {
		t.Errorf("another version in its place: %v", err)
	}
	// The other version with the right salt written over its own.
	forged := slices.Clone(other)
	copy(forged[32:], salt[:])
	if s, err := OpenSegment(w.seal.Epoch, 5, salt, forged); err == nil {
		if _, err = s.OpenFrame(nil, 0); !errors.Is(err, crypto.ErrAuth) {
			t.Errorf("another version with this salt: %v", err)
		}
	}
	if _, err := OpenSegment(w.keys.Epochs[0], 5, salt, obj); !errors.Is(err, blockstore.ErrCorrupt) {
		t.Errorf("another epoch: %v", err)
	}
	s, err := OpenSegment(w.seal.Epoch, 6, salt, obj)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenFrame(nil, 0); !errors.Is(err, crypto.ErrAuth) {
		t.Errorf("another region: %v", err)
	}
	if _, err := OpenSegment(w.seal.Epoch, 5, otherSalt, other); err != nil {
		t.Errorf("in its own place: %v", err)
	}
}

func TestSegmentExpect(t *testing.T) {
	w := newWorld()
	for _, c := range []Compression{None, Zstd} {
		w.seal.Compression = c
		data := bytes.Repeat([]byte{'x'}, 10*SectorSize) // frames of 8 sectors: 8 + 2
		obj, salt, _, err := w.seal.Segment(nil, 5, []Run{{0, 10}}, data, 15)
		if err != nil {
			t.Fatal(err)
		}
		for n := -1; n <= 300; n++ {
			s, err := OpenSegment(w.seal.Epoch, 5, salt, obj)
			if err != nil {
				t.Fatal(err)
			}
			if err = s.Expect(n); err == nil {
				_, err = s.OpenFrame(nil, 1)
			}
			if (err == nil) != (n == 10) {
				t.Errorf("%v: Expect(%d): %v", c, n, err)
			}
		}
	}
}

// seal one segment of frames as they are given: what a holder of the key could write.
func (w world) rawSegment(t testing.TB, frameLog uint8, encodings []uint32, frames ...[]byte) (*Segment, error) {
	t.Helper()
	var lengths []uint32
	for i, f := range frames {
		lengths = append(lengths, encodings[i]<<28|uint32(len(f)+crypto.Overhead))
	}
	salt := crypto.NewSalt()
	b := blockstore.AppendSegmentHeader(nil, blockstore.SegmentHeader{
		Suite: byte(w.seal.Suite), FrameLog: frameLog, Epoch: w.seal.Epoch.ID(), Salt: salt, Lengths: lengths,
	})
	key := w.seal.Epoch.Key(crypto.PurposeSegment, 0, salt, b[:32], b[64:])
	sealer, err := crypto.NewSealer(w.seal.Suite, key)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		b = sealer.Seal(b, f, nil, i == len(frames)-1)
	}
	return OpenSegment(w.seal.Epoch, 0, salt, b)
}

// TestSegmentBomb: what an authentic frame says of itself is not believed either.
func TestSegmentBomb(t *testing.T) {
	w := newWorld()
	big := make([]byte, 1<<20)
	pack := func(c Compression, n int) []byte {
		b, kept := compress(nil, big[:n], c, 12)
		if !kept {
			t.Fatalf("%v of %d zeros does not compress", c, n)
		}
		return b
	}
	runs := appendRuns(nil, []Run{{0, 1}})
	for _, c := range []Compression{Zstd, S2} {
		for name, frame := range map[string][]byte{
			"too long":     pack(c, 4097)[:256],
			"1 MiB":        append(pack(c, 1<<20)[:256:256], make([]byte, 0)...),
			"not a sector": pack(c, 4000),
			"nothing":      append([]byte{0, 0, 0, 0}, make([]byte, 252)...),
			"long length":  append([]byte{255, 255, 255, 255}, make([]byte, 252)...),
			"padding":      append(pack(c, 4096)[:255:255], 1),
		} {
			s, err := w.rawSegment(t, 12, []uint32{0, uint32(c)}, runs, frame)
			if err == nil {
				_, err = s.OpenFrame(make([]byte, 0, 2<<20), 0)
			}
			if !errors.Is(err, blockstore.ErrCorrupt) {
				t.Errorf("%v, %s: %v", c, name, err)
			}
		}
	}
}

func TestSegmentTable(t *testing.T) {
	w := newWorld()
	runs := appendRuns(nil, []Run{{0, 1}})
	sector := make([]byte, SectorSize)
	big := make([]byte, 1<<13)
	for name, c := range map[string]struct {
		frameLog uint8
		enc      []uint32
		frames   [][]byte
		ok       bool
	}{
		"good":                {12, []uint32{0, 0}, [][]byte{runs, sector}, true},
		"short middle":        {13, []uint32{0, 0, 0}, [][]byte{runs, sector, sector}, false},
		"last not a sector":   {13, []uint32{0, 0, 0}, [][]byte{runs, big, sector[:4095]}, false},
		"runs not padded":     {12, []uint32{0, 0}, [][]byte{runs[:63], sector}, false},
		"no saving":           {12, []uint32{0, 1}, [][]byte{runs, sector}, false},
		"not in bucket":       {12, []uint32{0, 1}, [][]byte{runs, sector[:300]}, false},
		"encoding of frame 0": {12, []uint32{1, 0}, [][]byte{runs, sector}, false},
		"encoding 3":          {12, []uint32{0, 3}, [][]byte{runs, sector[:256]}, false},
	} {
		s, err := w.rawSegment(t, c.frameLog, c.enc, c.frames...)
		if err == nil {
			_, err = readAll(s)
		}
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The runs and the data must hold the same number of sectors.
	s, err := w.rawSegment(t, 12, []uint32{0, 0, 0}, runs, sector, sector)
	if err == nil {
		_, err = s.Runs()
	}
	if !errors.Is(err, blockstore.ErrCorrupt) {
		t.Errorf("two sectors for a run of one: %v", err)
	}
}

func TestSegmentConcurrent(t *testing.T) {
	w := newWorld()
	data := sectors(3, 64)
	obj, salt, _, err := w.seal.Segment(nil, 5, []Run{{0, 64}}, data, 12)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenSegment(w.seal.Epoch, 5, salt, obj)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range s.Frames() {
				i := (i + g) % s.Frames()
				got, err := s.OpenFrame(nil, i)
				if err != nil || !bytes.Equal(got, data[i*SectorSize:(i+1)*SectorSize]) {
					t.Errorf("frame %d differs, %v", i, err)
				}
			}
			if _, _, _, err := w.seal.Segment(nil, 5, []Run{{0, 64}}, data, 14); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSegmentHeaderLies(t *testing.T) {
	w := newWorld()
	obj, salt, _, err := w.seal.Segment(nil, 5, []Run{{0, 2}}, sectors(1, 2), 12)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, 1, 2, 4, 257, 258, 1 << 31} {
		b := slices.Clone(obj)
		binary.BigEndian.PutUint32(b[8:], n)
		if _, err := OpenSegment(w.seal.Epoch, 5, salt, b); !errors.Is(err, blockstore.ErrCorrupt) && !errors.Is(err, blockstore.ErrFormat) {
			t.Errorf("%d frames: %v", n, err)
		}
	}
	for n := range obj {
		if _, err := OpenSegment(w.seal.Epoch, 5, salt, obj[:n]); err == nil {
			t.Fatalf("opened when cut to %d of %d bytes", n, len(obj))
		}
	}
}

// The header of a segment without compressed frames follows from what the map says; of any
// other it does not, and then nothing opens.
func TestOpenRaw(t *testing.T) {
	w := newWorld()
	rapid.Check(t, func(t *rapid.T) {
		w := w.withSuite(crypto.Suite(rapid.Uint8Range(1, 2).Draw(t, "suite")))
		w.seal.Compression = Compression(rapid.Uint8Range(0, 2).Draw(t, "compression"))
		runs := drawRuns(t)
		data := make([]byte, total(runs)*SectorSize)
		if rapid.Bool().Draw(t, "noise") {
			crand.Read(data)
		}
		obj, salt, log, err := w.seal.Segment(nil, 9, runs, data, rapid.Uint8Range(MinFrameLog, MaxFrameLog).Draw(t, "frame"))
		if err != nil {
			t.Fatal(err)
		}
		want, err := OpenSegment(w.seal.Epoch, 9, salt, obj)
		if err != nil {
			t.Fatal(err)
		}
		raw := true
		for i := range want.Frames() {
			_, n := want.Sealed(i)
			raw = raw && (n == want.FrameSize()+crypto.Overhead || i == want.Frames()-1 && n == len(data)-i*want.FrameSize()+crypto.Overhead)
		}
		if raw && log > RawFrameLog {
			t.Fatalf("frames of 2^%d bytes, and none is smaller", log)
		}
		s, ok := OpenRaw(w.seal.Suite, w.seal.Epoch, 9, salt, log, total(runs), len(obj))
		if ok != raw {
			t.Fatalf("raw %v, taken for raw %v", raw, ok)
		}
		if !ok {
			return
		}
		for i := range s.Frames() {
			off, n := s.Sealed(i)
			got, err := s.OpenSealed(nil, obj[off:off+n], i)
			if err != nil || !bytes.Equal(got, data[i*s.FrameSize():min(len(data), (i+1)*s.FrameSize())]) {
				t.Fatalf("frame %d: %v", i, err)
			}
		}
		off, n := s.Sealed(0)
		for _, wrong := range []func() (*Segment, bool){
			func() (*Segment, bool) {
				return OpenRaw(3-w.seal.Suite, w.seal.Epoch, 9, salt, log, total(runs), len(obj))
			},
			func() (*Segment, bool) {
				return OpenRaw(w.seal.Suite, w.seal.Epoch, 8, salt, log, total(runs), len(obj))
			},
			func() (*Segment, bool) {
				return OpenRaw(w.seal.Suite, w.seal.Epoch, 9, crypto.Salt{}, log, total(runs), len(obj))
			},
			func() (*Segment, bool) {
				return OpenRaw(w.seal.Suite, w.seal.Epoch, 9, salt, log, total(runs), len(obj)+64)
			},
		} {
			if s, ok := wrong(); ok {
				if _, err := s.OpenSealed(nil, obj[off:off+n], 0); err == nil {
					t.Fatal("a frame opens under a header that is not its segment's")
				}
			}
		}
	})
}
