package record

import (
	"fmt"
	"unicode/utf8"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// Entry is an image of a store under the name that its user gave it.
type Entry struct {
	_      struct{} `cbor:",toarray"`
	Name   string
	Image  blockstore.ImageID
	Labels map[string]string
}

// Catalogue is a store's list of names (docs/format.md §10). The counter is one
// that the anchor knows as well.
type Catalogue struct {
	Counter uint64  `cbor:"1,keyasint"`
	Entries []Entry `cbor:"2,keyasint"` // ascending by name, each once
}

// CatalogueKey derives the key of a catalogue record from bytes 0–23 of it, as
// crypto.HostKey.CatalogueKey does.
type CatalogueKey func(store [16]byte, salt crypto.Salt, header []byte) crypto.Key

func (c *Catalogue) check() error {
	for i := range c.Entries {
		e := &c.Entries[i]
		if e.Name == "" || !utf8.ValidString(e.Name) || i > 0 && e.Name <= c.Entries[i-1].Name {
			return fmt.Errorf("name %q is empty, not text, or out of order", e.Name)
		}
		if err := checkLabels(e.Labels); err != nil {
			return err
		}
	}
	return nil
}

func (c *Catalogue) encode() ([]byte, error) {
	const what = "catalogue"
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("record: seal %s: %w", what, err)
	}
	return encode(what, c)
}

func decodeCatalogue(body []byte) (*Catalogue, error) {
	const what = "catalogue"
	c := new(Catalogue)
	if err := decode(what, body, c); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, &blockstore.CorruptError{What: what, Cause: err}
	}
	return c, nil
}

// SealCatalogue seals the catalogue of a store.
func SealCatalogue(suite crypto.Suite, store blockstore.StoreID, key CatalogueKey, c *Catalogue) ([]byte, error) {
	body, err := c.encode()
	if err != nil {
		return nil, err
	}
	salt := crypto.NewSalt()
	h := blockstore.Header{Suite: byte(suite), Kind: blockstore.KindCatalogue, Epoch: store, Salt: salt}
	return sealRecord(h, func(header []byte) crypto.Key { return key(store, salt, header) }, body)
}

// OpenCatalogue opens the catalogue of a store. Whether it is the newest is for the
// anchor to say.
func OpenCatalogue(store blockstore.StoreID, key CatalogueKey, b []byte) (*Catalogue, error) {
	const what = "catalogue"
	h, ad, sealed, err := blockstore.ParseRecord(b)
	if err != nil {
		return nil, err
	}
	if h.Kind != blockstore.KindCatalogue || h.Epoch != store || len(h.Public) != 0 {
		return nil, corrupt(what, "it is a %v of store %x with %d public bytes", h.Kind, h.Epoch, len(h.Public))
	}
	body, err := openFrame(nil, crypto.Suite(h.Suite), key(store, h.Salt, ad[:boundHeader]), what, ad, sealed)
	if err != nil {
		return nil, err
	}
	return decodeCatalogue(body)
}
