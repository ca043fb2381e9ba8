package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/anchor"
	"github.com/sealdisk/sealdisk/image/tree"
	"github.com/sealdisk/sealdisk/internal/exchange"
	"github.com/sealdisk/sealdisk/internal/handover"
	"github.com/sealdisk/sealdisk/internal/home"
	"github.com/sealdisk/sealdisk/internal/metrics"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// Options say which store a daemon owns and how.
type Options struct {
	Store string // directory
	Home  string // host directory
	// Prompt is asked for the passphrase of the identity, when it is needed.
	Prompt crypto.Prompt
	Log    *slog.Logger
	// Persistent: it lives until its mounts are gone, so it may have mounts.
	Persistent bool
	// Command is what it was started for; others who find the store busy are told.
	Command                string
	CacheBytes, DirtyBytes int64 // 0: image's defaults
	// SourceTimeout is how long a reader waits for what is missing of an image that is not
	// whole; 0: a minute.
	SourceTimeout time.Duration
	// Guests is the folder of the monitors of those QEMUs that peers may move guests to.
	Guests string
}

// Daemon owns one store.
type Daemon struct {
	opts    Options
	log     *slog.Logger
	store   *blockstore.Store
	host    *home.Host
	shared  *image.Shared
	names   *catalogue
	disks   *disks
	writers handover.Table
	looks   looks
	mounts  *mounts
	counts  *metrics.Set
	book    *peer.Book
	peers   *exchange.Exchange
	// locked is why there are no keys: host, shared, names, disks, book and peers are nil.
	locked error
	// growing is taken once by what needs objects that nothing refers to, yet or
	// any more, and as a whole by the collector.
	growing *semaphore.Weighted
}

const allGrowing = 1 << 30

// openDaemon opens the store. Without a usable host directory or catalogue it
// opens it still: verifying without keys needs neither.
func openDaemon(ctx context.Context, o Options) (*Daemon, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if _, err := os.Stat(filepath.Join(o.Store, "badger")); errors.Is(err, fs.ErrNotExist) {
		return nil, fail(CodeNotFound, "sealdisk init makes one; --store names another", "no store at %s", o.Store)
	}
	st, err := blockstore.Open(ctx, o.Store, blockstore.Options{Logger: o.Log})
	if err != nil {
		return nil, err
	}
	d := &Daemon{opts: o, log: o.Log, store: st, growing: semaphore.NewWeighted(allGrowing), counts: metrics.New()}
	d.mounts = newMounts(d)
	if err := d.unlock(ctx); err != nil {
		d.locked = err
		d.log.Debug("the store is open without keys", "err", err)
	}
	return d, nil
}

// unlock opens what needs the host's keys.
func (d *Daemon) unlock(ctx context.Context) error {
	h, err := home.Open(d.opts.Home, d.opts.Prompt)
	if err != nil {
		return err
	}
	anchor, err := anchor.Open(h.Dir, d.store.ID())
	if err != nil {
		return err
	}
	names, err := openCatalogue(ctx, d.store, anchor, h.Key, d.log)
	if err != nil {
		return err
	}
	shared, err := newShared(d.store, h, anchor, d.opts, d.fetch, d.counts.Took)
	if err != nil {
		return err
	}
	d.host, d.names, d.shared = h, names, shared
	d.disks = newDisks(shared, h.Unlock, d.log)
	return d.meetPeers(anchor)
}

func newShared(st *blockstore.Store, h *home.Host, a *anchor.Anchor, o Options, fetch tree.Fetch, took func(string, time.Duration)) (*image.Shared, error) {
	s, err := image.NewShared(image.Host{
		Store: st, Key: h.Key, Identities: h.Identities(), Anchor: a,
		Log: o.Log, Now: time.Now, Fetch: fetch, Took: took, CacheBytes: o.CacheBytes, DirtyBytes: o.DirtyBytes,
	})
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	return s, nil
}

// Close closes the store. All operations and mounts must have ended.
func (d *Daemon) Close() error {
	if d.peers != nil {
		ctx, cancel := context.WithTimeout(context.Background(), peersPatience)
		defer cancel()
		if err := d.peers.Close(ctx); err != nil {
			d.log.Info("peers were cut off", "err", err)
		}
	}
	if err := d.store.Close(); err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	return nil
}

