package anchor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/internal/durable"
)

// Mark is what the anchor remembers of one image.
type Mark struct {
	Era      blockstore.Era           `cbor:"1,keyasint"`
	Term     blockstore.Term          `cbor:"2,keyasint"`
	Sequence blockstore.Sequence      `cbor:"3,keyasint"`
	Commit   blockstore.CommitID      `cbor:"4,keyasint"`
	Journal  blockstore.JournalNumber `cbor:"5,keyasint"` // the open one, 0 if none
}

// Position of the newest commit that was seen.
func (m Mark) Position() blockstore.Position {
	return blockstore.Position{Era: m.Era, Term: m.Term, Sequence: m.Sequence}
}

// Anchor is what this host remembers of a store outside of it, so that an older
// state put back in its place is noticed (docs/format.md §10). It is safe for
// concurrent use; each change is durable on return.
type Anchor struct {
	dir string
	mu  sync.Mutex
}

type counterMark struct {
	Counter uint64 `cbor:"1,keyasint"`
}

const maxMark = 4096 // bytes of an anchor's file

// Open opens the anchor of one store in the host directory home.
func Open(home string, store blockstore.StoreID) (*Anchor, error) {
	dir := filepath.Join(home, "anchor", store.String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("anchor: %w", err)
	}
	return &Anchor{dir: dir}, nil
}

// Catalogue is the newest catalogue counter seen, 0 if none.
func (a *Anchor) Catalogue() (uint64, error) {
	var m counterMark
	_, err := a.read("catalogue", &m)
	return m.Counter, err
}

// SetCatalogue remembers a catalogue counter.
func (a *Anchor) SetCatalogue(n uint64) error { return a.write("catalogue", counterMark{n}) }

// Load gives what is remembered of an image; false if nothing is.
func (a *Anchor) Load(id blockstore.ImageID) (Mark, bool, error) {
	var m Mark
	found, err := a.read(id.String(), &m)
	return m, found, err
}

// Save remembers the state of an image.
func (a *Anchor) Save(id blockstore.ImageID, m Mark) error { return a.write(id.String(), m) }

// Forget drops what is remembered of a removed image.
func (a *Anchor) Forget(id blockstore.ImageID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := os.Remove(filepath.Join(a.dir, id.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("anchor: %w", err)
	}
	return nil
}

func (a *Anchor) read(name string, v any) (bool, error) {
	path := filepath.Join(a.dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("anchor: %w", err)
	}
	if info.Size() > maxMark {
		return false, fmt.Errorf("anchor: %s is not an anchor: %d bytes", path, info.Size())
	}
	b, err := os.ReadFile(path)
	if err == nil {
		err = cbor.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("anchor: %s: %w", path, err)
	}
	return true, nil
}

// write replaces a file: after a crash it is the old one or the new one.
func (a *Anchor) write(name string, v any) error {
	b, err := cbor.Marshal(v)
	if err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := durable.Replace(filepath.Join(a.dir, name), b); err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	return nil
}
