package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/record"
)

// nameRule is what an image or a snapshot may be called: a file name that no
// shell changes and that cannot be taken for a flag or for NAME@SNAP.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

func checkName(what, name string) error {
	if _, err := blockstore.ParseImageID(name); err == nil {
		return fail(CodeUsage, "", "%s name %q could be taken for an image's id", what, name)
	}
	if !nameRule.MatchString(name) {
		return fail(CodeUsage, "a name has 1 to 128 of A-Z a-z 0-9 . _ - and begins with a letter or a digit", "%s name %q is not valid", what, name)
	}
	return nil
}

// splitName takes NAME or NAME@SNAP apart and checks both.
func splitName(s string) (name, snapshot string, err error) {
	name, snapshot, found := strings.Cut(s, "@")
	if err := checkName("image", name); err != nil {
		return "", "", err
	}
	if found {
		if err := checkName("snapshot", snapshot); err != nil {
			return "", "", err
		}
	}
	return name, snapshot, nil
}

// catalogue is the store's names (docs/format.md §10). Safe for concurrent use.
type catalogue struct {
	store  *blockstore.Store
	anchor *anchor.Anchor
	key    record.CatalogueKey
	log    *slog.Logger

	mu       sync.Mutex
	now      record.Catalogue
	reserved map[string]bool // names of images that are being made
}

// openCatalogue reads the catalogue and compares its counter with the anchor's.
func openCatalogue(ctx context.Context, st *blockstore.Store, a *anchor.Anchor, key crypto.HostKey, log *slog.Logger) (*catalogue, error) {
	c := newCatalogue(st, a, key, log)
	seen, err := a.Catalogue()
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	raw, err := st.Catalogue()
	if errors.Is(err, blockstore.ErrNotFound) {
		return nil, fail(CodeCorrupt, "sealdisk init --recover makes it anew from the images", "daemon: the store has no catalogue")
	}
	if err != nil {
		return nil, fmt.Errorf("daemon: catalogue: %w", err)
	}
	now, err := record.OpenCatalogue(st.ID(), c.key, raw)
	if errors.Is(err, crypto.ErrAuth) {
		return nil, fail(CodeNoKey, "--home names the host directory that belongs to this store; init --recover makes the catalogue anew",
			"daemon: the catalogue was sealed with another host key, or is damaged: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("daemon: catalogue: %w", err)
	}
	if now.Counter < seen {
		return nil, fmt.Errorf("daemon: catalogue %d, this host has seen %d: %w", now.Counter, seen, image.ErrRolledBack)
	}
	c.now = *now
	if now.Counter > seen { // a crash came between the two
		if err := a.SetCatalogue(now.Counter); err != nil {
			return nil, fmt.Errorf("daemon: %w", err)
		}
	}
	return c, nil
}

func newCatalogue(st *blockstore.Store, a *anchor.Anchor, key crypto.HostKey, log *slog.Logger) *catalogue {
	return &catalogue{store: st, anchor: a, key: key.CatalogueKey, log: log, reserved: map[string]bool{}}
}

// replaceLocked makes entries the catalogue, durably: the store first, then the
// anchor. The anchor may be behind, so what fails there must not fail the caller,
// who would undo what is listed by then; the next change or opening brings it up.
func (c *catalogue) replaceLocked(ctx context.Context, entries []record.Entry) error {
	next := record.Catalogue{Counter: c.now.Counter + 1, Entries: entries}
	slices.SortFunc(next.Entries, func(a, b record.Entry) int { return strings.Compare(a.Name, b.Name) })
	raw, err := record.SealCatalogue(crypto.PreferredSuite(), c.store.ID(), c.key, &next)
	if err != nil {
		return fmt.Errorf("daemon: catalogue: %w", err)
	}
	if err := c.store.PutCatalogue(ctx, raw); err != nil {
		return fmt.Errorf("daemon: catalogue: %w", err)
	}
	c.now = next
	if err := c.anchor.SetCatalogue(next.Counter); err != nil {
		c.log.Error("the anchor of the catalogue stays behind", "counter", next.Counter, "err", err)
	}
	return nil
}

// list gives all entries, sorted by name. They are shared: nobody changes them.
func (c *catalogue) list() []record.Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.now.Entries)
}

