package exchange

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
	"github.com/sealdisk/sealdisk/image/record"
	"github.com/sealdisk/sealdisk/internal/handover"
	"github.com/sealdisk/sealdisk/transfer"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// table lists one image that nobody writes, and notes whether its lease was given.
type table struct {
	Names
	writers handover.Table
	gave    bool
}

func (n *table) Lookup(string) (record.Entry, error) { return record.Entry{Name: "vm"}, nil }

func (n *table) Group(id blockstore.ImageID) []blockstore.ImageID { return n.writers.Group(id) }

func (n *table) Changed(blockstore.ImageID) {}

func (n *table) Yield(_ context.Context, id blockstore.ImageID, to [32]byte, check func(blockstore.ImageID) error) error {
	return n.writers.Yield(id, to, check, func(blockstore.ImageID) error {
		n.gave = true
		return nil
	})
}

// TestAsk: who only asks for a lease is not given it, and who claims it is.
func TestAsk(t *testing.T) {
	book := peer.NewBook(filepath.Join(t.TempDir(), "peers"))
	public := crypto.NewHostKey().Public()
	other := peer.Peer{Name: "other", Key: peer.FingerprintOf(public), Roles: map[string]peer.Role{peer.AllImages: peer.Host}}
	if err := book.Add(other); err != nil {
		t.Fatal(err)
	}
	names := &table{}
	x, err := New(Options{Key: crypto.NewHostKey(), Book: book, Names: names, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, ask := range []bool{true, false} {
		err := x.Grant(t.Context(), other, public, blockstore.ImageID{1}, transfer.Claim{Ask: ask})
		if err != nil || names.gave == ask {
			t.Errorf("ask %v: %v, the lease was given: %v", ask, err, names.gave)
		}
	}
}
