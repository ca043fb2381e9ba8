package home

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"filippo.io/age/plugin"

	"github.com/sealdisk/sealdisk/crypto"
)

// TestForeignIdentity: an identity that the user brings is used, with the
// recipient that it has or names.
func TestForeignIdentity(t *testing.T) {
	secret, recipient, err := crypto.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ text, want string }{
		"native":  {secret + "\n", recipient},
		"plugin":  {"# Recipient: " + plugin.EncodeRecipient("test", []byte{1}) + "\n" + plugin.EncodeIdentity("test", []byte{2}) + "\n", plugin.EncodeRecipient("test", []byte{1})},
		"silent":  {plugin.EncodeIdentity("test", []byte{2}) + "\n", ""},
		"nothing": {"# nothing\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, identityFile), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			h, created, err := Init(dir, Options{})
			if tt.want == "" {
				if !errors.Is(err, ErrNoRecipient) && !errors.Is(err, crypto.ErrIdentity) {
					t.Error("it was accepted")
				}
				return
			}
			if err != nil || created || !slices.Equal(h.Recipients, []string{tt.want}) {
				t.Errorf("recipients %.40q, created %v, %v", h.Recipients, created, err)
			}
		})
	}
}
