package crypto

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"
)

// A vector is "name: value" lines, an empty line, and a body in base64 that may
// be empty. Vectors were written once and are only read. docs/format.md is what
// they are vectors of.
type vector struct {
	t      *testing.T
	header map[string][]string
	body   []byte
}

// vectorKeys says which headers each kind has; others fail.
var vectorKeys = map[string][]string{
	"epoch":     {"epoch", "secret", "parent-0", "parent-1", "parent-255", "parent-256", "master"},
	"key":       {"epoch", "secret", "purpose", "region", "salt", "context", "key"},
	"frames":    {"suite", "key", "frame"},
	"catalogue": {"seed", "store", "salt", "header", "key"},
	"signature": {"seed", "public", "what", "message", "signature", "valid"},
	"keyring":   {"class", "image", "identity", "passphrase", "recipient", "epoch", "expect"},
	"image-key": {"class", "image", "identity", "passphrase", "recipient", "expect"},
}

func readVector(t *testing.T, path string) *vector {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, body, ok := strings.Cut(string(b), "\n\n")
	if !ok {
		t.Fatalf("%s: no empty line", path)
	}
	v := &vector{t: t, header: make(map[string][]string)}
	for line := range strings.SplitSeq(head, "\n") {
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("%s: not a header: %q", path, line)
		}
		v.header[name] = append(v.header[name], value)
	}
	known := vectorKeys[v.one("kind")]
	if known == nil {
		t.Fatalf("%s: unknown kind %q", path, v.one("kind"))
	}
	for name := range v.header {
		if name != "kind" && name != "comment" && !slices.Contains(known, name) {
			t.Fatalf("%s: unknown header %q", path, name)
		}
	}
	v.body, err = base64.StdEncoding.DecodeString(strings.ReplaceAll(body, "\n", ""))
	if err != nil {
		t.Fatalf("%s: body: %v", path, err)
	}
	return v
}

func (v *vector) one(name string) string {
	v.t.Helper()
	if len(v.header[name]) != 1 {
		v.t.Fatalf("%d headers %q, want 1", len(v.header[name]), name)
	}
	return v.header[name][0]
}

func (v *vector) bytes(name string) []byte {
	v.t.Helper()
	return unhex(v.t, v.one(name))
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	if s == "-" {
		return nil
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v *vector) epoch() *Epoch {
	v.t.Helper()
	return newEpoch(EpochID(v.bytes("epoch")), [32]byte(v.bytes("secret")))
}

func TestVectors(t *testing.T) {
	paths, err := filepath.Glob("testdata/vectors/*")
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]int)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			v := readVector(t, path)
			kinds[v.one("kind")]++
			switch v.one("kind") {
			case "epoch":
				checkEpochVector(t, v)
			case "key":
				checkKeyVector(t, v)
			case "frames":
				checkFramesVector(t, v)
			case "catalogue":
				checkCatalogueVector(t, v)
			case "signature":
				checkSignatureVector(t, v)
			case "keyring", "image-key":
				checkBoxVector(t, v)
			}
		})
	}
	for kind := range vectorKeys {
		if kinds[kind] == 0 {
			t.Errorf("no vector of kind %q", kind)
		}
	}
}

func checkEpochVector(t *testing.T, v *vector) {
	e := v.epoch()
	id := e.ID()
	parents := naiveParents(id[:], v.bytes("secret"))
	e.deriveParents()
	for _, i := range []int{0, 1, 255, 256} {
		want := v.bytes("parent-" + strconv.Itoa(i))
		if !bytes.Equal(e.parents[i][:], want) {
			t.Errorf("parent %d = %x, want %x", i, e.parents[i], want)
		}
		if !bytes.Equal(parents[i], want) {
			t.Errorf("naive parent %d = %x, want %x", i, parents[i], want)
		}
	}
	want := MasterKey(v.bytes("master"))
	if got := e.Master(); got != want {
		t.Errorf("master = %v, want %v", got, want)
	}
	if got := naiveMaster(parents); got != want {
		t.Errorf("naive master = %v, want %v", got, want)
	}
}

