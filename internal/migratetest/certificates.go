package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// writeCertificates makes what QEMU's tls-creds-x509 looks for in a folder: an authority, and by it a
// server that has that address and a client.
func writeCertificates(dir, server string) error {
	now := time.Now()
	template := func(number int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(number), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
			BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		}
	}
	ca := template(1, "authority")
	ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	s := template(2, "server")
	s.IPAddresses, s.ExtKeyUsage = []net.IP{net.ParseIP(server)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	c := template(3, "client")
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	err = writeCertificate(dir, "ca", ca, ca, caKey, caKey)
	for name, t := range map[string]*x509.Certificate{"server": s, "client": c} {
		key, keyErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if keyErr != nil {
			return keyErr
		}
		err = errors.Join(err, writeCertificate(dir, name, t, ca, key, caKey))
	}
	return err
}

// writeCertificate signs a certificate, and writes it and its key.
func writeCertificate(dir, name string, t, by *x509.Certificate, key, byKey *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, t, by, &key.PublicKey, byKey)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	write := func(what, kind string, b []byte) error {
		return os.WriteFile(filepath.Join(dir, name+what+".pem"), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600)
	}
	return errors.Join(write("-cert", "CERTIFICATE", der), write("-key", "PRIVATE KEY", secret))
}
