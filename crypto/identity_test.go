package crypto

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
)

// sealedIdentity returns an identity file sealed with a passphrase.
func sealedIdentity(t testing.TB, plain, pass string) []byte {
	t.Helper()
	r, err := age.NewScryptRecipient(pass)
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(testWork)
	b, err := sealFile([]byte(plain), r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func armored(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := armor.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func answer(pass string) Prompt {
	return Prompt{Ask: func(string) (string, error) { return pass, nil }}
}

func TestParseIdentities(t *testing.T) {
	secret, recipient, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	plain := "# created: today\n" + secret + "\n\n  " + x.String() + "\r\n" + plugin.EncodeIdentity("none", []byte{1})
	sealed := sealedIdentity(t, plain, "pass")
	for name, in := range map[string][]byte{
		"plain": []byte(plain), "binary": sealed, "armored": armored(t, sealed),
		"armored after blanks": append([]byte("\n \n"), armored(t, sealed)...),
	} {
		ids, err := ParseIdentities(bytes.NewReader(in), answer("pass"))
		if err != nil || len(ids) != 3 {
			t.Errorf("%s: %d identities, %v, want 3", name, len(ids), err)
			continue
		}
		if got, _ := IdentityRecipient(ids[0]); got != recipient {
			t.Errorf("%s: recipient = %.20q, want %.20q", name, got, recipient)
		}
		if got, _ := IdentityRecipient(ids[1]); got != x.Recipient().String() {
			t.Errorf("%s: recipient = %q, want %v", name, got, x.Recipient())
		}
		if got, ok := IdentityRecipient(ids[2]); ok {
			t.Errorf("%s: a plugin's recipient = %q", name, got)
		}
	}
}

func TestParseIdentitiesRefuses(t *testing.T) {
	secret, recipient, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	sealed := sealedIdentity(t, secret, "pass")
	to, err := age.ParseHybridRecipient(recipient)
	if err != nil {
		t.Fatal(err)
	}
	toRecipient, err := sealFile([]byte(secret), to)
	if err != nil {
		t.Fatal(err)
	}
	asked := errors.New("asked")
	for name, c := range map[string]struct {
		in []byte
		p  Prompt
	}{
		"nothing":             {nil, Prompt{}},
		"comments":            {[]byte("# none\n"), Prompt{}},
		"a recipient":         {[]byte(recipient), Prompt{}},
		"nobody to ask":       {sealed, Prompt{}},
		"wrong passphrase":    {sealed, answer("wrong")},
		"empty passphrase":    {sealed, answer("")},
		"refused to say":      {sealed, Prompt{Ask: func(string) (string, error) { return "", asked }}},
		"to a recipient":      {toRecipient, answer("pass")},
		"sealed twice":        {sealedIdentity(t, string(sealed), "pass"), answer("pass")},
		"too much work":       {bytes.Replace(sealed, []byte(" 8\n"), []byte(" 23\n"), 1), answer("pass")},
		"truncated":           {sealed[:len(sealed)-1], answer("pass")},
		"damaged armor":       {armored(t, sealed)[:100], answer("pass")},
		"not an ssh key":      {[]byte("-----BEGIN OPENSSH PRIVATE KEY-----\n-----END OPENSSH PRIVATE KEY-----\n"), Prompt{}},
		"too long":            {bytes.Repeat([]byte("#\n"), maxIdentityFile), Prompt{}},
		"line too long":       {bytes.Repeat([]byte("A"), 1<<17), Prompt{}},
		"too many identities": {bytes.Repeat([]byte(secret+"\n"), maxIdentities+1), Prompt{}},
	} {
		if ids, err := ParseIdentities(bytes.NewReader(c.in), c.p); !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %d identities, %v, want ErrIdentity", name, len(ids), err)
		}
	}
	_, err = ParseIdentities(bytes.NewReader(sealed), Prompt{Ask: func(string) (string, error) { return "", asked }})
	if !errors.Is(err, asked) {
		t.Errorf("%v does not wrap the callback's error", err)
	}
}

func TestPassphraseIdentityEmpty(t *testing.T) {
	if _, err := PassphraseIdentity(""); err == nil {
		t.Error("an empty passphrase was accepted")
	}
	if err := (&Keyring{}).AddPassphrase(""); err == nil {
		t.Error("an empty passphrase was added")
	}
}

// The test binary is also an age plugin, by the name it is started under. The
// plugin's keys are hybrid ones in another spelling: its label is "postquantum".
const pluginName = "sealdisktest"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "age-plugin-"+pluginName {
		os.Exit(runPlugin())
	}
	os.Exit(m.Run())
}

func runPlugin() int {
	p, err := plugin.New(pluginName)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) { return age.ParseHybridRecipient(string(data)) })
	p.HandleIdentity(func(data []byte) (age.Identity, error) {
		if string(data) == "broken" {
			return nil, errors.New("the token is gone")
		}
		return age.ParseHybridIdentity(string(data))
	})
	return p.Main()
}

func installPlugin(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "age-plugin-"+pluginName)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

func pluginIdentity(t *testing.T, data string) age.Identity {
	t.Helper()
	ids, err := ParseIdentities(strings.NewReader(plugin.EncodeIdentity(pluginName, []byte(data))), Prompt{})
	if err != nil {
		t.Fatal(err)
	}
	return ids[0]
}

// A plugin stands beside a classic recipient, whatever its label.
func TestPluginRecipient(t *testing.T) {
	installPlugin(t)
	secret, recipient, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	classic, classicTo := newTestIdentity(t, Classic)
	to := plugin.EncodeRecipient(pluginName, []byte(recipient))
	k := &Keyring{Epochs: []*Epoch{NewEpoch()}, Recipients: []string{classicTo, to}}
	b := mustSeal(t, k)
	for name, id := range map[string]age.Identity{"plugin": pluginIdentity(t, secret), "classic": classic} {
		got, err := OpenKeyring(b, k.Image, []age.Identity{id})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkSameKeyring(t, got, k)
	}
	if got := Weakest(k.Recipients); got != Classic {
		t.Errorf("weakest = %v, want classic", got)
	}
	other, _, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyring(b, k.Image, []age.Identity{pluginIdentity(t, other)}); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("another key of the plugin: %v, want ErrNoIdentity", err)
	}
	// A plugin that fails here says nothing about the keyring.
	_, err = OpenKeyring(b, k.Image, []age.Identity{pluginIdentity(t, "broken")})
	if err == nil || errors.Is(err, ErrAuth) || errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "the token is gone") {
		t.Errorf("broken plugin: %v, want its own error", err)
	}
}

func TestPluginAbsent(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	id, to := newTestIdentity(t, Classic)
	k := &Keyring{Epochs: []*Epoch{NewEpoch()}, Recipients: []string{to}}
	absent := pluginIdentity(t, "x")
	if _, err := OpenKeyring(mustSeal(t, k), k.Image, []age.Identity{absent, id}); err != nil {
		t.Errorf("an identity that is here: %v", err)
	}
	var notFound *plugin.NotFoundError
	if _, err := OpenKeyring(mustSeal(t, k), k.Image, []age.Identity{absent}); !errors.As(err, &notFound) {
		t.Errorf("%v, want NotFoundError", err)
	}
	k.Recipients = []string{plugin.EncodeRecipient(pluginName, []byte("x"))}
	if _, err := k.Seal(); !errors.As(err, &notFound) {
		t.Errorf("seal: %v, want NotFoundError", err)
	}
}
