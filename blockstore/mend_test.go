package blockstore

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"
	badgertable "github.com/dgraph-io/badger/v4/table"
)

// closedStore is a store of one object that is closed; during says what to do before that.
func closedStore(t *testing.T, during func(badger string)) (dir, badger string, o Object) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "store")
	if err := Create(dir, Options{Reserve: testReserve}); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	badger, o = filepath.Join(dir, "badger"), crashObject(2)
	put(t, s, o)
	during(badger)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, badger, o
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The name of a log may be durable before anything else of it is.
func TestEmptyLogs(t *testing.T) {
	for _, name := range []string{"00077.mem", "000077.vlog"} {
		t.Run(name, func(t *testing.T) {
			dir, badger, o := closedStore(t, func(string) {})
			writeFile(t, filepath.Join(badger, name), nil)
			s := openStore(t, dir)
			wantObject(t, s, o)
			put(t, s, crashObject(3))
		})
	}
}

// A table may be in the manifest before its name is durable. Then the log is still
// there that it was made from; if it is not, the table is lost, and that is an error.
func TestTableWithoutName(t *testing.T) {
	var log, table, dir, folder string
	var content []byte
	var o Object
	for range 20 { // Badger may compact the table, which then is not made from a log any more
		dir, folder, o = closedStore(t, func(badger string) {
			logs, err := filepath.Glob(filepath.Join(badger, "*.mem"))
			if err != nil || len(logs) == 0 {
				t.Fatalf("%q, %v", logs, err)
			}
			log = slices.Max(logs)
			content = readFile(t, log)
		})
		if table = tableOfLevelZero(t, folder); table != "" {
			break
		}
	}
	if err := os.Remove(table); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(t.Context(), dir, Options{Reserve: testReserve}); err == nil {
		s.Close()
		t.Fatal("a store that lost a table opens")
	}
	writeFile(t, log, nil) // Badger empties a log before it removes it
	if s, err := Open(t.Context(), dir, Options{Reserve: testReserve}); err == nil {
		s.Close()
		t.Fatal("a store that lost a table opens over an empty log, as an older state")
	}
	writeFile(t, log, content)
	wantObject(t, openStore(t, dir), o)
}

// tableOfLevelZero is the path of the newest table, "" if a compaction made it.
func tableOfLevelZero(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	opt := badger.DefaultOptions(dir)
	m, _, err := badger.ReplayManifestFile(f, opt.ExternalMagicVersion, opt)
	if err != nil {
		t.Fatal(err)
	}
	newest := slices.Max(slices.Collect(maps.Keys(m.Tables)))
	if m.Tables[newest].Level != 0 {
		return ""
	}
	return badgertable.NewFilename(newest, dir)
}

// A record of the manifest may be torn while it is appended, 512 bytes being written whole.
func TestTornManifest(t *testing.T) {
	body := make([]byte, 2100)
	for i := range body {
		body[i] = byte(i%7 + 1)
	}
	record := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	record = binary.BigEndian.AppendUint32(record, crc32.Checksum(body, castagnoli))
	record = append(record, body...)
	for name, damage := range map[string]func(b []byte, end int) []byte{
		"zeros":       func(b []byte, end int) []byte { clear(b[end:]); return b },
		"first unit":  func(b []byte, _ int) []byte { clear(b[512:1024]); return b },
		"middle unit": func(b []byte, _ int) []byte { clear(b[1024:1536]); return b },
		"last unit":   func(b []byte, _ int) []byte { clear(b[len(b)&^511:]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir, badger, o := closedStore(t, func(string) {})
			path := filepath.Join(badger, "MANIFEST")
			b := readFile(t, path)
			writeFile(t, path, damage(append(slices.Clone(b), record...), len(b)))
			wantObject(t, openStore(t, dir), o)
		})
	}
	t.Run("damage", func(t *testing.T) {
		dir, badger, _ := closedStore(t, func(string) {})
		path := filepath.Join(badger, "MANIFEST")
		b := readFile(t, path)
		b[len(b)-3] ^= 1
		writeFile(t, path, b)
		if s, err := Open(t.Context(), dir, Options{Reserve: testReserve}); err == nil {
			s.Close()
			t.Fatal("a store with a damaged manifest opens")
		}
	})
}