func (c *catalogue) indexLocked(name string) (int, bool) {
	return slices.BinarySearchFunc(c.now.Entries, name, func(e record.Entry, n string) int { return strings.Compare(e.Name, n) })
}

// find looks an image up by its name or, failing that, by its id in hex.
func (c *catalogue) find(name string) (record.Entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.indexLocked(name); ok {
		return c.now.Entries[i], nil
	}
	if id, err := blockstore.ParseImageID(name); err == nil {
		for _, e := range c.now.Entries {
			if e.Image == id {
				return e, nil
			}
		}
	}
	return record.Entry{}, fail(CodeNotFound, "sealdisk ls lists the images", "no image %q", name)
}

// reserve keeps a free name for an image that is being made until release.
func (c *catalogue) reserve(name string) (release func(), err error) {
	if err := checkName("image", name); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.indexLocked(name); ok || c.reserved[name] {
		return nil, fail(CodeExists, "sealdisk rm removes it; import --update brings it up to date", "image %q exists already", name)
	}
	c.reserved[name] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.reserved, name)
	}, nil
}

// add lists an image under a name that the caller has reserved.
func (c *catalogue) add(ctx context.Context, e record.Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.replaceLocked(ctx, append(slices.Clone(c.now.Entries), e))
}

// remove takes an image out.
func (c *catalogue) remove(ctx context.Context, id blockstore.ImageID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(c.now.Entries), func(e record.Entry) bool { return e.Image == id })
	return c.replaceLocked(ctx, rest)
}

// rename gives an image a name that the caller has reserved.
func (c *catalogue) rename(ctx context.Context, id blockstore.ImageID, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries := slices.Clone(c.now.Entries)
	for i := range entries {
		if entries[i].Image == id {
			entries[i].Name = name
			entries[i].Labels = maps.Clone(entries[i].Labels)
		}
	}
	return c.replaceLocked(ctx, entries)
}

// relabel replaces the labels of an image.
func (c *catalogue) relabel(ctx context.Context, id blockstore.ImageID, labels map[string]string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries := slices.Clone(c.now.Entries)
	i := slices.IndexFunc(entries, func(e record.Entry) bool { return e.Image == id })
	if i < 0 {
		return fail(CodeNotFound, "it was removed meanwhile", "no image %v", id)
	}
	entries[i].Labels = labels
	return c.replaceLocked(ctx, entries)
}

// recover makes the catalogue anew from what the images' commits say of
// themselves. An image that does not open is listed under the start of its id.
func (c *catalogue) recover(ctx context.Context, shared *image.Shared, res *Initialised) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, err := c.store.Images()
	if err != nil {
		return fmt.Errorf("daemon: recover: %w", err)
	}
	if c.now.Counter, err = c.anchor.Catalogue(); err != nil {
		return fmt.Errorf("daemon: recover: %w", err)
	}
	taken := map[string]bool{}
	var entries []record.Entry
	for _, id := range ids {
		labels, err := labelsOf(ctx, shared, id)
		if err != nil {
			res.Lost = append(res.Lost, id.String())
		}
		name := labels["name"]
		if !nameRule.MatchString(name) {
			name = id.String()[:16]
		}
		for n, stem := 2, name; taken[name]; n++ {
			name = fmt.Sprintf("%.120s-%d", stem, n)
		}
		taken[name] = true
		entries = append(entries, record.Entry{Name: name, Image: id, Labels: labels})
		res.Recovered = append(res.Recovered, name)
	}
	return c.replaceLocked(ctx, entries)
}

func labelsOf(ctx context.Context, shared *image.Shared, id blockstore.ImageID) (labels map[string]string, err error) {
	d, err := shared.Open(ctx, id, image.OpenOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close(ctx)) }()
	info, err := d.Info(ctx)
	return info.Labels, err
}
