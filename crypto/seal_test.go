package crypto

import (
	"bytes"
	"crypto/cipher"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"
)

var suites = []Suite{AES256GCM, ChaCha20Poly1305}

func newPair(t *testing.T, s Suite, k Key) (*Sealer, *Opener) {
	t.Helper()
	sealer, err := NewSealer(s, k)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := NewOpener(s, k)
	if err != nil {
		t.Fatal(err)
	}
	return sealer, opener
}

func TestSuites(t *testing.T) {
	if !PreferredSuite().Valid() {
		t.Errorf("preferred suite %v is not valid", PreferredSuite())
	}
	for s := range 256 {
		want := s == 1 || s == 2
		if got := Suite(s).Valid(); got != want {
			t.Errorf("suite %d valid = %v, want %v", s, got, want)
		}
		if _, err := NewSealer(Suite(s), Key{}); (err == nil) != want || !want && !errors.Is(err, ErrSuite) {
			t.Errorf("NewSealer of suite %d: %v", s, err)
		}
		if _, err := NewOpener(Suite(s), Key{}); (err == nil) != want || !want && !errors.Is(err, ErrSuite) {
			t.Errorf("NewOpener of suite %d: %v", s, err)
		}
	}
}

func TestStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(suites).Draw(t, "suite")
		k := Key(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))
		frames := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 300), 1, 8).Draw(t, "frames")
		aad := rapid.SliceOf(rapid.Byte()).Draw(t, "aad")
		sealer, err := NewSealer(s, k)
		if err != nil {
			t.Fatal(err)
		}
		opener, err := NewOpener(s, k)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range frames {
			last := i == len(frames)-1
			sealed := sealer.Seal([]byte("head"), f, aad, last)
			if got, want := len(sealed), 4+len(f)+Overhead; got != want {
				t.Fatalf("length %d, want %d", got, want)
			}
			got, err := opener.Open([]byte("ho"), uint64(i), last, sealed[4:], aad)
			if err != nil || !bytes.Equal(got, append([]byte("ho"), f...)) {
				t.Fatalf("frame %d: got %x, %v, want %x", i, got, err, f)
			}
		}
	})
}

// Whatever is not as it was sealed gives ErrAuth.
func TestOpenElsewhere(t *testing.T) {
	e, salt := NewEpoch(), NewSalt()
	header, aad := []byte("header"), []byte("public")
	key := e.Key(PurposeSegment, 5, salt, header)
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			sealer, opener := newPair(t, s, key)
			var f [3][]byte
			for i := range f {
				f[i] = sealer.Seal(nil, bytes.Repeat([]byte{byte(i)}, 64), aad, i == 2)
			}
			cut := func(b []byte, n int) []byte { return b[:len(b)-n] }
			flip := func(b []byte, i int) []byte { c := bytes.Clone(b); c[i] ^= 1; return c }
			for _, c := range []struct {
				name   string
				frame  uint64
				last   bool
				sealed []byte
				aad    []byte
			}{
				{"reordered", 0, false, f[1], aad},
				{"reordered back", 1, false, f[0], aad},
				{"last too early", 0, true, f[0], aad},
				{"last denied", 2, false, f[2], aad},
				{"stream cut short", 1, true, f[1], aad},
				{"beyond 2^56", 1 << 56, false, f[0], aad},
				{"truncated", 0, false, cut(f[0], 1), aad},
				{"truncated to its tag", 0, false, f[0][:16], aad},
				{"truncated below its tag", 0, false, f[0][:15], aad},
				{"empty", 0, false, nil, aad},
				{"extended", 0, false, append(bytes.Clone(f[0]), 0), aad},
				{"data changed", 0, false, flip(f[0], 0), aad},
				{"tag changed", 0, false, flip(f[0], len(f[0])-1), aad},
				{"other aad", 0, false, f[0], []byte("Public")},
				{"no aad", 0, false, f[0], nil},
			} {
				if got, err := opener.Open(nil, c.frame, c.last, c.sealed, c.aad); err != ErrAuth || got != nil {
					t.Errorf("%s: got %d bytes, %v, want ErrAuth", c.name, len(got), err)
				}
			}
			for name, k := range map[string]Key{
				"other region":         e.Key(PurposeSegment, 6, salt, header),
				"region of its parent": e.Key(PurposeSegment, 5+256, salt, header),
				"no region":            e.Key(PurposeSegment, NoRegion, salt, header),
				"other purpose":        e.Key(PurposeLeaf, 5, salt, header),
				"other salt":           e.Key(PurposeSegment, 5, NewSalt(), header),
				"other header":         e.Key(PurposeSegment, 5, salt, []byte("Header")),
				"other epoch":          NewEpoch().Key(PurposeSegment, 5, salt, header),
			} {
				_, o := newPair(t, s, k)
				if _, err := o.Open(nil, 0, false, f[0], aad); err != ErrAuth {
					t.Errorf("%s: %v, want ErrAuth", name, err)
				}
			}
			_, o := newPair(t, 3-s, key)
			if _, err := o.Open(nil, 0, false, f[0], aad); err != ErrAuth {
				t.Errorf("other suite: %v, want ErrAuth", err)
			}
			if _, err := opener.Open(nil, 0, false, f[0], aad); err != nil {
				t.Errorf("as sealed: %v", err)
			}
		})
	}
}

