package transfer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/transfer"
)

// TestNews: with the news of an image comes what is new in it, and nothing is asked for after that.
func TestNews(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(40 << 20)
	c := b.ask(a.as("a"))
	got, err := b.pull(id, c)
	check(t, err)
	disk, err := a.shared.Open(ctx, id, image.OpenOptions{}) // a writer frees what it has replaced
	check(t, err)
	defer func() { check(t, disk.Close(ctx)) }()
	for _, tt := range []struct {
		name    string
		sectors int64 // that are written
		whole   bool  // all of it fits into an answer
	}{{"a few", 100, true}, {"more than an answer holds", 2500, false}} {
		for i := range tt.sectors {
			_, err := disk.WriteAt(ctx, noise(i+tt.sectors), i*3*4096)
			check(t, err)
		}
		check(t, disk.Commit(ctx))
		count := 0
		r := b.receiver()
		r.Account = func(n int) error { count += n; return nil }
		d, err := r.News(ctx, c, id, got.Head)
		check(t, err)
		if count == 0 || count > 4<<20 {
			t.Errorf("%s: %d bytes came as news", tt.name, count)
		}
		got, err = b.receiver().Receive(ctx, d, []*transfer.Client{c}, transfer.ReceiveOptions{Image: id})
		check(t, err)
		if (got.Bytes == 0) != tt.whole {
			t.Errorf("%s: %d bytes were asked for after the news of %d", tt.name, got.Bytes, count)
		}
		b.sound(id)
		sameCommits(t, a, b, id)
	}
}

func noise(seed int64) []byte {
	b := make([]byte, 4096)
	for i := range 512 {
		seed = seed*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[8*i:], uint64(seed))
	}
	return b
}

// TestHostileNews: what comes is bounded, and of no use to who forged it.
func TestHostileNews(t *testing.T) {
	a, b := newHost(t, 0), newHost(t, 0)
	meet(t, a, b)
	ctx := context.Background()
	id := a.create(1 << 20)
	got, err := b.pull(id, b.ask(a.as("a")))
	check(t, err)
	long := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for _, tt := range []struct {
		name   string
		answer []byte // after the description
		first  []byte // in its place; nil: an honest one
	}{
		{"a long description", nil, long(1 << 31)},
		{"a long object", long(1 << 31), nil},
		{"many objects", make([]byte, 4*2000), nil},
		{"an object that is cut", append(long(100), 1, 2, 3), nil},
		{"a length that is cut", []byte{0, 0}, nil},
	} {
		e := &evil{h: a}
		e.raw = func(w http.ResponseWriter, path string) bool {
			if !strings.Contains(path, "/news/") {
				return false
			}
			first := tt.first
			if first == nil {
				d := honest(t, a, id)
				first = append(long(uint32(len(d))), d...)
			}
			_, _ = w.Write(append(first, tt.answer...))
			return true
		}
		n := 0
		_, err := e.lie(t, b).News(ctx, id, got.Head, func(x []byte) error { n += len(x); return nil })
		if err == nil {
			t.Errorf("%s: no error", tt.name)
		}
		if tt.name == "many objects" && !errors.Is(err, transfer.ErrProtocol) {
			t.Errorf("%s: %v, want ErrProtocol", tt.name, err)
		}
		if n > 0 {
			t.Errorf("%s: %d bytes were taken", tt.name, n)
		}
	}
	if head, _, err := b.store.Head(id); err != nil || head != got.Head {
		t.Errorf("the head has become %v, %v", head, err)
	}
}

// honest is the description of an image.
func honest(t *testing.T, h *host, id blockstore.ImageID) []byte {
	t.Helper()
	_, raw, err := h.store.Head(id)
	check(t, err)
	leases, err := h.store.Leases(id)
	check(t, err)
	mode, err := cbor.CoreDetEncOptions().EncMode()
	check(t, err)
	b, err := mode.Marshal(transfer.Description{Version: transfer.Version, Image: id, Leases: leases, Head: raw})
	check(t, err)
	return b
}
