package home

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/internal/durable"
)

// Errors that a caller tells apart with errors.Is.
var (
	ErrNoHostKey   = errors.New("no host key")
	ErrNoIdentity  = errors.New("no identity")
	ErrNoRecipient = errors.New("the identity does not tell its recipient")
)

// Files of the host directory.
const (
	peersFile      = "peers"      // pinned peers, JSON
	identityFile   = "identity"   // age identities; may be sealed with a passphrase
	hostKeyFile    = "host.pem"   // Ed25519, PKCS #8
	recipientsFile = "recipients" // who gets every new image; this host's own to begin with
	adminsFile     = "admins"     // who gets the image key of every new image
)

// Host is a host directory.
type Host struct {
	Dir        string
	Key        crypto.HostKey
	Recipients []string // age notation
	Admins     []string // Recipients if nobody else was named
	identities *lazyIdentity
}

// Options say how a host directory is made.
type Options struct {
	Admins     []string // recipients that hold image keys, beside this host's
	Passphrase string   // seals the identity file; empty: the file's mode alone guards it
	Prompt     crypto.Prompt
}

// Init completes the host directory at dir: what is there stays. It tells
// whether it made an identity.
func Init(dir string, o Options) (h *Host, created bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, fmt.Errorf("home: host directory: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		if err := newIdentity(dir, o.Passphrase); err != nil {
			return nil, false, err
		}
		created = true
	} else if err := deriveRecipients(dir, o.Prompt); err != nil {
		return nil, false, err
	}
	if _, err := os.Stat(filepath.Join(dir, hostKeyFile)); errors.Is(err, fs.ErrNotExist) {
		pem, err := crypto.NewHostKey().MarshalPEM()
		if err != nil {
			return nil, false, fmt.Errorf("home: %w", err)
		}
		if err := durable.Replace(filepath.Join(dir, hostKeyFile), pem); err != nil {
			return nil, false, err
		}
	}
	if len(o.Admins) > 0 {
		if err := addAdmins(dir, o.Admins); err != nil {
			return nil, false, err
		}
	}
	h, err = Open(dir, o.Prompt)
	return h, created, err
}

// newIdentity writes a fresh hybrid identity. The recipients file goes last: its
// absence shows that the identity may need another look.
func newIdentity(dir, passphrase string) error {
	secret, recipient, err := crypto.NewIdentity()
	if err != nil {
		return fmt.Errorf("home: %w", err)
	}
	text := []byte("# sealdisk identity; keep a copy in a safe place\n# public key: " + recipient + "\n" + secret + "\n")
	if passphrase != "" {
		if text, err = sealWithPassphrase(text, passphrase); err != nil {
			return fmt.Errorf("home: seal identity: %w", err)
		}
	}
	if err := durable.Replace(filepath.Join(dir, identityFile), text); err != nil {
		return err
	}
	return durable.Replace(filepath.Join(dir, recipientsFile), []byte(recipient+"\n"))
}

