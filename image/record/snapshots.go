package record

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/crypto"
)

// Snapshot is a commit that a user named and keeps.
type Snapshot struct {
	Commit blockstore.CommitID
	Name   string // not empty, text, distinct in its table
	Time   time.Time
}

type snapshotWire struct {
	_    struct{} `cbor:",toarray"`
	Name string
	Time uint64
}

// snapshotTag is the keyed tag by which a name is found without opening the table.
func snapshotTag(e *crypto.Epoch, salt crypto.Salt, name string) (tag [16]byte) {
	key := e.Key(crypto.PurposeSnapshotTag, crypto.NoRegion, salt)
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte(name))
	copy(tag[:], m.Sum(nil))
	return tag
}

func checkSnapshots(list []snapshotWire) error {
	seen := make(map[string]bool, len(list))
	for i := range list {
		name := list[i].Name
		if name == "" || !utf8.ValidString(name) || seen[name] {
			return fmt.Errorf("name %q is empty, not text, or there twice", name)
		}
		seen[name] = true
	}
	return nil
}

func decodeSnapshots(body []byte) (wire []snapshotWire, err error) {
	const what = "snapshot table"
	if err := decode(what, body, &wire); err != nil {
		return nil, err
	}
	if err := checkSnapshots(wire); err != nil {
		return nil, &blockstore.CorruptError{What: what, Cause: err}
	}
	return wire, nil
}

// Snapshots seals a snapshot table, oldest first (docs/format.md §7).
func (s Seal) Snapshots(list []Snapshot) ([]byte, error) {
	const what = "snapshot table"
	if len(list) > 0xFFFF {
		return nil, fmt.Errorf("record: seal %s: %d snapshots, at most 65535", what, len(list))
	}
	salt := crypto.NewSalt()
	public := make(blockstore.SnapshotPublic, len(list))
	wire := make([]snapshotWire, len(list))
	for i, x := range list {
		ns, err := nanoseconds(x.Time)
		if err != nil {
			return nil, fmt.Errorf("record: seal %s: %w", what, err)
		}
		wire[i] = snapshotWire{Name: x.Name, Time: ns}
		public[i] = blockstore.SnapshotRef{ID: x.Commit, Tag: snapshotTag(s.Epoch, salt, x.Name)}
	}
	if err := checkSnapshots(wire); err != nil {
		return nil, fmt.Errorf("record: seal %s: %w", what, err)
	}
	body, err := encode(what, wire)
	if err != nil {
		return nil, err
	}
	return s.record(blockstore.KindSnapshotTable, crypto.NoRegion, salt, blockstore.AppendSnapshotPublic(nil, public), body)
}

// OpenSnapshots opens a snapshot table, oldest first, and checks all but its id.
func OpenSnapshots(k *crypto.Keyring, b []byte) ([]Snapshot, error) {
	const what = "snapshot table"
	h, body, err := open(nil, k, b, blockstore.KindSnapshotTable, crypto.NoRegion)
	if err != nil {
		return nil, err
	}
	public, err := blockstore.ParseSnapshotPublic(h.Public)
	if err != nil {
		return nil, err
	}
	wire, err := decodeSnapshots(body)
	if err != nil {
		return nil, err
	}
	if len(wire) != len(public) {
		return nil, corrupt(what, "%d names for %d commits", len(wire), len(public))
	}
	e, err := epochOf(k, h.Epoch)
	if err != nil {
		return nil, err
	}
	list := make([]Snapshot, len(wire))
	for i, w := range wire {
		if !sameTag(snapshotTag(e, h.Salt, w.Name), public[i].Tag) {
			return nil, corrupt(what, "tag of entry %d", i)
		}
		t, err := fromNanoseconds(w.Time)
		if err != nil {
			return nil, &blockstore.CorruptError{What: what, Cause: err}
		}
		list[i] = Snapshot{Commit: public[i].ID, Name: w.Name, Time: t}
	}
	return list, nil
}

// FindSnapshot looks a name up by its tag, and false if the table does not have it.
// It does not open the table: check its id before.
func FindSnapshot(k *crypto.Keyring, b []byte, name string) (blockstore.CommitID, bool, error) {
	const what = "snapshot table"
	h, _, _, err := blockstore.ParseRecord(b)
	if err != nil {
		return blockstore.CommitID{}, false, err
	}
	if h.Kind != blockstore.KindSnapshotTable {
		return blockstore.CommitID{}, false, corrupt(what, "it is a %v", h.Kind)
	}
	public, err := blockstore.ParseSnapshotPublic(h.Public)
	if err != nil {
		return blockstore.CommitID{}, false, err
	}
	e, err := epochOf(k, h.Epoch)
	if err != nil {
		return blockstore.CommitID{}, false, fmt.Errorf("record: look up in %s: %w", what, err)
	}
	tag := snapshotTag(e, h.Salt, name)
	for i := range public {
		if sameTag(tag, public[i].Tag) {
			return public[i].ID, true, nil
		}
	}
	return blockstore.CommitID{}, false, nil
}

func sameTag(a, b [16]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }
