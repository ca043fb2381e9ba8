package crypto

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
)

var (
	// ErrRecipient says that a string is no recipient.
	ErrRecipient = errors.New("crypto: not a recipient")
	// ErrClassic is returned by CheckClasses for a recipient below the hybrid class.
	ErrClassic = errors.New("crypto: recipient is not post-quantum")
)

// Class is how strong a recipient is, the strongest first.
type Class int

// The classes, by the age file of a keyring that they use.
const (
	Hybrid     Class = iota // age1pq1…: ML-KEM-768 with X25519
	Classic                 // age1…, ssh-rsa, ssh-ed25519 and plugins
	Passphrase              // scrypt
)

// String returns "hybrid", "classic" or "passphrase".
func (c Class) String() string {
	switch c {
	case Hybrid:
		return "hybrid"
	case Classic:
		return "classic"
	case Passphrase:
		return "passphrase"
	}
	return fmt.Sprintf("class %d", int(c))
}

const (
	// passphrasePrefix marks the hybrid recipient whose identity is in file 3.
	passphrasePrefix = "passphrase:"
	hybridPrefix     = "age1pq1"

	maxRecipientString = 4096 // RSA of 16,384 bits fits
	maxRecipientLine   = 8192 // with its comment; sshd's limit too
	maxRecipientFile   = 1 << 20
)

// CanonicalRecipient returns the one spelling under which a recipient is stored
// and compared: no blanks around it, and of an ssh key the type and key only.
func CanonicalRecipient(s string) (string, error) {
	c, _, err := canonical(s)
	return c, err
}

// canonical looks at the spelling only; ParseRecipient at the key too. Errors
// never repeat s, which may be an identity that was pasted by mistake.
func canonical(s string) (string, Class, error) {
	s = strings.Trim(s, " \t\r\n")
	if len(s) > maxRecipientLine || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", 0, ErrRecipient
	}
	class := Classic
	switch {
	case strings.HasPrefix(s, "AGE-SECRET-KEY-"), strings.HasPrefix(s, "AGE-PLUGIN-"):
		return "", 0, fmt.Errorf("%w but an identity, which is secret", ErrRecipient)
	case strings.HasPrefix(s, "ssh-rsa "), strings.HasPrefix(s, "ssh-ed25519 "):
		f := strings.Fields(s)
		if blob, err := base64.StdEncoding.Strict().DecodeString(f[1]); err != nil || len(blob) == 0 {
			return "", 0, fmt.Errorf("%w: ssh key", ErrRecipient)
		}
		s = f[0] + " " + f[1]
	case strings.HasPrefix(s, hybridPrefix):
		class = Hybrid
	case strings.HasPrefix(s, passphrasePrefix+hybridPrefix):
		class = Passphrase
	case !strings.HasPrefix(s, "age1"):
		return "", 0, ErrRecipient
	}
	if len(s) > maxRecipientString || !strings.HasPrefix(s, "ssh-") && strings.ContainsFunc(s, notInRecipient) {
		return "", 0, ErrRecipient
	}
	return s, class, nil
}

// notInRecipient: Bech32 is lower case here, and a plugin's name may hold "+-._".
func notInRecipient(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("+-._:", r)
}

func isPassphrase(s string) bool { return strings.HasPrefix(s, passphrasePrefix) }

// ParseRecipient parses age1pq1…, age1…, ssh-rsa, ssh-ed25519 and the recipients
// of plugins (age1NAME1…), and says which class it is. The recipient that
// AddPassphrase adds is of class Passphrase. Errors wrap ErrRecipient and do not
// repeat s.
func ParseRecipient(s string) (age.Recipient, Class, error) {
	s, class, err := canonical(s)
	if err != nil {
		return nil, 0, err
	}
	var r age.Recipient
	switch {
	case class != Classic:
		r, err = age.ParseHybridRecipient(strings.TrimPrefix(s, passphrasePrefix))
	case strings.HasPrefix(s, "ssh-"):
		r, err = parseSSHRecipient(s)
	case strings.Count(s, "1") > 1:
		r, err = plugin.NewRecipient(s, &plugin.ClientUI{})
	default:
		r, err = age.ParseX25519Recipient(s)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%w: malformed %s recipient", ErrRecipient, class)
	}
	if class == Classic {
		r = classicRecipient{r}
	}
	return r, class, nil
}

