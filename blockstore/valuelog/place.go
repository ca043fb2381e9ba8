package valuelog

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxOpen is how many value logs are held open at most.
const maxOpen = 512

// Files finds out where in the files of a value log Badger's mapped bytes lie, so that
// they can be read without being touched: a page that enters memory through a mapping
// costs a fault, and under a hypervisor that keeps shadow page tables ten times a copy.
// Safe for concurrent use.
type Files struct {
	Dir string // of Badger

	readahead readahead
	mu        sync.Mutex // guards what follows
	maps      []mapping  // ascending by address; may be out of date
	open      map[string]*os.File
	misses    int // addresses in no mapping, one after the other
}

// maxMisses: then the mappings cannot be told here (another /proc, another name of the
// folder), and it is not tried again.
const maxMisses = 16

// Place is where bytes lie in a finished or growing value log. They never change
// there; once the file was collected they cannot be read any more.
type Place struct {
	files *Files
	file  *os.File
	off   int64
	n     int
}

// Locate gives the place of b, which lies in a value log. Its first bytes are read to
// see that it is there. Badger must not unmap that value log meanwhile.
func (f *Files) Locate(b []byte) (Place, bool) {
	const enough = 64
	if len(b) < enough {
		return Place{}, false
	}
	for _, again := range []bool{false, true} {
		file, off, err := f.find(uintptr(unsafe.Pointer(unsafe.SliceData(b))), again)
		if err != nil || file == nil {
			continue
		}
		var head [enough]byte
		if _, err := file.ReadAt(head[:], off); err == nil && bytes.Equal(head[:], b[:enough]) {
			return Place{files: f, file: file, off: off, n: len(b)}, true
		}
	}
	return Place{}, false
}

// find gives file and offset of an address; fresh: as the mappings are now.
func (f *Files) find(addr uintptr, fresh bool) (file *os.File, off int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.misses > maxMisses {
		return nil, 0, nil
	}
	if fresh || f.maps == nil {
		if f.maps, err = mappings(f.Dir); err != nil {
			return nil, 0, err
		}
	}
	i, found := slices.BinarySearchFunc(f.maps, addr, func(m mapping, a uintptr) int { return cmp.Compare(m.start, a) })
	if !found {
		i--
	}
	if i < 0 || addr >= f.maps[i].end {
		if fresh {
			f.misses++
		}
		return nil, 0, nil
	}
	f.misses = 0
	file, err = f.openLocked(f.maps[i].path)
	return file, int64(addr - f.maps[i].start), err
}

func (f *Files) openLocked(path string) (*os.File, error) {
	if file := f.open[path]; file != nil {
		return file, nil
	}
	for old, file := range f.open { // any one: who still has a place in it locates it again
		if len(f.open) < maxOpen {
			break
		}
		file.Close()
		delete(f.open, old)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	// What is wanted beyond a read is said by ourselves.
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		file.Close()
		return nil, err
	}
	if f.open == nil {
		f.open = make(map[string]*os.File)
	}
	f.open[path] = file
	return file, nil
}

// Prune lets go of value logs that Badger has deleted; their space is free then.
func (f *Files) Prune() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.maps = nil
	for path, file := range f.open {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			file.Close()
			delete(f.open, path)
		}
	}
}

// Close lets go of all.
func (f *Files) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, file := range f.open {
		file.Close()
		delete(f.open, path)
	}
}

// ReadAt fills b with what lies at off in the place, or fails.
func (p Place) ReadAt(b []byte, off int) error {
	if p.file == nil || off < 0 || off+len(b) > p.n {
		return fmt.Errorf("value log: read of %d bytes at %d of %d", len(b), off, p.n)
	}
	at := p.off + int64(off)
	if from, to := p.files.readahead.follow(p.file, at, at+int64(len(b))); from < to {
		_ = unix.Fadvise(int(p.file.Fd()), from, to-from, unix.FADV_WILLNEED) // a hint
	}
	if _, err := p.file.ReadAt(b, at); err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	return nil
}
