package crypto

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"filippo.io/age"
)

// secretByte fills every secret of the test: 171 in decimal, ab in hex, «.
const secretByte = 0xab

// secretValues holds one value of every type that holds a secret.
func secretValues(t *testing.T) map[string]any {
	t.Helper()
	secret := [32]byte(bytes.Repeat([]byte{secretByte}, 32))
	e := newEpoch(EpochID{1}, secret)
	sealer, opener := newPair(t, AES256GCM, Key(secret))
	host := HostKey{s: newSigner(secret)}
	image := &ImageKey{s: newSigner(secret), passphrase: []byte("sealed")}
	ring := &Keyring{Epochs: []*Epoch{e}, Recipients: []string{"age1x"}, passphrase: []byte("sealed")}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	phrase, err := PassphraseIdentity(strings.Repeat(string(rune(secretByte)), 9))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"Key": Key(secret), "Epoch": e, "Sealer": sealer, "Opener": opener, "HostKey": host,
		"ImageKey": image, "Keyring": ring, "identity": &identity{inner: hybrid},
		"passphraseIdentity": phrase, "tlsSigner": host.TLS(),
	}
}

// leaks is how the secret bytes of the test look in print. Pointers print as addresses, and
// those may hold any digits: a byte stands by itself, or there are many of it.
var leaks = regexp.MustCompile(`(^|[^0-9])171($|[^0-9])|abababab|ab ab|0xab($|[^0-9a-f])|««|q6ur|age-secret-key`)

func checkRedacted(t *testing.T, how, got string) {
	t.Helper()
	if leaks.MatchString(strings.ToLower(got)) {
		t.Errorf("%s leaks: %s", how, got)
	}
}

// TestLeaks: the test above would see a secret that is printed.
func TestLeaks(t *testing.T) {
	secret := bytes.Repeat([]byte{secretByte}, 32)
	for _, verb := range []string{"%v", "%+v", "%d", "%+d", "% d", "%x", "%X", "% x", "%#x", "%s", "%-40d"} {
		if got := fmt.Sprintf(verb, secret); verb != "%s" && !leaks.MatchString(strings.ToLower(got)) {
			t.Errorf("%s: %q is not seen", verb, got)
		}
	}
	if leaks.MatchString("0x54180271719120 54180271719120 0xabc1") {
		t.Error("an address is taken for a secret")
	}
}

func TestRedacted(t *testing.T) {
	for name, v := range secretValues(t) {
		t.Run(name, func(t *testing.T) {
			type outer struct{ Exported, hidden any }
			forms := map[string]any{
				"itself": v, "pointer": reflectPointer(v), "slice": []any{v}, "map": map[string]any{"k": v},
				"struct": outer{Exported: v}, "array": [1]any{v},
			}
			if name != "Key" { // an array in somebody's unexported field is beyond its methods
				forms["unexported field"] = outer{hidden: v}
			}
			for form, x := range forms {
				for c := 'A'; c <= 'z'; c++ {
					if name == "Key" && (c == 'p' || c == 'w') { // never reach Format; vet refuses them
						continue
					}
					for _, flag := range []string{"", "+", "#", " ", "0", "-40", ".3", "# "} {
						verb := "%" + flag + string(c)
						checkRedacted(t, form+" "+verb, fmt.Sprintf(verb, x))
					}
				}
				b, err := json.Marshal(x)
				if err != nil {
					t.Errorf("%s: json: %v", form, err)
				}
				checkRedacted(t, form+" json", string(b))
				for _, h := range []func(*bytes.Buffer) slog.Handler{
					func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
					func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
				} {
					var buf bytes.Buffer
					slog.New(h(&buf)).Info("m", "v", x)
					checkRedacted(t, form+" slog", buf.String()[strings.Index(buf.String(), "INFO"):])
				}
			}
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q", "%t"} {
				if got := fmt.Sprintf(verb, v); got != "redacted" {
					t.Errorf("%s = %q, want redacted", verb, got)
				}
			}
		})
	}
}

func reflectPointer(v any) any {
	p := reflect.New(reflect.TypeOf(v))
	p.Elem().Set(reflect.ValueOf(v))
	return p.Interface()
}

func TestRedactedMethods(t *testing.T) {
	for name, v := range secretValues(t) {
		typ := reflect.TypeOf(v)
		for _, i := range []reflect.Type{
			reflect.TypeFor[fmt.Formatter](), reflect.TypeFor[fmt.Stringer](), reflect.TypeFor[fmt.GoStringer](),
			reflect.TypeFor[slog.LogValuer](), reflect.TypeFor[encoding.TextMarshaler](),
		} {
			if !typ.Implements(i) {
				t.Errorf("%s does not implement %v", name, i)
			}
		}
	}
}

// Every type that embeds redacted is in secretValues, so that a new one is not
// forgotten above.
func TestRedactedTypesAreTested(t *testing.T) {
	values := secretValues(t)
	n := 0
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(node ast.Node) bool {
			spec, ok := node.(*ast.TypeSpec)
			if !ok {
				return true
			}
			s, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range s.Fields.List {
				if id, ok := field.Type.(*ast.Ident); ok && len(field.Names) == 0 && id.Name == "redacted" {
					n++
					if values[spec.Name.Name] == nil {
						t.Errorf("%s is not tested", spec.Name.Name)
					}
				}
			}
			return true
		})
	}
	if n == 0 {
		t.Error("no type found")
	}
}