// parseSSHRecipient refuses a key whose own type is not the one written before
// it, so that one key has one spelling.
func parseSSHRecipient(s string) (age.Recipient, error) {
	r, err := agessh.ParseRecipient(s)
	if err != nil {
		return nil, err
	}
	switch r.(type) {
	case *agessh.RSARecipient:
		if strings.HasPrefix(s, "ssh-rsa ") {
			return r, nil
		}
	case *agessh.Ed25519Recipient:
		if strings.HasPrefix(s, "ssh-ed25519 ") {
			return r, nil
		}
	}
	return nil, ErrRecipient
}

// classicRecipient lets a post-quantum plugin stand beside classic recipients in
// file 2. That is no weaker than the file's class says. Other labels stay.
type classicRecipient struct{ age.Recipient }

// WrapWithLabels implements age.RecipientWithLabels.
func (r classicRecipient) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	l, ok := r.Recipient.(age.RecipientWithLabels)
	if !ok {
		s, err := r.Wrap(fileKey)
		return s, nil, err
	}
	s, labels, err := l.WrapWithLabels(fileKey)
	return s, slices.DeleteFunc(labels, func(l string) bool { return l == "postquantum" }), err
}

// ParseRecipients reads a recipients file: one recipient a line, "#" comments and
// blank lines ignored; at most 1 MiB and 256 recipients. It returns them canonical,
// without repetitions. Errors name the line's number, never its text.
func ParseRecipients(r io.Reader) ([]string, error) {
	lr := &io.LimitedReader{R: r, N: maxRecipientFile + 1}
	sc := bufio.NewScanner(lr)
	var out []string
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		_, class, err := ParseRecipient(line)
		if err != nil {
			return nil, fmt.Errorf("crypto: recipients file: line %d: %w", n, err)
		}
		if class == Passphrase {
			return nil, fmt.Errorf("crypto: recipients file: line %d: %w: of a passphrase", n, ErrRecipient)
		}
		c, _, _ := canonical(line)
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
		if len(out) > maxRecipients {
			return nil, fmt.Errorf("crypto: recipients file: %w: more than %d recipients", ErrTooLarge, maxRecipients)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("crypto: recipients file: %w", err)
	}
	if lr.N == 0 {
		return nil, fmt.Errorf("crypto: recipients file: %w: more than %d bytes", ErrTooLarge, maxRecipientFile)
	}
	if len(out) == 0 {
		return nil, errors.New("crypto: recipients file: no recipients")
	}
	return out, nil
}

// Fingerprint returns 16 hex digits that stand for a recipient in lists: the
// start of the SHA-256 of its canonical spelling. It is for people, not for checks.
func Fingerprint(recipient string) string {
	if c, err := CanonicalRecipient(recipient); err == nil {
		recipient = c
	}
	h := sha256.Sum256([]byte(recipient))
	return hex.EncodeToString(h[:8])
}

// Weakest returns the weakest class among recipients: Hybrid if there are none. A
// string that is no recipient counts as Classic.
func Weakest(recipients []string) Class {
	weakest := Hybrid
	for _, s := range recipients {
		weakest = max(weakest, classOf(s))
	}
	return weakest
}

func classOf(s string) Class {
	_, class, err := canonical(s)
	if err != nil {
		return Classic
	}
	return class
}

// CheckClasses is the policy of --allow-classic: it returns ErrClassic, naming
// the recipient, for the first that is not hybrid, unless allowClassic.
func CheckClasses(recipients []string, allowClassic bool) error {
	if allowClassic {
		return nil
	}
	for _, s := range recipients {
		if c := classOf(s); c != Hybrid {
			return fmt.Errorf("%w: %s recipient %s", ErrClassic, c, Fingerprint(s))
		}
	}
	return nil
}
