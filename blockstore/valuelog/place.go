package valuelog

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxOpen is how many value logs are held open at most.
const maxOpen = 512

// Files reads in the files of a value log, past Badger's mapping of them: a page that
// enters memory through a mapping costs a fault, and under a hypervisor that keeps shadow
// page tables ten times a copy. Safe for concurrent use.
type Files struct {
	Dir string // of Badger

	readahead readahead
	mu        sync.Mutex // guards what follows
	open      map[string]*os.File
}

// Place is where bytes lie in a finished or growing value log. They never change
// there; once the file was collected they cannot be read any more.
type Place struct {
	files *Files
	file  *os.File
	off   int64
	n     int
}

// Size is how many bytes there are.
func (p Place) Size() int { return p.n }

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
