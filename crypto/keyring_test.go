package crypto

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
)

// testWork keeps scrypt fast.
const testWork = 8

// newTestIdentity returns a parsed identity and its recipient, hybrid or X25519.
func newTestIdentity(t testing.TB, class Class) (age.Identity, string) {
	t.Helper()
	var secret string
	if class == Hybrid {
		var err error
		if secret, _, err = NewIdentity(); err != nil {
			t.Fatal(err)
		}
	} else {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		secret = id.String()
	}
	ids, err := ParseIdentities(strings.NewReader(secret), Prompt{})
	if err != nil {
		t.Fatal(err)
	}
	recipient, ok := IdentityRecipient(ids[0])
	if !ok {
		t.Fatal("no recipient")
	}
	return ids[0], recipient
}

func newPhrase(t *testing.T, pass string) age.Identity {
	t.Helper()
	id, err := PassphraseIdentity(pass)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustSeal(t *testing.T, k *Keyring) []byte {
	t.Helper()
	b, err := k.Seal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func checkSameKeyring(t *testing.T, got, want *Keyring) {
	t.Helper()
	if got.Image != want.Image {
		t.Errorf("image = %x, want %x", got.Image, want.Image)
	}
	if !slices.Equal(got.Masters(), want.Masters()) {
		t.Errorf("masters = %v, want %v", got.Masters(), want.Masters())
	}
	if !slices.Equal(got.Recipients, want.Recipients) {
		t.Errorf("recipients = %q, want %q", got.Recipients, want.Recipients)
	}
}

func TestKeyringClasses(t *testing.T) {
	hybrid, hybridTo := newTestIdentity(t, Hybrid)
	classic, classicTo := newTestIdentity(t, Classic)
	phrase := newPhrase(t, "pass")
	stranger, _ := newTestIdentity(t, Hybrid)
	for _, c := range []struct {
		name       string
		recipients []string
		pass       bool
		ids        []age.Identity
	}{
		{"hybrid", []string{hybridTo}, false, []age.Identity{hybrid}},
		{"classic", []string{classicTo}, false, []age.Identity{classic}},
		{"passphrase", nil, true, []age.Identity{phrase}},
		{"both", []string{hybridTo, classicTo}, false, []age.Identity{hybrid, classic}},
		{"classic and passphrase", []string{classicTo}, true, []age.Identity{classic, phrase}},
		{"all", []string{classicTo, hybridTo}, true, []age.Identity{hybrid, classic, phrase}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &Keyring{Image: [32]byte{1}, Epochs: []*Epoch{NewEpoch(), NewEpoch()}, Recipients: c.recipients}
			if c.pass {
				if err := k.addPassphrase("pass", testWork); err != nil {
					t.Fatal(err)
				}
			}
			b := mustSeal(t, k)
			for _, id := range c.ids {
				got, err := OpenKeyring(b, k.Image, []age.Identity{newPhrase(t, "wrong"), stranger, id})
				if err != nil {
					t.Fatalf("%T: %v", id, err)
				}
				checkSameKeyring(t, got, k)
			}
			if _, err := OpenKeyring(b, k.Image, []age.Identity{stranger}); !errors.Is(err, ErrNoIdentity) {
				t.Errorf("stranger: %v, want ErrNoIdentity", err)
			}
			if _, err := OpenKeyring(b, k.Image, nil); !errors.Is(err, ErrNoIdentity) {
				t.Errorf("nobody: %v, want ErrNoIdentity", err)
			}
			if _, err := OpenKeyring(b, [32]byte{2}, c.ids); !errors.Is(err, ErrAuth) {
				t.Errorf("another image: %v, want ErrAuth", err)
			}
		})
	}
}

// A host without the passphrase seals a new epoch, and the passphrase opens it.
func TestPassphraseOutlivesSealing(t *testing.T) {
	hybrid, to := newTestIdentity(t, Hybrid)
	k := &Keyring{Epochs: []*Epoch{NewEpoch()}, Recipients: []string{to}}
	if err := k.addPassphrase("one", testWork); err != nil {
		t.Fatal(err)
	}
	opened, err := OpenKeyring(mustSeal(t, k), k.Image, []age.Identity{hybrid})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEpoch()
	next := opened.WithEpoch(e)
	if len(opened.Epochs) != 1 || next.Newest() != e {
		t.Error("WithEpoch changed its receiver, or not the copy")
	}
	got, err := OpenKeyring(mustSeal(t, next), k.Image, []age.Identity{newPhrase(t, "one")})
	if err != nil {
		t.Fatal(err)
	}
	checkSameKeyring(t, got, next)

	if err := got.addPassphrase("two", testWork); err != nil {
		t.Fatal(err)
	}
	b := mustSeal(t, got)
	if _, err := OpenKeyring(b, k.Image, []age.Identity{newPhrase(t, "one")}); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("replaced passphrase: %v, want ErrNoIdentity", err)
	}
	if _, err := OpenKeyring(b, k.Image, []age.Identity{newPhrase(t, "two")}); err != nil {
		t.Errorf("new passphrase: %v", err)
	}

	b = mustSeal(t, got.WithRecipients([]string{to}))
	if _, err := OpenKeyring(b, k.Image, []age.Identity{newPhrase(t, "two")}); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("removed passphrase: %v, want ErrNoIdentity", err)
	}
}