// InitOptions say what Init makes.
type InitOptions struct {
	Options
	Host    home.Options
	Recover bool // make the catalogue of an existing store anew
}

// Initialised is what Init made or found.
type Initialised struct {
	Store           string   `json:"store"`
	Home            string   `json:"home"`
	Recipients      []string `json:"recipients"`
	Fingerprint     string   `json:"fingerprint"`
	IdentityCreated bool     `json:"identity_created"`
	AdminElsewhere  bool     `json:"admin_elsewhere"` // somebody else holds image keys too
	SharedDisk      bool     `json:"shared_disk"`     // the store lies on the root file system
	Recovered       []string `json:"recovered,omitempty"`
	Lost            []string `json:"lost,omitempty"` // ids of images that could not be opened
}

// Init makes a store and, if there is none yet, the host directory.
func Init(ctx context.Context, o InitOptions) (Initialised, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Host.Prompt = o.Prompt
	exists := true
	if _, err := os.Stat(filepath.Join(o.Store, "badger")); errors.Is(err, fs.ErrNotExist) {
		exists = false
	}
	switch {
	case exists && !o.Recover:
		return Initialised{}, fail(CodeExists, "", "there is a store at %s already", o.Store)
	case !exists && o.Recover:
		return Initialised{}, fail(CodeNotFound, "", "no store at %s", o.Store)
	}
	h, created, err := home.Init(o.Home, o.Host)
	if err != nil {
		return Initialised{}, err
	}
	if !exists {
		if err := blockstore.Create(o.Store, blockstore.Options{Logger: o.Log}); err != nil {
			return Initialised{}, err
		}
	}
	res := Initialised{
		Store: o.Store, Home: o.Home, Recipients: h.Recipients, Fingerprint: peer.FingerprintOf(h.Key.Public()).String(), IdentityCreated: created,
		AdminElsewhere: len(h.Admins) > len(h.Recipients), SharedDisk: sameFileSystem(o.Store, "/"),
	}
	return res, fillCatalogue(ctx, o, h, &res)
}

func sameFileSystem(a, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Stat(a, &sa) == nil && unix.Stat(b, &sb) == nil && sa.Dev == sb.Dev
}

// fillCatalogue gives a store its first catalogue, or its next one from the
// names that the images' own commits hold.
func fillCatalogue(ctx context.Context, o InitOptions, h *home.Host, res *Initialised) (err error) {
	st, err := blockstore.Open(ctx, o.Store, blockstore.Options{Logger: o.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	anchor, err := anchor.Open(h.Dir, st.ID())
	if err != nil {
		return err
	}
	shared, err := newShared(st, h, anchor, o.Options, nil, nil)
	if err != nil {
		return err
	}
	names := newCatalogue(st, anchor, h.Key, o.Log)
	return names.recover(ctx, shared, res)
}

// gauges are the metrics that are asked for when somebody looks.
func (d *Daemon) gauges() {
	d.counts.Gauge("sealdisk_dirty_bytes", "Bytes that guests wrote and that are in no commit yet.", func() float64 { return float64(d.shared.Dirty()) })
	of := func(value func(s blockstore.Stats) int64) func() float64 {
		return func() float64 {
			s, err := d.store.Stats()
			if err != nil {
				return -1
			}
			return float64(value(s))
		}
	}
	d.counts.Gauge("sealdisk_objects", "Objects in the store.", of(func(s blockstore.Stats) int64 { return s.Objects }))
	d.counts.Gauge("sealdisk_live_bytes", "Bytes of the objects in the store.", of(func(s blockstore.Stats) int64 { return s.LiveBytes }))
	d.counts.Gauge("sealdisk_dead_bytes", "Bytes of deleted objects that are not given back yet.", of(func(s blockstore.Stats) int64 { return s.DeadBytes }))
	d.counts.Gauge("sealdisk_free_bytes", "Bytes that may still be stored.", of(func(s blockstore.Stats) int64 { return s.FreeBytes }))
}

// Metrics answers Prometheus on l until ctx ends.
func (d *Daemon) Metrics(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: d.counts.Handler(), ReadTimeout: metricsTimeout, WriteTimeout: 2 * metricsTimeout, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

const metricsTimeout = 10 * time.Second
