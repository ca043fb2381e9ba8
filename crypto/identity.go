package crypto

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
)

// ErrIdentity says that an identity file is none, or that it asks for a
// passphrase that was not given or is wrong.
var ErrIdentity = errors.New("crypto: identity file")

const (
	maxIdentityFile = 1 << 20
	maxIdentities   = 256

	scryptWork = 18 // 2^18: age's default, 256 MiB and about a second

	// An identity file is the user's own; a keyring came from elsewhere, and
	// 2^20 is already 1 GiB.
	maxFileWork    = 22
	maxKeyringWork = 20
)

// Prompt is how a passphrase or a plugin's PIN is asked for. The zero Prompt
// asks nobody: what needs an answer fails.
type Prompt struct {
	Ask  func(prompt string) (string, error) // the answer is secret
	Show func(message string)                // such as "touch the key"
}

// identity hides an age identity from fmt, whose String would be the secret key.
type identity struct {
	redacted
	inner     age.Identity
	recipient string
	plugin    bool
}

// localError is a failure on this machine, a plugin's for instance, not of the
// bytes that were opened.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// Unwrap implements age.Identity.
func (i *identity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	key, err := i.inner.Unwrap(stanzas)
	if err != nil && i.plugin && !errors.Is(err, age.ErrIncorrectIdentity) {
		return nil, &localError{err}
	}
	return key, err
}

// passphraseIdentity opens file 3 of a keyring and nothing else.
type passphraseIdentity struct {
	redacted
	inner *age.ScryptIdentity
}

// Unwrap implements age.Identity.
func (i *passphraseIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	return i.inner.Unwrap(stanzas)
}

// PassphraseIdentity returns an identity for OpenKeyring and OpenImageKey that
// opens what AddPassphrase sealed. It refuses more than 1 GiB of work.
func PassphraseIdentity(pass string) (age.Identity, error) {
	id, err := age.NewScryptIdentity(pass)
	if err != nil {
		return nil, fmt.Errorf("crypto: %w", err)
	}
	id.SetMaxWorkFactor(maxKeyringWork)
	return &passphraseIdentity{inner: id}, nil
}

// sealPassphrase returns file 3 (docs/format.md §6), a fresh hybrid identity
// sealed with the passphrase, and that identity's recipient.
func sealPassphrase(pass string, work int) (file []byte, recipient string, err error) {
	secret, recipient, err := NewIdentity()
	if err != nil {
		return nil, "", err
	}
	r, err := age.NewScryptRecipient(pass)
	if err != nil {
		return nil, "", fmt.Errorf("crypto: %w", err)
	}
	r.SetWorkFactor(work)
	file, err = sealFile([]byte(secret), r)
	return file, passphrasePrefix + recipient, err
}

// sortIdentities parts those that open without asking anybody from plugins and
// passphrases. An age identity that is not from this package counts as native.
func sortIdentities(ids []age.Identity) (native, plugins, phrases []age.Identity) {
	for _, id := range ids {
		switch i := id.(type) {
		case *passphraseIdentity:
			phrases = append(phrases, i)
		case *identity:
			if i.plugin {
				plugins = append(plugins, i)
			} else {
				native = append(native, i)
			}
		default:
			native = append(native, i)
		}
	}
	return native, plugins, phrases
}

