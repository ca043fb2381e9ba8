package valuelog

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// names are the paths of the value logs in dir, the newest last.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("value log: %w", err)
	}
	var files []string
	for _, e := range entries {
		if isName(e.Name()) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	slices.SortFunc(files, Compare)
	return files, nil
}

// isName reports whether a file is a value log: a number of at least six digits.
func isName(name string) bool {
	number, ok := strings.CutSuffix(name, ".vlog")
	return ok && len(number) >= 6 && strings.Trim(number, "0123456789") == ""
}

// Compare orders paths of Badger's files in one folder by their numbers: six digits, or more.
func Compare(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// Written returns the bytes that are written in all value logs in dir.
func Written(dir string) (sum int64, err error) {
	files, err := names(dir)
	if err != nil {
		return 0, err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) { // collected meanwhile
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("value log: %w", err)
		}
		// The file that is written has room after its end, which is a hole.
		end, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
		f.Close()
		if err == nil {
			sum += end
		}
	}
	return sum, nil
}

// Evict takes the finished value logs after the one of that name out of the page
// cache, and returns the name of the last one. What is mapped stays; see [Unmap].
func Evict(dir, after string) (last string, err error) {
	files, err := names(dir)
	if err != nil || len(files) == 0 {
		return after, err
	}
	for _, path := range files[:len(files)-1] {
		if Compare(filepath.Base(path), after) <= 0 {
			continue
		}
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) { // collected meanwhile
			continue
		}
		if err == nil {
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			f.Close()
		}
		if err != nil {
			return after, fmt.Errorf("value log: %w", err)
		}
		after = filepath.Base(path)
	}
	return after, nil
}

// Newest returns the name of the newest value log in dir, "" if there is none.
func Newest(dir string) (string, error) {
	files, err := names(dir)
	if err != nil || len(files) == 0 {
		return "", err
	}
	return filepath.Base(files[len(files)-1]), nil
}
