package valuelog

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A place is found by address, reads what lies there, and fails once the file is gone.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	first := mapped(t, dir, "000001.vlog", 'a', fileSize)
	second := mapped(t, dir, "000002.vlog", 'b', fileSize)
	copy(second[8192:], "what is looked for, and more than sixty-four bytes of it, so that it is found")
	f := Files{Dir: dir}
	t.Cleanup(f.Close)
	p, ok := f.Locate(second[8192 : 8192+4096])
	if !ok {
		t.Fatal("no place for bytes of a value log")
	}
	got := make([]byte, 100)
	if err := p.ReadAt(got, 10); err != nil || !bytes.Equal(got, second[8202:8302]) {
		t.Errorf("read %q, %v", got, err)
	}
	for _, off := range []int{-1, 4000, 1 << 20} {
		if err := p.ReadAt(got, off); err == nil {
			t.Errorf("a read at %d of 4096 bytes", off)
		}
	}
	if _, ok := f.Locate(first[:4096]); !ok {
		t.Error("no place in the first value log")
	}
	if _, ok := f.Locate(make([]byte, 4096)); ok {
		t.Error("a place for memory that is no file's")
	}
	if err := os.Remove(filepath.Join(dir, "000002.vlog")); err != nil {
		t.Fatal(err)
	}
	f.Prune()
	if err := p.ReadAt(got, 10); err == nil {
		t.Error("a collected value log is read, so it still takes space")
	}
}

// What is no longer where the list of mappings has it is not believed.
func TestPlaceIsChecked(t *testing.T) {
	dir := t.TempDir()
	b := mapped(t, dir, "000001.vlog", 'a', fileSize)
	mapped(t, dir, "000002.vlog", 'b', fileSize)
	f := Files{Dir: dir}
	t.Cleanup(f.Close)
	if _, ok := f.Locate(b[:4096]); !ok {
		t.Fatal("no place for bytes of a value log")
	}
	for i := range f.maps { // as if the addresses were another file's by now
		f.maps[i].path = filepath.Join(dir, "000002.vlog")
	}
	p, ok := f.Locate(b[4096:8192])
	if !ok {
		t.Fatal("the mappings are not looked up again")
	}
	got := make([]byte, 16)
	if err := p.ReadAt(got, 0); err != nil || !bytes.Equal(got, b[:16]) {
		t.Errorf("read %q, %v", got, err)
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
