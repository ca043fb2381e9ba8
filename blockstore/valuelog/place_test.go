package valuelog

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// A place reads what lies there and nothing beside it, and fails once the file is gone.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("what is looked for; "), 1000)
	if err := os.WriteFile(filepath.Join(dir, "000002.vlog"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	f := Files{Dir: dir}
	t.Cleanup(f.Close)
	file, err := f.file(2)
	if err != nil {
		t.Fatal(err)
	}
	p := Place{files: &f, file: file, off: 8192, n: 4096}
	got := make([]byte, 100)
	if err := p.ReadAt(got, 10); err != nil || !bytes.Equal(got, content[8202:8302]) {
		t.Errorf("read %q, %v", got, err)
	}
	for _, off := range []int{-1, 4000, 1 << 20} {
		if err := p.ReadAt(got, off); err == nil {
			t.Errorf("a read at %d of 4096 bytes", off)
		}
	}
	if err := os.Remove(filepath.Join(dir, "000002.vlog")); err != nil {
		t.Fatal(err)
	}
	f.Prune()
	if err := p.ReadAt(got, 10); err == nil {
		t.Error("a collected value log is read, so it still takes space")
	}
	if _, err := f.file(1); err == nil {
		t.Error("a value log that is not there was opened")
	}
}

// The value of an entry lies behind its header and key, whatever the length of the varints.
func TestValueOf(t *testing.T) {
	const key = 41
	for _, n := range []int{1, 63, 127, 128, 129, 16383, 16384, 1 << 20, 1<<21 - 1, 1 << 21} {
		head := 2 + len(binary.AppendUvarint(nil, key)) + len(binary.AppendUvarint(nil, uint64(n))) + 1
		start, got, ok := valueOf(head+key+n+4, key)
		if !ok || start != head+key || got != n {
			t.Errorf("value of %d bytes: %d bytes at %d, %v", n, got, start, ok)
		}
	}
	if _, _, ok := valueOf(40, key); ok {
		t.Error("a value in an entry that is too short")
	}
}

func TestReadahead(t *testing.T) {
	const step = 64 << 10
	a, b := new(os.File), new(os.File)
	var r readahead
	asked := int64(0) // up to here
	for i := range int64(1000) {
		// Two streams at once, one of them in steps that jump over each other.
		off := (i ^ 1) * step
		if from, to := r.follow(a, off, off+step); from < to {
			if i > 4 && from > asked {
				t.Fatalf("step %d: asks from %d, was at %d", i, from, asked)
			}
			asked = to
		}
		if i > 8 && asked < off+step {
			t.Fatalf("step %d: asked up to %d, read up to %d", i, asked, off+step)
		}
		if asked > off+2*largeStep {
			t.Fatalf("step %d: asked up to %d, read up to %d", i, asked, off+step)
		}
		r.follow(b, i*step, (i+1)*step)
	}
	random := new(readahead)
	for i := range int64(100) {
		off := i * 37 % 100 * (64 << 20)
		if from, to := random.follow(a, off, off+step); from < to {
			t.Fatalf("random reads ask for %d to %d", from, to)
		}
	}
}

// Only Badger's own names count, whatever else lies there and however the folder is called.
func TestNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[b]*")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"000001.vlog", "copy-000002.vlog", "000003.vlog.bak", "1234.vlog", "x00005.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := names(dir)
	if want := filepath.Join(dir, "000001.vlog"); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("value logs %q, %v, want %q", got, err, want)
	}
}
