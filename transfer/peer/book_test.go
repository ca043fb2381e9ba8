package peer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func newBook(t *testing.T) *Book {
	t.Helper()
	return NewBook(filepath.Join(t.TempDir(), "peers"))
}

func TestBook(t *testing.T) {
	b := newBook(t)
	p := Peer{Name: "backup", Address: "host:7443", Key: Fingerprint{1}}
	if err := b.Add(p); err != nil {
		t.Fatal(err)
	}
	for _, again := range []Peer{{Name: "backup", Key: Fingerprint{2}}, {Name: "other", Key: Fingerprint{1}}} {
		if err := b.Add(again); !errors.Is(err, ErrExists) {
			t.Errorf("%v: %v, want ErrExists", again, err)
		}
	}
	for _, bad := range []Peer{{Name: "", Key: Fingerprint{3}}, {Name: "a b", Key: Fingerprint{3}}, {Name: "x", Address: "nohost", Key: Fingerprint{3}},
		{Name: "x", Key: Fingerprint{3}, Roles: map[string]Role{"*": "god"}}, {Name: "x", Key: Fingerprint{3}, Quota: Quota{Rate: -1}}} {
		if err := b.Add(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v, want ErrInvalid", bad, err)
		}
	}
	if err := b.Update("backup", func(p *Peer) { p.Roles["vm"] = Replica }); err != nil {
		t.Fatal(err)
	}
	again := NewBook(b.path)
	got, err := again.Pinned(Fingerprint{1})
	if err != nil || got.Name != "backup" || got.Role("", "vm") != Replica || got.Role("", "other") != None {
		t.Errorf("%+v, %v", got, err)
	}
	if err := again.Remove("backup"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Find("backup"); !errors.Is(err, ErrUnknown) { // the other one sees it at once
		t.Errorf("a removed peer: %v, want ErrUnknown", err)
	}
	if err := b.Remove("backup"); !errors.Is(err, ErrUnknown) {
		t.Errorf("removed twice: %v, want ErrUnknown", err)
	}
}

// TestBookEdited: what a user writes into the file counts, and nonsense is refused without
// forgetting who was known.
func TestBookEdited(t *testing.T) {
	b := newBook(t)
	for _, tt := range []struct {
		text string
		want error
	}{
		{`{"peers": [{"name": "a", "fingerprint": "` + Fingerprint{9}.String() + `", "roles": {"*": "host"}}]}`, nil},
		{`{"peers": [{"name": "a", "fingerprint": "SHA256:short"}]}`, ErrInvalid},
		{`{"peers": [{"name": "a", "finger": "x"}]}`, ErrInvalid},
		{`nonsense`, ErrInvalid},
		{`{"peers": [{"name": "a", "fingerprint": "` + Fingerprint{9}.String() + `"}, {"name": "a", "fingerprint": "` + Fingerprint{8}.String() + `"}]}`, ErrInvalid},
	} {
		if err := os.WriteFile(b.path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.List(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.text, err, tt.want)
		}
	}
}

func TestRole(t *testing.T) {
	p := Peer{Roles: map[string]Role{"id": None, "name": Host, AllImages: Replica}}
	for _, tt := range []struct {
		id, name string
		want     Role
	}{{"id", "name", None}, {"other", "name", Host}, {"other", "other", Replica}, {"", "", Replica}} {
		if got := p.Role(tt.id, tt.name); got != tt.want {
			t.Errorf("%q, %q: %s, want %s", tt.id, tt.name, got, tt.want)
		}
	}
}

func FuzzBook(f *testing.F) {
	f.Add([]byte(`{"peers": [{"name": "a", "address": "h:1", "fingerprint": "` + Fingerprint{9}.String() + `", "roles": {"*": "host"}, "quota": {"rate": 1}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		peers, err := parseBook(raw)
		for i := range peers {
			if cerr := peers[i].check(); err == nil && cerr != nil {
				t.Errorf("%+v was accepted: %v", peers[i], cerr)
			}
		}
	})
}