// NewIdentity returns a fresh hybrid identity (AGE-SECRET-KEY-PQ-1…, secret) and
// its recipient (age1pq1…).
func NewIdentity() (secret, recipient string, err error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return "", "", fmt.Errorf("crypto: new identity: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// IdentityRecipient returns the recipient of an identity that ParseIdentities
// returned. It knows those of native identities only.
func IdentityRecipient(id age.Identity) (string, bool) {
	i, ok := id.(*identity)
	if !ok || i.recipient == "" {
		return "", false
	}
	return i.recipient, true
}

// ParseIdentities reads an identity file of at most 1 MiB: lines of
// AGE-SECRET-KEY-PQ-1…, AGE-SECRET-KEY-1… and AGE-PLUGIN-…, with "#" comments; or
// the same sealed by age with a passphrase, binary or armored, for which it asks; or
// an ssh private key without a passphrase, RSA or Ed25519. Errors wrap ErrIdentity
// and name a line's number, never its text.
func ParseIdentities(r io.Reader, p Prompt) ([]age.Identity, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxIdentityFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	if len(b) > maxIdentityFile {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrIdentity, maxIdentityFile)
	}
	head := bytes.TrimLeft(b, " \t\r\n")
	switch {
	case bytes.HasPrefix(b, []byte("age-encryption.org/")):
		return openIdentities(b, p)
	case bytes.HasPrefix(head, []byte(armor.Header)):
		plain, err := io.ReadAll(armor.NewReader(bytes.NewReader(b)))
		if err != nil {
			return nil, fmt.Errorf("%w: armor is damaged", ErrIdentity)
		}
		return openIdentities(plain, p)
	case bytes.HasPrefix(head, []byte("-----BEGIN ")):
		id, err := agessh.ParseIdentity(head)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
		}
		return []age.Identity{&identity{inner: id}}, nil
	}
	return parseIdentityLines(b, p)
}

// openIdentities opens an identity file that is sealed with a passphrase.
func openIdentities(b []byte, p Prompt) ([]age.Identity, error) {
	if p.Ask == nil {
		return nil, fmt.Errorf("%w: sealed with a passphrase, and nobody to ask", ErrIdentity)
	}
	pass, err := p.Ask("passphrase of the identity file")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	id, err := age.NewScryptIdentity(pass)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	id.SetMaxWorkFactor(maxFileWork)
	plain, err := openFile(b, id)
	if errors.Is(err, ErrNoIdentity) {
		return nil, fmt.Errorf("%w: wrong passphrase, or sealed with something else", ErrIdentity)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	return parseIdentityLines(plain, p)
}

func parseIdentityLines(b []byte, p Prompt) ([]age.Identity, error) {
	var ids []age.Identity
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, err := parseIdentity(line, p)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d is no identity", ErrIdentity, n)
		}
		ids = append(ids, id)
		if len(ids) > maxIdentities {
			return nil, fmt.Errorf("%w: more than %d identities", ErrIdentity, maxIdentities)
		}
	}
	if sc.Err() != nil {
		return nil, fmt.Errorf("%w: a line is too long", ErrIdentity)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: no identities", ErrIdentity)
	}
	return ids, nil
}

func parseIdentity(s string, p Prompt) (age.Identity, error) {
	switch {
	case strings.HasPrefix(s, "AGE-SECRET-KEY-PQ-1"):
		id, err := age.ParseHybridIdentity(s)
		if err != nil {
			return nil, err
		}
		return &identity{inner: id, recipient: id.Recipient().String()}, nil
	case strings.HasPrefix(s, "AGE-SECRET-KEY-1"):
		id, err := age.ParseX25519Identity(s)
		if err != nil {
			return nil, err
		}
		return &identity{inner: id, recipient: id.Recipient().String()}, nil
	case strings.HasPrefix(s, "AGE-PLUGIN-"):
		id, err := plugin.NewIdentity(s, p.clientUI())
		if err != nil {
			return nil, err
		}
		return &identity{inner: id, plugin: true}, nil
	}
	return nil, ErrIdentity
}

// clientUI leaves out what p cannot do: age tells the plugin so.
func (p Prompt) clientUI() *plugin.ClientUI {
	ui := &plugin.ClientUI{}
	if p.Ask != nil {
		ui.RequestValue = func(name, prompt string, _ bool) (string, error) {
			return p.Ask(name + ": " + prompt)
		}
	}
	if p.Show != nil {
		ui.DisplayMessage = func(name, message string) error {
			p.Show(name + ": " + message)
			return nil
		}
		ui.WaitTimer = func(name string) { p.Show("waiting for " + name) }
	}
	return ui
}
