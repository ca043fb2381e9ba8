package peer

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sealdisk/sealdisk/internal/durable"
)

// Errors of the book.
var (
	ErrUnknown = errors.New("no such peer")
	ErrExists  = errors.New("peer exists already")
	ErrInvalid = errors.New("not valid")
)

// Fingerprint names a host key: the SHA-256 of the public key.
type Fingerprint [32]byte

const fingerprintPrefix = "SHA256:"

// FingerprintOf gives the fingerprint of a public key.
func FingerprintOf(public [32]byte) Fingerprint { return sha256.Sum256(public[:]) }

// ParseFingerprint reads what String writes: "SHA256:" and base64, as OpenSSH does.
func ParseFingerprint(s string) (Fingerprint, error) {
	text, ok := strings.CutPrefix(s, fingerprintPrefix)
	b, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(b) != len(Fingerprint{}) {
		return Fingerprint{}, fmt.Errorf("fingerprint %q: %w: it is SHA256: and 43 characters", s, ErrInvalid)
	}
	return Fingerprint(b), nil
}

func (f Fingerprint) String() string {
	return fingerprintPrefix + base64.RawStdEncoding.EncodeToString(f[:])
}

// MarshalText implements encoding.TextMarshaler.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Fingerprint) UnmarshalText(b []byte) (err error) {
	*f, err = ParseFingerprint(string(b))
	return err
}

// Role says what a peer may do with an image. Each role includes those before it.
type Role string

// The roles.
const (
	None    Role = "none"
	Replica Role = "replica" // fetch sealed objects, and bring newer states
	Host    Role = "host"    // become a recipient, and hold the lease
)

// ParseRole reads a role.
func ParseRole(s string) (Role, error) {
	if r := Role(s); r == None || r == Replica || r == Host {
		return r, nil
	}
	return None, fmt.Errorf("role %q: %w: it is none, replica or host", s, ErrInvalid)
}

// AllImages is the key of the role that a peer has where no other is named.
const AllImages = "*"

// Quota bounds what a peer can make this host do. 0 is the default.
type Quota struct {
	Connections int   `json:"connections,omitempty"` // at a time; default DefaultConnections
	Rate        int64 `json:"rate,omitempty"`        // bytes per second, each way; default none
	Stored      int64 `json:"stored,omitempty"`      // sealed bytes that it may bring; default what is free
}

// DefaultConnections is how many connections a peer may have at a time.
const DefaultConnections = 8

// Peer is another host.
type Peer struct {
	Name    string          `json:"name"`
	Address string          `json:"address,omitempty"` // host:port; empty: it calls, it is not called
	Key     Fingerprint     `json:"fingerprint"`
	Roles   map[string]Role `json:"roles,omitempty"` // by image id, name, or AllImages
	Quota   Quota           `json:"quota,omitzero"`
}

// Role gives the peer's role for an image, of which id or name may be empty: that of the
// id counts first, then that of the name, then that for all.
func (p Peer) Role(id, name string) Role {
	for _, key := range []string{id, name, AllImages} {
		if r, ok := p.Roles[key]; ok && key != "" {
			return r
		}
	}
	return None
}

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func (p *Peer) check() error {
	if !nameRule.MatchString(p.Name) {
		return fmt.Errorf("peer name %q: %w: it has 1 to 128 of A-Z a-z 0-9 . _ -", p.Name, ErrInvalid)
	}
	if p.Address != "" {
		if _, port, err := net.SplitHostPort(p.Address); err != nil || port == "" {
			return fmt.Errorf("address %q: %w: it is HOST:PORT", p.Address, ErrInvalid)
		}
	}
	for _, r := range p.Roles {
		if _, err := ParseRole(string(r)); err != nil {
			return err
		}
	}
	if p.Quota.Connections < 0 || p.Quota.Rate < 0 || p.Quota.Stored < 0 {
		return fmt.Errorf("quota of %s: %w: it is negative", p.Name, ErrInvalid)
	}
	return nil
}

// Book is the pinned peers of a host: a file in JSON that users may edit. Each question
// sees the file as it is then. Safe for concurrent use, by one process.
type Book struct {
	path string

	mu    sync.Mutex
	stamp stamp // of the file that peers were read from
	peers []Peer
}

type stamp struct {
	time time.Time
	size int64
	node uint64
}

// maxBook bounds the file, in bytes.
const maxBook = 4 << 20