func checkKeyVector(t *testing.T, v *vector) {
	region, err := strconv.ParseUint(v.one("region"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	salt, context := Salt(v.bytes("salt")), v.bytes("context")
	want := Key(v.bytes("key"))
	if got := v.epoch().Key(Purpose(v.one("purpose")), Region(region), salt, context); got != want {
		t.Errorf("key = %x, want %x", got[:], want[:])
	}
	p := region % 256
	if region == 1<<64-1 {
		p = 256
	}
	id := v.bytes("epoch")
	parent := naiveParents(id, v.bytes("secret"))[p]
	if got := naiveRecordKey(parent, salt[:], v.one("purpose"), region, context); !bytes.Equal(got, want[:]) {
		t.Errorf("naive key = %x, want %x", got, want[:])
	}
}

func checkFramesVector(t *testing.T, v *vector) {
	n, err := strconv.Atoi(v.one("suite"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := NewSealer(Suite(n), Key(v.bytes("key")))
	if err != nil {
		t.Fatal(err)
	}
	opener, err := NewOpener(Suite(n), Key(v.bytes("key")))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range v.header["frame"] {
		f := strings.Fields(line) // last or more, plaintext, aad, sealed
		if len(f) != 4 {
			t.Fatalf("frame %q", line)
		}
		last, plaintext, aad, sealed := f[0] == "last", unhex(t, f[1]), unhex(t, f[2]), unhex(t, f[3])
		if got := sealer.Seal(nil, plaintext, aad, last); !bytes.Equal(got, sealed) {
			t.Errorf("frame %d = %x, want %x", i, got, sealed)
		}
		got, err := opener.Open(nil, uint64(i), last, sealed, aad)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("open frame %d: got %x, %v, want %x", i, got, err, plaintext)
		}
	}
}

func checkCatalogueVector(t *testing.T, v *vector) {
	h := HostKey{s: newSigner([32]byte(v.bytes("seed")))}
	salt, header, want := v.bytes("salt"), v.bytes("header"), v.bytes("key")
	if got := h.CatalogueKey([16]byte(v.bytes("store")), Salt(salt), header); !bytes.Equal(got[:], want) {
		t.Errorf("key = %x, want %x", got[:], want)
	}
	parent := naiveExpand(naiveMAC(v.bytes("store"), v.bytes("seed")), []byte("sealdisk/v1 catalogue parent"))
	if got := naiveRecordKey(parent, salt, "catalogue", 1<<64-1, header); !bytes.Equal(got, want) {
		t.Errorf("naive key = %x, want %x", got, want)
	}
}

func checkSignatureVector(t *testing.T, v *vector) {
	pub, what, msg, sig := [32]byte(v.bytes("public")), v.one("what"), v.bytes("message"), v.bytes("signature")
	valid := v.one("valid") == "yes"
	if got := Verify(pub, what, msg, sig); got != valid {
		t.Errorf("Verify = %v, want %v", got, valid)
	}
	if !valid {
		return
	}
	h := HostKey{s: newSigner([32]byte(v.bytes("seed")))}
	if h.Public() != pub {
		t.Errorf("public key = %x, want %x", h.Public(), pub)
	}
	if got := h.Sign(what, msg); !bytes.Equal(got[:], sig) {
		t.Errorf("signature = %x, want %x", got, sig)
	}
}

func (v *vector) identities() []age.Identity {
	v.t.Helper()
	var ids []age.Identity
	for _, s := range v.header["identity"] {
		file, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			v.t.Fatal(err)
		}
		parsed, err := ParseIdentities(bytes.NewReader(file), Prompt{})
		if err != nil {
			v.t.Fatal(err)
		}
		ids = append(ids, parsed...)
	}
	for _, s := range v.header["passphrase"] {
		id, err := PassphraseIdentity(s)
		if err != nil {
			v.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

var vectorErrors = map[string]error{
	"success": nil, "no-identity": ErrNoIdentity, "auth": ErrAuth, "format": ErrFormat,
}

func checkBoxVector(t *testing.T, v *vector) {
	want, ok := vectorErrors[v.one("expect")]
	if !ok {
		t.Fatalf("unknown expect %q", v.one("expect"))
	}
	image := [32]byte(v.bytes("image"))
	var recipients, epochs []string
	var err error
	if v.one("kind") == "keyring" {
		var k *Keyring
		if k, err = OpenKeyring(v.body, image, v.identities()); err == nil {
			recipients = k.Recipients
			for _, m := range k.Masters() {
				epochs = append(epochs, m.ID.String()+" "+m.Key.String())
			}
		}
	} else {
		var k *ImageKey
		if k, err = OpenImageKey(v.body, image, v.identities()); err == nil {
			recipients = k.Recipients()
			if k.ID() != image {
				t.Errorf("id = %x, want %x", k.ID(), image)
			}
		}
	}
	if want != nil {
		if !errors.Is(err, want) {
			t.Errorf("err = %v, want %v", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(recipients, v.header["recipient"]) {
		t.Errorf("recipients = %q, want %q", recipients, v.header["recipient"])
	}
	if !slices.Equal(epochs, v.header["epoch"]) {
		t.Errorf("epochs = %q, want %q", epochs, v.header["epoch"])
	}
	if got := Weakest(recipients).String(); got != v.one("class") {
		t.Errorf("weakest class = %s, want %s", got, v.one("class"))
	}
}

// What follows writes docs/format.md §2 down once more, as plainly as it goes.

func naiveMAC(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(bytes.Join(parts, nil))
	return h.Sum(nil)
}

func naiveExpand(prk []byte, info ...[]byte) []byte {
	return naiveMAC(prk, append(info, []byte{1})...)
}

func naiveParents(id, secret []byte) [][]byte {
	prk := naiveMAC(id, secret)
	out := make([][]byte, 257)
	for i := range out {
		out[i] = naiveExpand(prk, []byte("sealdisk/v1 parent"), []byte{byte(i >> 8), byte(i)})
	}
	return out
}

// naiveMaster folds recursively: the left subtree holds the largest power of two
// of leaves that leaves something for the right. That is the same tree as pairing
// neighbours and moving an odd last one up.
func naiveMaster(parents [][]byte) MasterKey {
	var tree func([][]byte) []byte
	tree = func(p [][]byte) []byte {
		if len(p) == 1 {
			return naiveExpand(p[0], []byte("sealdisk/v1 commitment"))
		}
		n := 1
		for n*2 < len(p) {
			n *= 2
		}
		h := sha256.Sum256(bytes.Join([][]byte{[]byte("sealdisk/v1 fold"), tree(p[:n]), tree(p[n:])}, nil))
		return h[:]
	}
	return MasterKey(tree(parents))
}

func naiveRecordKey(parent, salt []byte, purpose string, region uint64, context []byte) []byte {
	return naiveExpand(naiveMAC(salt, parent), []byte("sealdisk/v1 "), []byte(purpose), []byte{0},
		binary.BigEndian.AppendUint64(nil, region), context)
}