func sealWithPassphrase(text []byte, passphrase string) ([]byte, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, r)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// deriveRecipients writes the recipients file of an identity that the user put
// into the directory.
func deriveRecipients(dir string, p crypto.Prompt) error {
	path := filepath.Join(dir, recipientsFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		return fmt.Errorf("home: %w", err)
	}
	ids, err := crypto.ParseIdentities(bytes.NewReader(b), p)
	if err != nil {
		return fmt.Errorf("home: %s: %w", filepath.Join(dir, identityFile), err)
	}
	var found []string
	for _, id := range ids {
		if r, ok := crypto.IdentityRecipient(id); ok {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		found = namedRecipients(b)
	}
	if len(found) == 0 {
		return fmt.Errorf("%w: write its public key into %s", ErrNoRecipient, path)
	}
	return durable.Replace(path, []byte(strings.Join(found, "\n")+"\n"))
}

// namedRecipients finds the comments that age-keygen and its plugins write.
func namedRecipients(identity []byte) []string {
	var found []string
	for s := bufio.NewScanner(bytes.NewReader(identity)); s.Scan(); {
		for _, prefix := range []string{"# public key: ", "# Recipient: ", "#    Recipient: "} {
			if r, ok := strings.CutPrefix(s.Text(), prefix); ok {
				found = append(found, strings.TrimSpace(r))
			}
		}
	}
	return found
}

func addAdmins(dir string, more []string) error {
	h := Host{Dir: dir}
	have, err := h.readRecipients(adminsFile)
	if err != nil {
		return err
	}
	own, err := h.readRecipients(recipientsFile)
	if err != nil {
		return err
	}
	all := append(have, own...)
	for _, r := range more {
		c, err := crypto.CanonicalRecipient(r)
		if err != nil {
			return fmt.Errorf("home: admin: %w", err)
		}
		all = append(all, c)
	}
	slices.Sort(all)
	return durable.Replace(filepath.Join(dir, adminsFile), []byte(strings.Join(slices.Compact(all), "\n")+"\n"))
}

// Open opens the host directory at dir. The identity file is read, and a
// passphrase asked for, only when an image is opened.
func Open(dir string, p crypto.Prompt) (*Host, error) {
	h := &Host{Dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, hostKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNoHostKey, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("home: host key: %w", err)
	}
	if h.Key, err = crypto.ParseHostKey(b); err != nil {
		return nil, fmt.Errorf("home: %s: %w", filepath.Join(dir, hostKeyFile), err)
	}
	if h.Recipients, err = h.readRecipients(recipientsFile); err != nil {
		return nil, err
	}
	if h.Admins, err = h.readRecipients(adminsFile); err != nil {
		return nil, err
	}
	if len(h.Admins) == 0 {
		h.Admins = h.Recipients
	}
	h.identities = &lazyIdentity{path: filepath.Join(dir, identityFile), prompt: p}
	return h, nil
}

// readRecipients gives none for a file that is absent.
func (h *Host) readRecipients(name string) ([]string, error) {
	f, err := os.Open(filepath.Join(h.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("home: %w", err)
	}
	defer f.Close()
	list, err := crypto.ParseRecipients(f)
	if err != nil {
		return nil, fmt.Errorf("home: %s: %w", f.Name(), err)
	}
	return list, nil
}

// Peers is the path of the book of pinned peers.
func (h *Host) Peers() string { return filepath.Join(h.Dir, peersFile) }

// Identities are all identities of the host. They read their file when they are first asked.
func (h *Host) Identities() []age.Identity { return []age.Identity{h.identities} }

// Unlock reads the identity file now, asking for its passphrase if it has one.
func (h *Host) Unlock() error {
	_, err := h.identities.load()
	return err
}

// AskPassphrase asks for the passphrase of the identity in a host directory and
// checks it; it gives "" if the identity has none.
func AskPassphrase(dir string, p crypto.Prompt) (pass string, err error) {
	ask := p.Ask
	p.Ask = func(what string) (string, error) {
		pass, err = ask(what)
		return pass, err
	}
	h, err := Open(dir, p)
	if err != nil {
		return "", err
	}
	return pass, h.Unlock()
}

// lazyIdentity is all identities of a file, read when they are first needed.
type lazyIdentity struct {
	path   string
	prompt crypto.Prompt

	mu  sync.Mutex
	ids []age.Identity
}

func (l *lazyIdentity) load() ([]age.Identity, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids != nil {
		return l.ids, nil
	}
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w at %s", ErrNoIdentity, l.path)
	}
	if err != nil {
		return nil, fmt.Errorf("home: identity: %w", err)
	}
	defer f.Close()
	ids, err := crypto.ParseIdentities(f, l.prompt)
	if err != nil {
		return nil, fmt.Errorf("home: %s: %w", l.path, err)
	}
	l.ids = ids
	return ids, nil
}

// Unwrap implements age.Identity.
func (l *lazyIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	ids, err := l.load()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		key, err := id.Unwrap(stanzas)
		if errors.Is(err, age.ErrIncorrectIdentity) {
			continue
		}
		return key, err
	}
	return nil, age.ErrIncorrectIdentity
}

// Format keeps what is behind from being printed.
func (l *lazyIdentity) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "redacted") }

// ReadIdentities reads identities from a file that is not a host's; none may need a passphrase.
func ReadIdentities(path string) ([]age.Identity, error) {
	return (&lazyIdentity{path: path}).load()
}
