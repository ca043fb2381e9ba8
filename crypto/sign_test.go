package crypto

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
)

func TestVerifyRefuses(t *testing.T) {
	h, msg := NewHostKey(), []byte("record")
	sig := h.Sign(SignCommit, msg)
	if !Verify(h.Public(), SignCommit, msg, sig[:]) {
		t.Fatal("own signature refused")
	}
	for name, ok := range map[string]bool{
		"other label":     Verify(h.Public(), SignLease, msg, sig[:]),
		"other key":       Verify(NewHostKey().Public(), SignCommit, msg, sig[:]),
		"zero key":        Verify([32]byte{}, SignCommit, msg, sig[:]),
		"longer message":  Verify(h.Public(), SignCommit, append(msg, 0), sig[:]),
		"shorter message": Verify(h.Public(), SignCommit, msg[:5], sig[:]),
		"short signature": Verify(h.Public(), SignCommit, msg, sig[:63]),
		"long signature":  Verify(h.Public(), SignCommit, msg, append(sig[:], 0)),
		"no signature":    Verify(h.Public(), SignCommit, msg, nil),
	} {
		if ok {
			t.Errorf("%s: accepted", name)
		}
	}
	for i := range sig {
		bad := sig
		bad[i] ^= 0x10
		if Verify(h.Public(), SignCommit, msg, bad[:]) {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
}

func TestImageKeySigns(t *testing.T) {
	k := NewImageKey()
	sig := k.Sign(SignLease, []byte("lease"))
	if !Verify(k.ID(), SignLease, []byte("lease"), sig[:]) {
		t.Error("own signature refused")
	}
}

func TestCatalogueKeysDiffer(t *testing.T) {
	h, salt := NewHostKey(), NewSalt()
	want := h.CatalogueKey([16]byte{1}, salt, []byte("header"))
	if got := h.CatalogueKey([16]byte{1}, salt, []byte("header")); got != want {
		t.Error("the key is not the same again")
	}
	for name, got := range map[string]Key{
		"host":   NewHostKey().CatalogueKey([16]byte{1}, salt, []byte("header")),
		"store":  h.CatalogueKey([16]byte{2}, salt, []byte("header")),
		"salt":   h.CatalogueKey([16]byte{1}, NewSalt(), []byte("header")),
		"header": h.CatalogueKey([16]byte{1}, salt, []byte("Header")),
	} {
		if got == want {
			t.Errorf("another %s has the same key", name)
		}
	}
}

func TestHostKeyPEM(t *testing.T) {
	h := NewHostKey()
	b, err := h.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseHostKey(b)
	if err != nil || got.Public() != h.Public() {
		t.Errorf("got %x, %v, want %x", got.Public(), err, h.Public())
	}

	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"nothing":   nil,
		"text":      []byte("hello"),
		"P-256":     pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}),
		"type":      bytes.ReplaceAll(b, []byte("PRIVATE KEY"), []byte("SECRET KEY")),
		"twice":     append(bytes.Clone(b), b...),
		"truncated": b[:len(b)/2],
		"too long":  append(bytes.Clone(b), strings.Repeat("\n", pemMaxSize)...),
	} {
		if _, err := ParseHostKey(bad); !errors.Is(err, ErrHostKey) {
			t.Errorf("%s: %v, want ErrHostKey", name, err)
		}
	}
}