// NewBook gives the book at path, which need not be there yet. A broken one is an error of
// each question.
func NewBook(path string) *Book { return &Book{path: path} }

type bookFile struct {
	Peers []Peer `json:"peers"`
}

// refreshLocked reads the file again if it has changed.
func (b *Book) refreshLocked() error {
	now, err := stampOf(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		b.stamp, b.peers = stamp{}, nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	if now == b.stamp {
		return nil
	}
	if now.size > maxBook {
		return fmt.Errorf("peer: %s: %w: %d bytes", b.path, ErrInvalid, now.size)
	}
	raw, err := os.ReadFile(b.path)
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	peers, err := parseBook(raw)
	if err != nil {
		return fmt.Errorf("peer: %s: %w", b.path, err)
	}
	b.stamp, b.peers = now, peers
	return nil
}

func parseBook(raw []byte) ([]Peer, error) {
	var f bookFile
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	names, keys := map[string]bool{}, map[Fingerprint]bool{}
	for i := range f.Peers {
		p := &f.Peers[i]
		if err := p.check(); err != nil {
			return nil, err
		}
		if names[p.Name] || keys[p.Key] {
			return nil, fmt.Errorf("%w: peer %s is there twice", ErrInvalid, p.Name)
		}
		names[p.Name], keys[p.Key] = true, true
	}
	return f.Peers, nil
}

// List gives all peers, by name. Do not change what they hold.
func (b *Book) List() ([]Peer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refreshLocked(); err != nil {
		return nil, err
	}
	list := slices.Clone(b.peers)
	slices.SortFunc(list, func(x, y Peer) int { return strings.Compare(x.Name, y.Name) })
	return list, nil
}

// Find gives a peer by its name ([ErrUnknown]).
func (b *Book) Find(name string) (Peer, error) {
	return b.find(name, func(p *Peer) bool { return p.Name == name })
}

// Pinned gives the peer with a key ([ErrUnknown]).
func (b *Book) Pinned(key Fingerprint) (Peer, error) {
	return b.find(key.String(), func(p *Peer) bool { return p.Key == key })
}

func (b *Book) find(what string, is func(*Peer) bool) (Peer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refreshLocked(); err != nil {
		return Peer{}, err
	}
	for i := range b.peers {
		if is(&b.peers[i]) {
			return b.peers[i], nil
		}
	}
	return Peer{}, fmt.Errorf("peer %s: %w", what, ErrUnknown)
}

// Add pins a peer ([ErrExists] if its name or key is there).
func (b *Book) Add(p Peer) error {
	if err := p.check(); err != nil {
		return err
	}
	return b.change(func(peers []Peer) ([]Peer, error) {
		if slices.ContainsFunc(peers, func(q Peer) bool { return q.Name == p.Name || q.Key == p.Key }) {
			return nil, fmt.Errorf("peer %s, %v: %w", p.Name, p.Key, ErrExists)
		}
		return append(peers, p), nil
	})
}

// Remove forgets a peer ([ErrUnknown]).
func (b *Book) Remove(name string) error {
	return b.change(func(peers []Peer) ([]Peer, error) {
		rest := slices.DeleteFunc(peers, func(p Peer) bool { return p.Name == name })
		if len(rest) == len(peers) {
			return nil, fmt.Errorf("peer %s: %w", name, ErrUnknown)
		}
		return rest, nil
	})
}

// Update changes a peer ([ErrUnknown]); its name stays.
func (b *Book) Update(name string, change func(p *Peer)) error {
	return b.change(func(peers []Peer) ([]Peer, error) {
		i := slices.IndexFunc(peers, func(p Peer) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("peer %s: %w", name, ErrUnknown)
		}
		roles := map[string]Role{} // the old one is in others' hands
		for key, r := range peers[i].Roles {
			roles[key] = r
		}
		peers[i].Roles = roles
		change(&peers[i])
		peers[i].Name = name
		return peers, peers[i].check()
	})
}

// change replaces the file, durably.
func (b *Book) change(edit func([]Peer) ([]Peer, error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refreshLocked(); err != nil {
		return err
	}
	peers, err := edit(slices.Clone(b.peers))
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(bookFile{Peers: peers}, "", "  ")
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	if err := durable.Replace(b.path, append(raw, '\n')); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	b.peers = peers
	b.stamp, err = stampOf(b.path)
	return err
}
