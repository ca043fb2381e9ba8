package valuelog

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	slack = 8 << 20 // overhead of records, and Badger's own rewriting beside us
	step  = 8 << 20 // blocks are allocated in such steps
)

// Ahead keeps the newest value log backed by blocks ahead of what is written: Badger
// writes through a mapping, where a block that the file system cannot find is a bus
// error. Not safe for concurrent use.
type Ahead struct {
	Dir   string // of Badger
	Limit int64  // bytes that a file can come to hold at most

	path      string // the newest value log
	end       int64  // written up to about here
	allocated int64  // backed up to here
}

// ErrBudget: more than the budget would be needed.
var ErrBudget = errors.New("value log: no budget for its blocks")

// Allocate backs the newest value log with blocks for n bytes beyond what is written,
// out of budget free bytes. [ErrBudget] or ENOSPC: there is no room.
func (a *Ahead) Allocate(n, budget int64) error {
	files, err := names(a.Dir)
	if err != nil || len(files) == 0 {
		return err
	}
	path := files[len(files)-1]
	begun := path != a.path
	if begun {
		a.path, a.end, a.allocated = path, 0, 0
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	defer f.Close()
	// What is allocated and not written counts as a hole.
	if end, err := unix.Seek(int(f.Fd()), a.end, unix.SEEK_HOLE); err == nil {
		a.end = end
	}
	target := min((a.end+n+slack+step-1)/step*step, a.Limit+slack)
	if target <= a.allocated {
		return nil
	}
	start := max(a.allocated, a.end)
	if target-start > budget {
		return ErrBudget
	}
	if err := backed(f, start, target-start); err != nil {
		return err
	}
	a.allocated = target
	if begun {
		useLargePages(f)
		_ = Scattered(a.Dir) // the one before it; a hint
	}
	return dropBeyondEnd(f, target)
}

func backed(f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("value log: allocate: %w", err)
}

// dropBeyondEnd frees blocks beyond the end of a value log that Badger finished and cut
// while we allocated. Badger changes the size of no finished file again.
func dropBeyondEnd(f *os.File, allocated int64) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	if st.Size() >= allocated {
		return nil
	}
	if err := f.Truncate(st.Size()); err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	return nil
}
