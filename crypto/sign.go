package crypto

import (
	stdcrypto "crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
)

// What a signature is over (docs/format.md §2). Only these are used.
const (
	SignCommit = "commit"
	SignLease  = "lease"
)

const (
	labelCatalogueParent = "sealdisk/v1 catalogue parent"
	labelJournalHost     = "sealdisk/v1 journal host"
	purposeCatalogue     = "catalogue"
)

const (
	pemType    = "PRIVATE KEY"
	pemMaxSize = 4096
)

// ErrHostKey says that bytes are not one Ed25519 private key in PEM.
var ErrHostKey = errors.New("crypto: not an Ed25519 private key in PEM (PKCS #8)")

// signer is an Ed25519 pair, two pointers away from whatever keeps it.
type signer struct{ key *ed25519.PrivateKey }

func newSigner(seed [32]byte) *signer {
	key := ed25519.NewKeyFromSeed(seed[:])
	return &signer{&key}
}

func (s *signer) public() [32]byte { return [32]byte((*s.key)[ed25519.SeedSize:]) }

func (s *signer) seed() [32]byte { return [32]byte((*s.key)[:ed25519.SeedSize]) }

func (s *signer) sign(what string, b []byte) [64]byte {
	return [64]byte(ed25519.Sign(*s.key, signedBytes(what, b)))
}

func signedBytes(what string, b []byte) []byte {
	m := make([]byte, 0, len(labelPrefix)+len(what)+1+len(b))
	m = append(m, labelPrefix...)
	m = append(m, what...)
	m = append(m, 0)
	return append(m, b...)
}

// Verify reports whether sig is pub's signature over b for what.
func Verify(pub [32]byte, what string, b, sig []byte) bool {
	return ed25519.Verify(pub[:], signedBytes(what, b), sig)
}

// HostKey is a host's Ed25519 pair: it signs commits and leases and seals the
// catalogue. The zero HostKey is no key; its methods panic. Safe for concurrent use.
type HostKey struct {
	redacted
	s *signer
}

// NewHostKey returns a fresh host key.
func NewHostKey() HostKey { return HostKey{s: newSigner(NewSalt())} }

// Public returns the public key.
func (h HostKey) Public() [32]byte { return h.s.public() }

// Sign signs b for what, SignCommit or SignLease.
func (h HostKey) Sign(what string, b []byte) [64]byte { return h.s.sign(what, b) }

// TLS returns the key as TLS wants it, for this host's certificate and handshakes. What
// those sign begins with the labels of RFC 8446 §4.4.3 or is a certificate, never with ours.
func (h HostKey) TLS() stdcrypto.Signer { return tlsSigner{s: h.s} }

// tlsSigner is an Ed25519 key that does not print.
type tlsSigner struct {
	redacted
	s *signer
}

func (t tlsSigner) Public() stdcrypto.PublicKey {
	public := t.s.public()
	return ed25519.PublicKey(public[:])
}

func (t tlsSigner) Sign(rand io.Reader, message []byte, o stdcrypto.SignerOpts) ([]byte, error) {
	return t.s.key.Sign(rand, message, o)
}

// CatalogueKey derives the key that seals one version of the catalogue of the
// store (docs/format.md §2, "Host key"). Header is bytes 0–23 of its record.
func (h HostKey) CatalogueKey(storeID [16]byte, salt Salt, header []byte) Key {
	seed := h.s.seed()
	prk := extract(storeID[:], seed[:])
	parent := expandLabel(&prk, labelCatalogueParent)
	return recordKey(&parent, &salt, purposeCatalogue, NoRegion, [][]byte{header})
}

// JournalKey binds the key of a journal to this host: it alone writes its journals and
// reads them again, so whoever else knows the epoch cannot make one (docs/format.md §9).
func (h HostKey) JournalKey(k Key) Key {
	seed := h.s.seed()
	prk := extract(k[:], seed[:])
	return expandLabel(&prk, labelJournalHost)
}

// MarshalPEM returns the private key as PKCS #8 in PEM. What it returns is secret.
func (h HostKey) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(*h.s.key)
	if err != nil {
		return nil, fmt.Errorf("crypto: marshal host key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// ParseHostKey parses what MarshalPEM returned. It returns ErrHostKey for
// anything else, without repeating any of it.
func ParseHostKey(b []byte) (HostKey, error) {
	if len(b) > pemMaxSize {
		return HostKey{}, ErrHostKey
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(block.Headers) != 0 || len(rest) != 0 {
		return HostKey{}, ErrHostKey
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return HostKey{}, ErrHostKey
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return HostKey{}, ErrHostKey
	}
	return HostKey{s: &signer{&key}}, nil
}
