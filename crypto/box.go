package crypto

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

var (
	// ErrNoIdentity says that none of the identities is a recipient.
	ErrNoIdentity = errors.New("crypto: no identity matches")
	// ErrFormat says that bytes are not a well-formed keyring or image key of format 1.
	ErrFormat = errors.New("crypto: malformed")
	// ErrTooLarge says that a keyring would pass a limit of docs/format.md §1.
	ErrTooLarge = errors.New("crypto: too large")
)

// Limits of docs/format.md §1.
const (
	maxBox        = 1 << 20
	maxEpochs     = 256
	maxRecipients = 256
)

// box is the container of keyrings and image keys (docs/format.md §6): up to
// three age files, because age mixes neither post-quantum recipients with
// classic ones nor a passphrase with anything.
type box struct {
	Hybrid     []byte `cbor:"1,keyasint"`
	Classic    []byte `cbor:"2,keyasint"`
	Passphrase []byte `cbor:"3,keyasint"`
}

const (
	magicKeyring  = "SDkr\x01\x00\x00\x00"
	magicImageKey = "SDik\x01\x00\x00\x00"
)

// parseBox reads the container and opens nothing.
func parseBox(magic string, b []byte) (*box, error) {
	if len(b) > maxBox {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrFormat, maxBox)
	}
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		return nil, fmt.Errorf("%w: magic or version", ErrFormat)
	}
	var x box
	if err := decodeCBOR(rest, &x); err != nil {
		return nil, err
	}
	for _, f := range [][]byte{x.Hybrid, x.Classic, x.Passphrase} {
		if f != nil && len(f) == 0 {
			return nil, fmt.Errorf("%w: empty age file", ErrFormat)
		}
	}
	if x.Hybrid == nil && (x.Classic == nil || x.Passphrase != nil) {
		return nil, fmt.Errorf("%w: age files missing", ErrFormat)
	}
	return &x, nil
}

// sealBox seals plaintext to all recipients, which are canonical. Passphrase is
// file 3, made by sealPassphrase, or nil.
func sealBox(magic string, plaintext []byte, recipients []string, passphrase []byte) ([]byte, error) {
	var hybrid, classic []age.Recipient
	for _, s := range recipients {
		r, class, err := ParseRecipient(s)
		if err != nil {
			return nil, err
		}
		if class == Classic {
			classic = append(classic, r)
		} else {
			hybrid = append(hybrid, r)
		}
	}
	x := box{Passphrase: passphrase}
	var err error
	if len(hybrid) > 0 {
		if x.Hybrid, err = sealFile(plaintext, hybrid...); err != nil {
			return nil, err
		}
	}
	if len(classic) > 0 {
		if x.Classic, err = sealFile(plaintext, classic...); err != nil {
			return nil, err
		}
	}
	body, err := encodeCBOR(x)
	if err != nil {
		return nil, err
	}
	if len(magic)+len(body) > maxBox {
		return nil, fmt.Errorf("%w: %d recipients need %d bytes of %d", ErrTooLarge, len(recipients), len(magic)+len(body), maxBox)
	}
	return append([]byte(magic), body...), nil
}

// open returns what files 1 and 2 hold, from the first that one of ids opens.
// Both seal the same; that they do is checked with each epoch's master key, which
// the signed commit names. With a passphrase it goes by way of file 3, and via is
// the recipient of the identity found there.
func (x *box) open(ids []age.Identity) (plaintext []byte, via string, err error) {
	native, plugins, phrases := sortIdentities(ids)
	for _, group := range [][]age.Identity{native, plugins} {
		for _, f := range [][]byte{x.Hybrid, x.Classic} {
			if f == nil || len(group) == 0 {
				continue
			}
			b, err := openFile(f, group...)
			if !errors.Is(err, ErrNoIdentity) {
				return b, "", err
			}
		}
	}
	if x.Passphrase == nil || len(phrases) == 0 {
		return nil, "", ErrNoIdentity
	}
	s, err := openFile(x.Passphrase, phrases...)
	if err != nil {
		return nil, "", err
	}
	id, err := age.ParseHybridIdentity(string(s))
	if err != nil || id.String() != string(s) {
		return nil, "", fmt.Errorf("%w: file 3 holds no identity", ErrFormat)
	}
	b, err := openFile(x.Hybrid, id)
	return b, passphrasePrefix + id.Recipient().String(), err
}

// checkRecipients checks the list in a box against the files that the box has.
func (x *box) checkRecipients(recipients []string, via string) error {
	var classes [3]int
	seen := make(map[string]bool, len(recipients))
	for _, s := range recipients {
		c, class, err := canonical(s)
		if err != nil || c != s || seen[s] {
			return fmt.Errorf("%w: recipients", ErrFormat)
		}
		seen[s] = true
		classes[class]++
	}
	if len(recipients) > maxRecipients || classes[Passphrase] > 1 ||
		(x.Hybrid != nil) != (classes[Hybrid]+classes[Passphrase] > 0) ||
		(x.Classic != nil) != (classes[Classic] > 0) ||
		(x.Passphrase != nil) != (classes[Passphrase] > 0) {
		return fmt.Errorf("%w: recipients do not match the files", ErrFormat)
	}
	if via != "" && !seen[via] {
		return fmt.Errorf("%w: file 3 is of no recipient", ErrFormat)
	}
	return nil
}

// prepareRecipients returns the list as it is stored: canonical and distinct.
// It agrees with what checkRecipients accepts.
func prepareRecipients(recipients []string, passphrase []byte) ([]string, error) {
	if len(recipients) == 0 {
		return nil, errors.New("crypto: seal: no recipients")
	}
	if len(recipients) > maxRecipients {
		return nil, fmt.Errorf("%w: %d recipients, at most %d", ErrTooLarge, len(recipients), maxRecipients)
	}
	out := make([]string, 0, len(recipients))
	seen := make(map[string]bool, len(recipients))
	phrases := 0
	for _, s := range recipients {
		c, class, err := canonical(s)
		if err != nil {
			return nil, err
		}
		if seen[c] {
			continue
		}
		seen[c] = true
		out = append(out, c)
		if class == Passphrase {
			phrases++
		}
	}
	if phrases > 1 || (phrases == 1) != (passphrase != nil) {
		return nil, errors.New("crypto: seal: a passphrase is added with AddPassphrase, once")
	}
	return out, nil
}

func sealFile(plaintext []byte, to ...age.Recipient) ([]byte, error) {
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, to...)
	if err != nil {
		return nil, fmt.Errorf("crypto: wrap: %w", err)
	}
	if _, err := w.Write(plaintext); err != nil {
		return nil, fmt.Errorf("crypto: wrap: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("crypto: wrap: %w", err)
	}
	return buf.Bytes(), nil
}

// openFile opens one age file, no longer than a box. What age says about hostile
// bytes is not repeated: it may be as long as they are.
func openFile(b []byte, ids ...age.Identity) ([]byte, error) {
	if _, err := age.ExtractHeader(bytes.NewReader(b)); err != nil {
		return nil, fmt.Errorf("%w: age header", ErrFormat)
	}
	r, err := age.Decrypt(bytes.NewReader(b), ids...)
	var noMatch *age.NoIdentityMatchError
	var local *localError
	switch {
	case errors.As(err, &noMatch):
		return nil, ErrNoIdentity
	case errors.As(err, &local):
		return nil, fmt.Errorf("crypto: unwrap: %w", local.err)
	case err != nil:
		return nil, ErrAuth
	}
	out, err := io.ReadAll(io.LimitReader(r, maxBox))
	if err != nil {
		return nil, ErrAuth
	}
	return out, nil
}
