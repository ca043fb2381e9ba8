package valuelog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapping is where a file lies in the memory of this process.
type mapping struct {
	start, end uintptr
	path       string
}

// mappings are those of the value logs in dir.
func mappings(dir string) ([]mapping, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("value log: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, fmt.Errorf("value log: mappings: %w", err)
	}
	defer f.Close()
	var list []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if m, ok := parseMapping(lines.Text()); ok && filepath.Dir(m.path) == dir && isName(filepath.Base(m.path)) {
			list = append(list, m)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("value log: mappings: %w", err)
	}
	return list, nil
}

// parseMapping reads a line of proc_pid_maps(5), if it is a value log's: range, mode,
// offset, device, inode, path.
func parseMapping(line string) (m mapping, ok bool) {
	if !strings.HasSuffix(line, ".vlog") {
		return m, false
	}
	span, rest, _ := strings.Cut(line, " ")
	i := strings.IndexByte(rest, '/')
	from, to, found := strings.Cut(span, "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if i < 0 || !found || err1 != nil || err2 != nil || end <= start {
		return m, false
	}
	return mapping{uintptr(start), uintptr(end), rest[i:]}, true
}

func (m mapping) advise(advice int) error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, uintptr(advice))
	if errno != 0 {
		return fmt.Errorf("value log: madvise: %w", errno)
	}
	return nil
}

// useLargePages lets the kernel back the mapping of a value log with large pages where
// the file system has them: a write-back has to protect each page of a mapping again,
// one by one. It is a hint, and harms nothing should the mapping be another's meanwhile.
func useLargePages(f *os.File) {
	list, err := mappings(filepath.Dir(f.Name()))
	if err != nil {
		return
	}
	for _, m := range list {
		if filepath.Base(m.path) == filepath.Base(f.Name()) {
			_ = m.advise(unix.MADV_HUGEPAGE) // there are kernels without it
		}
	}
	// Badger's header has had small pages read ahead, which would be followed by more.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// Unmap takes the pages of all value logs in dir but the newest out of this process's
// memory; they stay in the page cache, and come back when they are read. While it
// runs Badger must unmap no value log: collect none, close no iterator, not be closed.
// Reads and writes may go on.
func Unmap(dir string) error {
	list, err := finished(dir)
	if err != nil {
		return err
	}
	for _, m := range list {
		if err := m.advise(unix.MADV_DONTNEED); err != nil {
			return err
		}
	}
	return nil
}

// Scattered says that all value logs in dir but the newest are read here and there:
// a fault reads one page then, and [Prefetch] what is wanted beyond it.
func Scattered(dir string) error { return advise(dir, unix.MADV_NOHUGEPAGE, unix.MADV_RANDOM) }

// advise gives hints, which harm nothing if a mapping is another's meanwhile.
func advise(dir string, advice ...int) error {
	list, err := finished(dir)
	if err != nil {
		return err
	}
	for _, m := range list {
		for _, a := range advice {
			if err := m.advise(a); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOMEM) {
				return err
			}
		}
	}
	return nil
}

// finished are the mappings of all value logs in dir but the newest, neighbours joined.
// A finished file keeps its mapping until it is deleted: Badger cuts only the newest.
func finished(dir string) ([]mapping, error) {
	files, err := names(dir)
	if err != nil || len(files) < 2 {
		return nil, err
	}
	// The names come first: what is newer than the newest of them is not touched either.
	newest := filepath.Base(files[len(files)-1])
	list, err := mappings(dir)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	last := slices.MaxFunc(list, func(a, b mapping) int { return Compare(a.path, b.path) })
	if name := filepath.Base(last.path); Compare(name, newest) < 0 {
		newest = name
	}
	joined := list[:0]
	for _, m := range list { // ascending by address
		if Compare(filepath.Base(m.path), newest) >= 0 {
			continue
		}
		if n := len(joined); n > 0 && joined[n-1].end == m.start {
			joined[n-1].end = m.end
			continue
		}
		joined = append(joined, m)
	}
	return joined, nil
}

// Resident returns the bytes of mapped files in this process's memory.
func Resident() (int64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("value log: resident: %w", err)
	}
	fields := bytes.Fields(b) // in pages: size, resident, shared, …
	if len(fields) < 3 {
		return 0, fmt.Errorf("value log: resident: %q", b)
	}
	pages, err := strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("value log: resident: %w", err)
	}
	return pages * int64(os.Getpagesize()), nil
}