func TestKeyringLookup(t *testing.T) {
	if e := (&Keyring{}).Newest(); e != nil {
		t.Errorf("newest of none = %v", e)
	}
	a, b := NewEpoch(), NewEpoch()
	k := &Keyring{Epochs: []*Epoch{a, b}}
	if k.Newest() != b {
		t.Error("newest is not the last")
	}
	if e, ok := k.Epoch(a.ID()); !ok || e != a {
		t.Errorf("epoch = %p, %v, want %p", e, ok, a)
	}
	if e, ok := k.Epoch(EpochID{}); ok {
		t.Errorf("epoch of an unknown id = %p", e)
	}
}

func TestSealRefuses(t *testing.T) {
	_, to := newTestIdentity(t, Classic)
	e := NewEpoch()
	many := func(n int) (es []*Epoch) {
		for range n {
			es = append(es, NewEpoch())
		}
		return es
	}
	_, phrase, err := sealPassphrase("p", testWork)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		k    Keyring
		want error
	}{
		"no epoch":             {Keyring{Recipients: []string{to}}, nil},
		"an epoch twice":       {Keyring{Epochs: []*Epoch{e, e}, Recipients: []string{to}}, nil},
		"257 epochs":           {Keyring{Epochs: many(257), Recipients: []string{to}}, ErrTooLarge},
		"no recipient":         {Keyring{Epochs: many(1)}, nil},
		"not a recipient":      {Keyring{Epochs: many(1), Recipients: []string{"age1"}}, ErrRecipient},
		"257 recipients":       {Keyring{Epochs: many(1), Recipients: slices.Repeat([]string{to}, 257)}, ErrTooLarge},
		"passphrase elsewhere": {Keyring{Epochs: many(1), Recipients: []string{to, phrase}}, nil},
	} {
		if b, err := c.k.Seal(); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v, want error %v", name, len(b), err, c.want)
		}
	}
}

func TestSealLargest(t *testing.T) {
	id, to := newTestIdentity(t, Hybrid)
	k := &Keyring{Recipients: []string{to}}
	for range maxEpochs {
		k.Epochs = append(k.Epochs, NewEpoch())
	}
	for len(k.Recipients) < maxRecipients {
		_, r := newTestIdentity(t, Hybrid)
		k.Recipients = append(k.Recipients, r)
	}
	b := mustSeal(t, k)
	t.Logf("%d epochs to %d hybrid recipients: %d bytes", maxEpochs, maxRecipients, len(b))
	got, err := OpenKeyring(b, k.Image, []age.Identity{id})
	if err != nil || len(got.Epochs) != maxEpochs || len(got.Recipients) != maxRecipients {
		t.Errorf("open: %v", err)
	}
	_, classic := newTestIdentity(t, Classic)
	k.Recipients[1] = classic
	if _, err := k.Seal(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("contents twice: %v, want ErrTooLarge", err)
	}
}

// Recipients are stored once, and in one spelling.
func TestSealCanonical(t *testing.T) {
	id, to := newTestIdentity(t, Hybrid)
	k := &Keyring{Epochs: []*Epoch{NewEpoch()}, Recipients: []string{" " + to + "\n", to}}
	got, err := OpenKeyring(mustSeal(t, k), k.Image, []age.Identity{id})
	if err != nil || !slices.Equal(got.Recipients, []string{to}) {
		t.Errorf("recipients = %q, %v, want %q", got.Recipients, err, to)
	}
}

// No byte of a keyring can be changed, and none cut or added.
func TestKeyringMalleability(t *testing.T) {
	id, to := newTestIdentity(t, Classic)
	k := &Keyring{Epochs: []*Epoch{NewEpoch()}, Recipients: []string{to}}
	b := mustSeal(t, k)
	check := func(name string, i int, bad []byte) {
		_, err := OpenKeyring(bad, k.Image, []age.Identity{id})
		if !errors.Is(err, ErrAuth) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrNoIdentity) {
			t.Fatalf("%s at %d: %v", name, i, err)
		}
	}
	for i := range b {
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(b)
			bad[i] ^= bit
			check("changed", i, bad)
		}
		check("cut", i, b[:i])
	}
	check("extended", len(b), append(bytes.Clone(b), 0))
	check("too long", maxBox, append(bytes.Clone(b), make([]byte, maxBox)...))
}

func TestImageKeyRoundTrip(t *testing.T) {
	hybrid, to := newTestIdentity(t, Hybrid)
	k := NewImageKey()
	b, err := k.SealImageKey([]string{to})
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenImageKey(b, k.ID(), []age.Identity{hybrid})
	if err != nil {
		t.Fatal(err)
	}
	if got.Sign(SignLease, nil) != k.Sign(SignLease, nil) {
		t.Error("another key")
	}
	if !slices.Equal(got.Recipients(), []string{to}) {
		t.Errorf("recipients = %q, want %q", got.Recipients(), to)
	}
	if _, err := OpenImageKey(b, NewImageKey().ID(), []age.Identity{hybrid}); !errors.Is(err, ErrAuth) {
		t.Errorf("another image: %v, want ErrAuth", err)
	}
	if _, err := k.SealImageKey(nil); err == nil {
		t.Error("sealed to nobody")
	}
	if _, err := OpenKeyring(b, k.ID(), []age.Identity{hybrid}); !errors.Is(err, ErrFormat) {
		t.Errorf("as a keyring: %v, want ErrFormat", err)
	}
}
