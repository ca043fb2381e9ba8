package crypto

import (
	"fmt"
	"slices"

	"filippo.io/age"
)

// Keyring is an image's epochs and who may open them (docs/format.md §6). Reading
// it is safe for concurrent use; changing it is not: make a new one with
// WithEpoch or WithRecipients.
type Keyring struct {
	redacted

	Image      [32]byte // the image's id
	Epochs     []*Epoch // oldest first; the last one seals
	Recipients []string // canonical; see CanonicalRecipient

	passphrase []byte // file 3: kept, so that sealing again does not ask
}

// Master is what a commit says about an epoch.
type Master struct {
	ID  EpochID
	Key MasterKey
}

type keyringContents struct {
	Image      []byte      `cbor:"1,keyasint"`
	Epochs     []epochPair `cbor:"2,keyasint"`
	Recipients []string    `cbor:"3,keyasint"`
}

type epochPair struct {
	_      struct{} `cbor:",toarray"`
	ID     []byte
	Secret []byte
}

// Newest returns the epoch that seals, or nil if there is none.
func (k *Keyring) Newest() *Epoch {
	if len(k.Epochs) == 0 {
		return nil
	}
	return k.Epochs[len(k.Epochs)-1]
}

// Epoch returns the epoch with that id.
func (k *Keyring) Epoch(id EpochID) (*Epoch, bool) {
	for _, e := range k.Epochs {
		if e.id == id {
			return e, true
		}
	}
	return nil, false
}

// Masters returns the master key of each epoch, oldest first, as a commit names
// them. It derives the key sets that are not derived yet.
func (k *Keyring) Masters() []Master {
	m := make([]Master, len(k.Epochs))
	for i, e := range k.Epochs {
		m[i] = Master{e.id, e.Master()}
	}
	return m
}

// WithEpoch returns a copy that ends with e.
func (k *Keyring) WithEpoch(e *Epoch) *Keyring {
	c := k.clone()
	c.Epochs = append(c.Epochs, e)
	return c
}

// WithRecipients returns a copy sealed to these recipients only. The passphrase
// goes if its recipient is not among them. Removing a recipient takes back
// nothing: the caller begins a new epoch.
func (k *Keyring) WithRecipients(recipients []string) *Keyring {
	c := k.clone()
	c.Recipients = slices.Clone(recipients)
	if !slices.ContainsFunc(recipients, isPassphrase) {
		c.passphrase = nil
	}
	return c
}

// AddPassphrase makes a passphrase one more way to open the keyring, in place of
// an earlier one. It takes about a second and 256 MiB (scrypt). The policy for weaker
// classes is CheckClasses.
func (k *Keyring) AddPassphrase(pass string) error { return k.addPassphrase(pass, scryptWork) }

func (k *Keyring) addPassphrase(pass string, work int) error {
	file, recipient, err := sealPassphrase(pass, work)
	if err != nil {
		return err
	}
	k.Recipients = append(slices.DeleteFunc(slices.Clone(k.Recipients), isPassphrase), recipient)
	k.passphrase = file
	return nil
}

func (k *Keyring) clone() *Keyring {
	return &Keyring{
		Image: k.Image, Epochs: slices.Clone(k.Epochs),
		Recipients: slices.Clone(k.Recipients), passphrase: k.passphrase,
	}
}

// Seal returns the keyring as an object, sealed to its recipients: at most 1 MiB,
// and different at each call. It does not apply CheckClasses. Recipients that are
// plugins run their binary.
func (k *Keyring) Seal() ([]byte, error) {
	if len(k.Epochs) == 0 {
		return nil, fmt.Errorf("crypto: seal keyring: no epoch")
	}
	if len(k.Epochs) > maxEpochs {
		return nil, fmt.Errorf("%w: %d epochs, at most %d", ErrTooLarge, len(k.Epochs), maxEpochs)
	}
	recipients, err := prepareRecipients(k.Recipients, k.passphrase)
	if err != nil {
		return nil, err
	}
	c := keyringContents{Image: k.Image[:], Recipients: recipients}
	seen := make(map[EpochID]bool, len(k.Epochs))
	for _, e := range k.Epochs {
		if seen[e.id] {
			return nil, fmt.Errorf("crypto: seal keyring: epoch %s occurs twice", e.id)
		}
		seen[e.id] = true
		c.Epochs = append(c.Epochs, epochPair{ID: e.id[:], Secret: e.secret[:]})
	}
	plaintext, err := encodeCBOR(c)
	if err != nil {
		return nil, err
	}
	return sealBox(magicKeyring, plaintext, recipients, k.passphrase)
}

// OpenKeyring opens a keyring object with the first of ids that matches. The
// caller has checked b against its id, and confirms each epoch with the commit's
// master key afterwards. Errors: ErrNoIdentity if no identity (or no passphrase)
// matches; ErrFormat, ErrAuth if b is not a keyring of this image; others come from
// a plugin.
func OpenKeyring(b []byte, image [32]byte, ids []age.Identity) (*Keyring, error) {
	x, err := parseBox(magicKeyring, b)
	if err != nil {
		return nil, err
	}
	plaintext, via, err := x.open(ids)
	if err != nil {
		return nil, err
	}
	var c keyringContents
	if err := decodeCBOR(plaintext, &c); err != nil {
		return nil, err
	}
	if err := x.checkRecipients(c.Recipients, via); err != nil {
		return nil, err
	}
	k := &Keyring{Recipients: c.Recipients, passphrase: x.Passphrase}
	if k.Image, err = checkImage(c.Image, image); err != nil {
		return nil, err
	}
	if k.Epochs, err = c.epochs(); err != nil {
		return nil, err
	}
	return k, nil
}

func (c *keyringContents) epochs() ([]*Epoch, error) {
	if len(c.Epochs) == 0 || len(c.Epochs) > maxEpochs {
		return nil, fmt.Errorf("%w: number of epochs", ErrFormat)
	}
	out := make([]*Epoch, 0, len(c.Epochs))
	seen := make(map[EpochID]bool, len(c.Epochs))
	for _, p := range c.Epochs {
		if len(p.ID) != len(EpochID{}) || len(p.Secret) != 32 {
			return nil, fmt.Errorf("%w: epoch", ErrFormat)
		}
		id := EpochID(p.ID)
		if seen[id] {
			return nil, fmt.Errorf("%w: epoch occurs twice", ErrFormat)
		}
		seen[id] = true
		out = append(out, newEpoch(id, [32]byte(p.Secret)))
	}
	return out, nil
}

// checkImage returns ErrAuth for what was sealed for another image.
func checkImage(have []byte, want [32]byte) ([32]byte, error) {
	if len(have) != len(want) {
		return want, fmt.Errorf("%w: image id", ErrFormat)
	}
	if [32]byte(have) != want {
		return want, fmt.Errorf("%w: sealed for another image", ErrAuth)
	}
	return want, nil
}
