package peer

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"github.com/sealdisk/sealdisk/crypto"
)

// What is spoken on a connection, told in the handshake (docs/protocol.md §1).
const (
	Forward = "sealdisk/1"         // who dialled asks
	Reverse = "sealdisk/1 reverse" // who dialled answers
	Tunnel  = "sealdisk/1 tunnel"  // a stream
)

var protocols = []string{Forward, Reverse, Tunnel}

// ErrNotPinned: the other side's key is not the one that was pinned, or is no peer's.
var ErrNotPinned = errors.New("the key is not pinned")

// Waits for a connection to come about.
const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 15 * time.Second
)

// Endpoint is this host's side of all connections.
type Endpoint struct {
	cert tls.Certificate
	book *Book
}

// NewEndpoint makes this host's certificate: self-signed, for whoever has pinned its key.
func NewEndpoint(key crypto.HostKey, book *Book) (*Endpoint, error) {
	signer := key.TLS()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no expiry
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("peer: certificate: %w", err)
	}
	return &Endpoint{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}, book: book}, nil
}

// config is what both sides have in common. Keys are checked by fingerprint alone:
// names, dates and issuers of certificates mean nothing here. Without tickets every
// connection shows that its peer has the key, and is a peer, now.
func (e *Endpoint) config(check func(Fingerprint) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{e.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection does it
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			public, err := publicOf(cs)
			if err != nil {
				return err
			}
			if !slices.Contains(protocols, cs.NegotiatedProtocol) {
				return fmt.Errorf("peer: it speaks %q: %w", cs.NegotiatedProtocol, ErrInvalid)
			}
			return check(FingerprintOf(public))
		},
	}
}

// publicOf gives the key that the other side has proved to have.
func publicOf(cs tls.ConnectionState) ([32]byte, error) {
	if len(cs.PeerCertificates) == 0 {
		return [32]byte{}, fmt.Errorf("peer: no certificate: %w", ErrNotPinned)
	}
	public, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return [32]byte{}, fmt.Errorf("peer: not an Ed25519 key: %w", ErrNotPinned)
	}
	return [32]byte(public), nil
}

// Dial connects to a peer, to ask ([Forward]), to answer ([Reverse]) or for a stream ([Tunnel]).
func (e *Endpoint) Dial(ctx context.Context, p Peer, protocol string) (*Conn, error) {
	if p.Address == "" {
		return nil, fmt.Errorf("peer %s: %w: it has no address", p.Name, ErrInvalid)
	}
	raw, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", p.Name, err)
	}
	prompt(raw)
	config := e.config(func(key Fingerprint) error {
		if key != p.Key {
			return fmt.Errorf("peer %s has the key %v, pinned is %v: %w", p.Name, key, p.Key, ErrNotPinned)
		}
		return nil
	})
	config.NextProtos = []string{protocol}
	conn, err := handshake(ctx, tls.Client(raw, config))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("peer %s: handshake: %w", p.Name, err), ignoreClosed(raw.Close()))
	}
	return newConn(conn, p), nil
}

// Accept makes a connection of one that came in, if it is a peer's.
func (e *Endpoint) Accept(ctx context.Context, raw net.Conn) (*Conn, error) {
	prompt(raw)
	var from Peer
	config := e.config(func(key Fingerprint) (err error) {
		if from, err = e.book.Pinned(key); err != nil {
			return fmt.Errorf("%w: %w", ErrNotPinned, err)
		}
		return nil
	})
	config.NextProtos = protocols
	conn, err := handshake(ctx, tls.Server(raw, config))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("peer: handshake with %v: %w", raw.RemoteAddr(), err), ignoreClosed(raw.Close()))
	}
	return newConn(conn, from), nil
}

func handshake(ctx context.Context, conn *tls.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return conn, conn.HandshakeContext(ctx)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
