package crypto

import (
	"fmt"

	"filippo.io/age"
)

// ImageKey is an image's Ed25519 pair. Its public key is the image's id; the
// private key signs the first lease record and forced ones. The zero ImageKey is
// no key; its methods panic. Safe for concurrent use.
type ImageKey struct {
	redacted
	s          *signer
	recipients []string
	passphrase []byte // file 3 of the object it was opened from
}

type imageKeyContents struct {
	Image      []byte   `cbor:"1,keyasint"`
	Seed       []byte   `cbor:"2,keyasint"`
	Recipients []string `cbor:"3,keyasint"`
}

// NewImageKey returns a fresh image key, and so a new image's id.
func NewImageKey() *ImageKey { return &ImageKey{s: newSigner(NewSalt())} }

// ID returns the public key: the image's id.
func (k *ImageKey) ID() [32]byte { return k.s.public() }

// Sign signs b for what; the image key signs SignLease only.
func (k *ImageKey) Sign(what string, b []byte) [64]byte { return k.s.sign(what, b) }

// Recipients returns whom the object that k was opened from is sealed to.
func (k *ImageKey) Recipients() []string { return append([]string(nil), k.recipients...) }

// SealImageKey returns the image key as an object (docs/format.md §6) sealed to
// the recipients. A passphrase can be among them only if k was opened from an
// object that has it.
func (k *ImageKey) SealImageKey(recipients []string) ([]byte, error) {
	passphrase := k.passphrase
	if Weakest(recipients) != Passphrase {
		passphrase = nil
	}
	recipients, err := prepareRecipients(recipients, passphrase)
	if err != nil {
		return nil, err
	}
	id, seed := k.ID(), k.s.seed()
	plaintext, err := encodeCBOR(imageKeyContents{Image: id[:], Seed: seed[:], Recipients: recipients})
	if err != nil {
		return nil, err
	}
	return sealBox(magicImageKey, plaintext, recipients, passphrase)
}

// OpenImageKey opens an image key object. Errors are those of OpenKeyring; a seed
// that does not belong to the image is ErrAuth.
func OpenImageKey(b []byte, image [32]byte, ids []age.Identity) (*ImageKey, error) {
	x, err := parseBox(magicImageKey, b)
	if err != nil {
		return nil, err
	}
	plaintext, via, err := x.open(ids)
	if err != nil {
		return nil, err
	}
	var c imageKeyContents
	if err := decodeCBOR(plaintext, &c); err != nil {
		return nil, err
	}
	if err := x.checkRecipients(c.Recipients, via); err != nil {
		return nil, err
	}
	if len(c.Seed) != 32 {
		return nil, fmt.Errorf("%w: seed", ErrFormat)
	}
	if _, err := checkImage(c.Image, image); err != nil {
		return nil, err
	}
	k := &ImageKey{s: newSigner([32]byte(c.Seed)), recipients: c.Recipients, passphrase: x.Passphrase}
	if k.ID() != image {
		return nil, fmt.Errorf("%w: seed of another image", ErrAuth)
	}
	return k, nil
}
