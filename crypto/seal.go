package crypto

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// ErrAuth says that sealed bytes are not what the key's owner sealed there. It
// never says why.
var ErrAuth = errors.New("crypto: authentication failed")

// ErrSuite says that a suite is not one of format 1.
var ErrSuite = errors.New("crypto: unknown suite")

// Overhead is how many bytes longer a sealed frame is than its plaintext.
const Overhead = 16

// Suite is an AEAD of docs/format.md §2. A reader knows all of them.
type Suite byte

// The suites of format 1.
const (
	AES256GCM        Suite = 1
	ChaCha20Poly1305 Suite = 2
)

// Valid reports whether s is a suite of format 1.
func (s Suite) Valid() bool { return s == AES256GCM || s == ChaCha20Poly1305 }

// String returns the suite's usual name.
func (s Suite) String() string {
	switch s {
	case AES256GCM:
		return "AES-256-GCM"
	case ChaCha20Poly1305:
		return "ChaCha20-Poly1305"
	}
	return fmt.Sprintf("suite %d", byte(s))
}

// PreferredSuite returns AES256GCM where the CPU has instructions for AES and
// for carry-less multiplication, else ChaCha20Poly1305: without them AES is slow
// and its tables leak through the cache.
func PreferredSuite() Suite {
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 ||
		cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
		cpu.S390X.HasAES && cpu.S390X.HasAESGCM {
		return AES256GCM
	}
	return ChaCha20Poly1305
}

func newAEAD(s Suite, k Key) (cipher.AEAD, error) {
	switch s {
	case AES256GCM:
		b, err := aes.NewCipher(k[:])
		if err != nil {
			return nil, fmt.Errorf("crypto: aes: %w", err)
		}
		return cipher.NewGCM(b)
	case ChaCha20Poly1305:
		return chacha20poly1305.New(k[:])
	}
	return nil, fmt.Errorf("%w %d", ErrSuite, byte(s))
}

// nonce is u88 frame ‖ u8 last (docs/format.md §2). The counter's upper three
// bytes stay zero: no stream has 2^64 frames.
type nonce [12]byte

func (n *nonce) set(frame uint64, last bool) {
	binary.BigEndian.PutUint64(n[3:11], frame)
	n[11] = 0
	if last {
		n[11] = 1
	}
}

// Sealer seals the frames of one stream, in order. Give a key to one Sealer
// only: a second one would repeat its nonces. Not safe for concurrent use.
type Sealer struct {
	redacted
	aead  cipher.AEAD
	next  uint64
	done  bool
	nonce nonce
}

// NewSealer returns a Sealer at frame 0, or ErrSuite.
func NewSealer(s Suite, k Key) (*Sealer, error) {
	a, err := newAEAD(s, k)
	if err != nil {
		return nil, err
	}
	return &Sealer{aead: a}, nil
}

// Seal appends the next frame to dst: len(plaintext) + Overhead bytes. The spare
// capacity of dst must not overlap plaintext, unless dst is plaintext[:0]. After
// a last frame, or 2^64−1 frames, it panics: the caller has a bug.
func (s *Sealer) Seal(dst, plaintext, aad []byte, last bool) []byte {
	if s.done {
		panic("crypto: Seal after the last frame")
	}
	if s.next == math.MaxUint64 {
		panic("crypto: Seal: frame counter overflow")
	}
	s.nonce.set(s.next, last)
	s.next++
	s.done = last
	return s.aead.Seal(dst, s.nonce[:], plaintext, aad)
}

// Opener opens single frames of one stream. Safe for concurrent use.
type Opener struct {
	redacted
	aead cipher.AEAD
}

// NewOpener returns an Opener, or ErrSuite.
func NewOpener(s Suite, k Key) (*Opener, error) {
	a, err := newAEAD(s, k)
	if err != nil {
		return nil, err
	}
	return &Opener{aead: a}, nil
}

// Open appends the plaintext of a frame to dst: len(sealed) − Overhead bytes.
// Frame and last say where the caller expects it. It returns ErrAuth if the
// frame was not sealed there under this key with this aad. The spare capacity of
// dst must not overlap sealed, unless dst is sealed[:0]; it may be overwritten
// on failure.
func (o *Opener) Open(dst []byte, frame uint64, last bool, sealed, aad []byte) ([]byte, error) {
	var n nonce
	n.set(frame, last)
	out, err := o.aead.Open(dst, n[:], sealed, aad)
	if err != nil {
		return nil, ErrAuth
	}
	return out, nil
}