// recorder is an AEAD that fails the test when a nonce comes twice.
type recorder struct {
	cipher.AEAD
	seen map[nonce]bool
	err  func(string)
}

func (r *recorder) Seal(dst, n, plaintext, aad []byte) []byte {
	if r.seen[nonce(n)] {
		r.err("a nonce came twice")
	}
	r.seen[nonce(n)] = true
	return append(dst, plaintext...)
}

func TestNoncesNeverRepeat(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &recorder{seen: make(map[nonce]bool), err: func(s string) { t.Fatal(s) }}
		start := rapid.SampledFrom([]uint64{0, 1, 254, 1<<8 - 2, 1<<32 - 3, 1<<56 - 3, math.MaxUint64 - 20}).Draw(t, "start")
		s := &Sealer{aead: r, next: start}
		sealed, done := 0, false
		for _, last := range rapid.SliceOfN(rapid.Custom(func(t *rapid.T) bool {
			return rapid.IntRange(0, 15).Draw(t, "last") == 0
		}), 1, 40).Draw(t, "frames") {
			full := start+uint64(sealed) == math.MaxUint64
			panicked := panics(func() { s.Seal(nil, nil, nil, last) })
			if panicked != (done || full) {
				t.Fatalf("after %d frames, done %v, full %v: panicked %v", sealed, done, full, panicked)
			}
			if !panicked {
				sealed++
				done = last
			}
			if len(r.seen) != sealed {
				t.Fatalf("%d nonces for %d frames", len(r.seen), sealed)
			}
		}
	})
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}

func TestNonceLayout(t *testing.T) {
	var n nonce
	for _, c := range []struct {
		frame uint64
		last  bool
		want  nonce
	}{
		{0, false, nonce{}},
		{0, true, nonce{11: 1}},
		{1, false, nonce{10: 1}},
		{0x0102030405060708, true, nonce{0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1}},
		{math.MaxUint64, false, nonce{0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0}},
	} {
		if n.set(c.frame, c.last); n != c.want {
			t.Errorf("nonce of %d, %v = %v, want %v", c.frame, c.last, n, c.want)
		}
	}
}

func TestSealInPlace(t *testing.T) {
	for _, s := range suites {
		sealer, opener := newPair(t, s, Key{1})
		buf := make([]byte, 64, 64+Overhead)
		sealed := sealer.Seal(buf[:0], buf, nil, true)
		got, err := opener.Open(sealed[:0], 0, true, sealed, nil)
		if err != nil || !bytes.Equal(got, make([]byte, 64)) {
			t.Errorf("%v: got %x, %v", s, got, err)
		}
	}
}
