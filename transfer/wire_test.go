package transfer

import (
	"bytes"
	"testing"

	"github.com/sealdisk/sealdisk/blockstore"
)

// FuzzMessages: no message makes a reader panic, and what is accepted has one encoding.
func FuzzMessages(f *testing.F) {
	for _, m := range []any{
		Description{Version: Version, Image: blockstore.ImageID{1}, Leases: [][]byte{{1, 2}}, Head: []byte{3}},
		Offer{Version: Version, Name: "vm", Follow: true}, Report{Done: 1, Total: 2, State: Running}, Claim{Keyrings: []Keyring{{Image: blockstore.ImageID{1}}}},
	} {
		b, err := encMode.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []any{new(Description), new(Offer), new(Report), new(Claim), new([]string)} {
			if decode(bytes.NewReader(b), maxReport, m) != nil {
				continue
			}
			if again, err := encMode.Marshal(m); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%T: % x was accepted and encodes to % x, %v", m, b, again, err)
			}
		}
	})
}

// TestRequests: a list is cut at the bounds of a request, and nothing is left out.
func TestRequests(t *testing.T) {
	var want []blockstore.SmallRef
	for i := range 3000 {
		want = append(want, blockstore.SmallRef{ID: blockstore.ObjectID{byte(i), byte(i >> 8)}, Length: uint32(i%7) * 300_000})
	}
	n := 0
	for _, part := range requests(want, maxRequestData) {
		size := 0
		for _, ref := range part {
			if ref != want[n] {
				t.Fatalf("object %d is another one", n)
			}
			n++
			size += int(ref.Length)
		}
		if len(part) > maxRequestIDs || size > maxRequestData && len(part) > 1 {
			t.Errorf("a request for %d objects of %d bytes", len(part), size)
		}
	}
	if n != len(want) {
		t.Errorf("%d of %d objects", n, len(want))
	}
	if requests(nil, maxRequestData) != nil {
		t.Error("a request for nothing")
	}
}
