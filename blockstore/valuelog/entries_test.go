package valuelog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// store writes n values with Badger and closes it.
func store(t *testing.T, n int) (dir string, values map[string][]byte) {
	t.Helper()
	dir, values = t.TempDir(), make(map[string][]byte)
	db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil).WithValueThreshold(1 << 10).WithValueLogFileSize(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		key, value := fmt.Sprintf("key %d", i), bytes.Repeat([]byte{byte(i)}, 2000+i*37)
		if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte(key), value) }); err != nil {
			t.Fatal(err)
		}
		values[key] = value
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, values
}

// oneLog is the only value log of a store of three values.
func oneLog(t *testing.T) (raw []byte, values map[string][]byte) {
	t.Helper()
	dir, values := store(t, 3)
	files, err := names(dir)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(files[0]); err != nil {
		t.Fatal(err)
	}
	return raw, values
}

// TestEntries reads what Badger wrote.
func TestEntries(t *testing.T) {
	dir, want := store(t, 300)
	files, err := names(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("%d value logs, %v", len(files), err)
	}
	last := uint64(0)
	for _, path := range files {
		err := Entries(path, func(e *Entry) error {
			value, err := e.Append(make([]byte, 0, e.Room()))
			if err != nil {
				return err
			}
			if !bytes.Equal(value, want[string(e.Key)]) {
				t.Errorf("%q has a wrong value of %d bytes", e.Key, len(value))
			}
			if e.Version <= last {
				t.Errorf("%q of version %d after %d", e.Key, e.Version, last)
			}
			last = e.Version
			delete(want, string(e.Key))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(want) != 0 {
		t.Errorf("%d values were not found", len(want))
	}
}

// TestEntriesDamaged changes each byte of the first entry, and cuts the file.
func TestEntriesDamaged(t *testing.T) {
	raw, values := oneLog(t)
	read := func(b []byte) (n int, err error) {
		path := filepath.Join(t.TempDir(), "000001.vlog")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err = Entries(path, func(e *Entry) error {
			value, err := e.Append(make([]byte, 0, e.Room()))
			if err == nil && !bytes.Equal(value, values[string(e.Key)]) {
				t.Error("a changed value was taken for a good one")
			}
			n++
			return err
		})
		return n, err
	}
	if n, err := read(raw); n != 3 || err != nil {
		t.Fatalf("%d entries, %v", n, err)
	}
	for i := logHeader; i < logHeader+60; i++ {
		b := bytes.Clone(raw)
		b[i] ^= 0x41
		if _, err := read(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d changed: %v, want ErrDamaged", i, err)
		}
	}
	for _, cut := range []int{logHeader + 10, logHeader + 100, len(raw) - 1} {
		if _, err := read(raw[:cut]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d of %d: %v, want ErrDamaged", cut, len(raw), err)
		}
	}
}

// TestVoid: a voided value log has no entries, while one whose beginning was lost is damaged.
func TestVoid(t *testing.T) {
	raw, _ := oneLog(t)
	path := filepath.Join(t.TempDir(), "000001.vlog")
	count := func(b []byte, void bool) (n int, err error) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if void {
			if err := Void(path); err != nil {
				t.Fatal(err)
			}
		}
		err = Entries(path, func(*Entry) error { n++; return nil })
		return n, err
	}
	if n, err := count(raw, false); n != 3 || err != nil {
		t.Fatalf("%d entries, %v", n, err)
	}
	if n, err := count(raw, true); n != 0 || err != nil {
		t.Errorf("voided: %d entries, %v", n, err)
	}
	lost := bytes.Clone(raw)
	clear(lost[:512])
	if _, err := count(lost, false); !errors.Is(err, ErrDamaged) {
		t.Errorf("without its beginning: %v, want ErrDamaged", err)
	}
	if n, err := count(append(bytes.Clone(raw), make([]byte, 100_000)...), false); n != 3 || err != nil {
		t.Errorf("with zeros after its end: %d entries, %v", n, err)
	}
}

// TestOverlook: only the statistics of one value log are forgotten.
func TestOverlook(t *testing.T) {
	dir := t.TempDir()
	stats := make([]byte, 1<<12)
	for i, dead := range []byte{200, 220, 240} {
		stats[16*i+7], stats[16*i+15] = byte(i+1), dead
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%06d.vlog", i+1)), make([]byte, 300), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"DISCARD", "000004.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, name), stats, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Overlook(filepath.Join(dir, "000002.vlog")); err != nil {
		t.Fatal(err)
	}
	list, err := MostDead(dir, 0.3)
	if err != nil || len(list) != 2 || filepath.Base(list[0].Path) != "000003.vlog" || list[1].Dead != 200 {
		t.Errorf("%v, %v", list, err)
	}
}
