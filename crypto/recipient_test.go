package crypto

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sshRecipients returns an ssh-rsa and an ssh-ed25519 recipient of the vectors.
func sshRecipients(t testing.TB) (rsa, ed25519 string) {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("testdata/vectors", name))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "\nrecipient: ")
		line, _, ok := strings.Cut(rest, "\n")
		if !ok {
			t.Fatal("no recipient in " + name)
		}
		return line
	}
	return read("keyring_ssh-rsa"), read("keyring_ssh-ed25519")
}

func TestParseRecipient(t *testing.T) {
	_, hybrid := newTestIdentity(t, Hybrid)
	_, classic := newTestIdentity(t, Classic)
	rsa, ed := sshRecipients(t)
	const plug = "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t"
	for s, want := range map[string]Class{
		hybrid: Hybrid, classic: Classic, rsa: Classic, ed: Classic, plug: Classic,
		rsa + " alice@host": Classic, ed + " \u00e9ric": Classic, "  " + classic + "\r\n": Classic,
		passphrasePrefix + hybrid: Passphrase,
	} {
		r, class, err := ParseRecipient(s)
		if err != nil || r == nil || class != want {
			t.Errorf("%.40q: class %v, %v, want %v", s, class, err, want)
		}
		if got := Weakest([]string{s}); got != want {
			t.Errorf("%.40q: weakest %v, want %v", s, got, want)
		}
	}
	rsaKey, edKey := strings.Fields(rsa)[1], strings.Fields(ed)[1]
	last := "q"
	if strings.HasSuffix(classic, last) {
		last = "p"
	}
	for name, s := range map[string]string{
		"nothing": "", "a word": "alice", "prefix": "age1", "hybrid prefix": "age1pq1",
		"upper case":        strings.ToUpper(classic),
		"checksum":          classic[:len(classic)-1] + last,
		"hybrid cut":        hybrid[:len(hybrid)-1],
		"X25519 as phrase":  passphrasePrefix + classic,
		"two":               classic + " " + classic,
		"newline within":    rsa + "\n" + ed,
		"rsa as ed25519":    "ssh-ed25519 " + rsaKey,
		"ed25519 as rsa":    "ssh-rsa " + edKey,
		"type twice":        "ssh-rsa ssh-rsa " + rsaKey,
		"options":           `command="x" ` + rsa,
		"ssh without a key": "ssh-rsa ",
		"ssh not base64":    "ssh-rsa !!!",
		"ecdsa":             "ecdsa-sha2-nistp256 AAAA",
		"too long":          "age1" + strings.Repeat("q", 5000),
		"NUL":               classic + "\x00",
	} {
		if _, _, err := ParseRecipient(s); !errors.Is(err, ErrRecipient) {
			t.Errorf("%s: %v, want ErrRecipient", name, err)
		}
	}
}

// A secret pasted in the wrong place is not repeated by the error.
func TestErrorsKeepSecrets(t *testing.T) {
	secret, _, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	_, _, err1 := ParseRecipient(secret)
	_, err2 := ParseRecipients(strings.NewReader("# mine\n" + secret + "\n"))
	_, err3 := ParseIdentities(strings.NewReader(secret[:len(secret)-1]), Prompt{})
	_, err4 := ParseIdentities(strings.NewReader("AGE-PLUGIN-X-1"+secret), Prompt{})
	err5 := CheckClasses([]string{secret}, false)
	for i, err := range []error{err1, err2, err3, err4, err5} {
		if err == nil || strings.Contains(strings.ToUpper(err.Error()), secret[30:60]) {
			t.Errorf("error %d: %v", i+1, err)
		}
	}
	if !strings.Contains(err2.Error(), "line 2") {
		t.Errorf("%v, want the line's number", err2)
	}
}

func TestCanonicalRecipient(t *testing.T) {
	rsa, ed := sshRecipients(t)
	for in, want := range map[string]string{
		"\t" + rsa + "  alice\t": rsa, "ssh-ed25519  " + strings.Fields(ed)[1] + " x y": ed,
	} {
		if got, err := CanonicalRecipient(in); err != nil || got != want {
			t.Errorf("%.30q = %q, %v, want %q", in, got, err, want)
		}
		if Fingerprint(in) != Fingerprint(want) {
			t.Errorf("%.30q: fingerprint of another spelling differs", in)
		}
	}
	if got := Fingerprint(rsa); len(got) != 16 || got == Fingerprint(ed) {
		t.Errorf("fingerprints %q and %q", got, Fingerprint(ed))
	}
}

func TestParseRecipients(t *testing.T) {
	_, hybrid := newTestIdentity(t, Hybrid)
	rsa, ed := sshRecipients(t)
	in := "# ours\n\n" + hybrid + "\n  " + rsa + " alice\r\n#\n" + ed + " bob\n" + rsa + " again\n" + hybrid
	got, err := ParseRecipients(strings.NewReader(in))
	if want := []string{hybrid, rsa, ed}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	var many strings.Builder
	for range maxRecipients + 1 {
		_, r := newTestIdentity(t, Classic)
		many.WriteString(r + "\n")
	}
	for name, in := range map[string]string{
		"nothing": "", "comments": "# none\n", "word": hybrid + "\nalice\n",
		"passphrase": passphrasePrefix + hybrid, "too many": many.String(),
		"line too long": strings.Repeat("a", 1<<17), "too long": strings.Repeat("#\n", maxRecipientFile),
	} {
		if got, err := ParseRecipients(strings.NewReader(in)); err == nil {
			t.Errorf("%s: got %d recipients", name, len(got))
		}
	}
}

func TestCheckClasses(t *testing.T) {
	_, hybrid := newTestIdentity(t, Hybrid)
	_, classic := newTestIdentity(t, Classic)
	phrase := passphrasePrefix + hybrid
	for _, c := range []struct {
		recipients []string
		weakest    Class
		ok         bool
	}{
		{nil, Hybrid, true},
		{[]string{hybrid}, Hybrid, true},
		{[]string{classic}, Classic, false},
		{[]string{hybrid, classic}, Classic, false},
		{[]string{hybrid, phrase}, Passphrase, false},
		{[]string{phrase, classic}, Passphrase, false},
		{[]string{"unknown"}, Classic, false},
	} {
		if got := Weakest(c.recipients); got != c.weakest {
			t.Errorf("weakest of %.20q = %v, want %v", c.recipients, got, c.weakest)
		}
		if err := CheckClasses(c.recipients, false); (err == nil) != c.ok || !c.ok && !errors.Is(err, ErrClassic) {
			t.Errorf("check of %.20q: %v, want ok %v", c.recipients, err, c.ok)
		}
		if err := CheckClasses(c.recipients, true); err != nil {
			t.Errorf("check of %.20q, allowed: %v", c.recipients, err)
		}
	}
	err := CheckClasses([]string{hybrid, classic}, false)
	if !strings.Contains(err.Error(), Fingerprint(classic)) {
		t.Errorf("%v does not name %s", err, Fingerprint(classic))
	}
}
