package crypto

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
)

// vectorIdentities returns the native identities of the vectors, no passphrase:
// scrypt is slow.
func vectorIdentities(f *testing.F) (ids []age.Identity, image [32]byte, boxes [][]byte) {
	f.Helper()
	paths, err := filepath.Glob("testdata/vectors/*")
	if err != nil || len(paths) == 0 {
		f.Fatal("no vectors", err)
	}
	t := new(testing.T)
	seen := make(map[string]bool)
	for _, p := range paths {
		v := readVector(t, p)
		if k := v.one("kind"); k != "keyring" && k != "image-key" {
			continue
		}
		boxes = append(boxes, v.body)
		image = [32]byte(v.bytes("image"))
		if v.one("expect") == "success" && len(v.header["identity"]) == 1 && !seen[v.one("identity")] {
			seen[v.one("identity")] = true
			ids = append(ids, v.identities()...)
		}
	}
	return ids, image, boxes
}

// FuzzOpenKeyring: what parses re-encodes to the same bytes, and what opens seals
// to the same again. Fuzz it with -fuzzminimizetime 1x: sealing is random, so
// coverage is, and minimizing never ends.
func FuzzOpenKeyring(f *testing.F) {
	ids, image, boxes := vectorIdentities(f)
	for _, b := range boxes {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, magic := range []string{magicKeyring, magicImageKey} {
			x, err := parseBox(magic, b)
			if err != nil {
				checkBoxError(t, err)
				continue
			}
			body, err := encodeCBOR(x)
			if err != nil || string(b) != magic+string(body) {
				t.Fatalf("re-encodes to %x, %v, want %x", body, err, b)
			}
		}
		if _, err := OpenImageKey(b, image, ids); err != nil {
			checkBoxError(t, err)
		}
		k, err := OpenKeyring(b, image, ids)
		if err != nil {
			checkBoxError(t, err)
			return
		}
		again, err := k.Seal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenKeyring(again, image, ids)
		if err != nil {
			t.Fatal(err)
		}
		checkSameKeyring(t, got, k)
	})
}

func checkBoxError(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrAuth) && !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("unexpected error: %v", err)
	}
}

// FuzzKeyringContents is what one who knows the recipients may put in the files.
func FuzzKeyringContents(f *testing.F) {
	e := newEpoch(EpochID{1}, [32]byte{2})
	b, err := encodeCBOR(keyringContents{
		Image: make([]byte, 32), Epochs: []epochPair{{ID: e.id[:], Secret: e.secret[:]}}, Recipients: []string{"age1pq1x"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var c keyringContents
		if err := decodeCBOR(b, &c); err != nil {
			return
		}
		again, err := encodeCBOR(c)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("re-encodes to %x, %v, want %x", again, err, b)
		}
		if es, err := c.epochs(); err == nil && (len(es) == 0 || len(es) > maxEpochs) {
			t.Fatalf("%d epochs", len(es))
		}
		x := &box{Hybrid: []byte{1}}
		if err := x.checkRecipients(c.Recipients, ""); err == nil {
			if got, err := prepareRecipients(c.Recipients, nil); err != nil || !slices.Equal(got, c.Recipients) {
				t.Fatalf("would be stored as %q, %v, not %q", got, err, c.Recipients)
			}
		}
	})
}

// FuzzParseRecipient: one recipient has one spelling.
func FuzzParseRecipient(f *testing.F) {
	rsa, ed := sshRecipients(f)
	f.Add(rsa + " alice")
	f.Add(ed)
	f.Fuzz(func(t *testing.T, s string) {
		_, class, err := ParseRecipient(s)
		if err != nil {
			if !errors.Is(err, ErrRecipient) || len(err.Error()) > 100 {
				t.Fatalf("unexpected error: %v", err)
			}
			return
		}
		c, err := CanonicalRecipient(s)
		if err != nil || len(c) > maxRecipientString {
			t.Fatalf("parses and is not canonical: %v", err)
		}
		if again, err := CanonicalRecipient(c); err != nil || again != c {
			t.Fatalf("canonical twice: %q, %v, want %q", again, err, c)
		}
		if _, again, err := ParseRecipient(c); err != nil || again != class {
			t.Fatalf("class of %q: %v, %v, want %v", c, again, err, class)
		}
		if strings.ContainsAny(c, "\n\r\t\x00") {
			t.Fatalf("canonical: %q", c)
		}
	})
}

// FuzzParseIdentities: no panic, and no part of a secret in an error.
func FuzzParseIdentities(f *testing.F) {
	f.Add([]byte("# comment\nAGE-SECRET-KEY-1QQQQ\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := ParseIdentities(bytes.NewReader(b), Prompt{})
		if (err == nil) != (len(ids) > 0) {
			t.Fatalf("%d identities, %v", len(ids), err)
		}
		if err != nil && !errors.Is(err, ErrIdentity) {
			t.Fatalf("unexpected error: %v", err)
		}
	})
}

func FuzzParseHostKey(f *testing.F) {
	b, err := NewHostKey().MarshalPEM()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHostKey(b)
		if err != nil {
			return
		}
		p, err := h.MarshalPEM()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseHostKey(p); err != nil || got.Public() != h.Public() {
			t.Fatalf("again: %v", err)
		}
	})
}

// Every fuzz target has seeds in the repository, where go test looks for them.
func TestFuzzCorpora(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "fuzz_test.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
			continue
		}
		n++
		seeds, err := filepath.Glob(filepath.Join("testdata/fuzz", fn.Name.Name, "*"))
		if err != nil || len(seeds) == 0 {
			t.Errorf("%s has no seeds (%v)", fn.Name.Name, err)
		}
	}
	if n == 0 {
		t.Error("no fuzz target")
	}
}
