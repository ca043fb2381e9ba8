package valuelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Badger's layout of a value log, version 4: a header, then entries one after the other,
// each meta, user meta, the lengths of key and value and the expiry as varints, the key with its
// version in the last 8 bytes, the value, and a checksum.
const (
	logHeader   = 20
	entryHeader = 2 + 5 + 5 + 10 // at most
	entrySum    = 4
	keyMost     = 512 // more than any key of ours
)

// ErrDamaged: the value log is not what Badger has written.
var ErrDamaged = errors.New("value log: damaged")

// voidMark is an entry header that Badger never writes: a user meta, and no key. It is as
// short as the shortest real one.
var voidMark = []byte{0, 1, 0, 0, 0, 0}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is one of a value log. It is valid during the call that it is given to.
type Entry struct {
	Key     []byte // without the version
	Version uint64
	head    []byte // of the entry, up to the value
	off, n  int64  // of the value
	file    *os.File
}

// Room is how many bytes of room Append needs.
func (e *Entry) Room() int { return int(e.n) + entrySum }

// Append appends the value to dst, which has the room for it, and checks it. [ErrDamaged].
func (e *Entry) Append(dst []byte) ([]byte, error) {
	b := dst[len(dst) : len(dst)+e.Room()]
	if _, err := e.file.ReadAt(b, e.off); err != nil {
		return dst, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	value, sum := b[:e.n], binary.BigEndian.Uint32(b[e.n:])
	if crc32.Update(crc32.Checksum(e.head, castagnoli), castagnoli, value) != sum {
		return dst, fmt.Errorf("%w: %s: value at %d", ErrDamaged, filepath.Base(e.file.Name()), e.off)
	}
	return dst[:len(dst)+int(e.n)], nil
}

// Entries calls fn for each entry of a finished value log, in order, until fn fails. It
// reads no values. [ErrDamaged].
func Entries(path string, fn func(e *Entry) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	head := make([]byte, entryHeader+keyMost)
	for at := int64(logHeader); at < st.Size(); {
		n, err := f.ReadAt(head, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if at == logHeader && bytes.HasPrefix(head[:n], voidMark) {
			return nil
		}
		e, size, err := parseEntry(head[:n], at)
		if err != nil {
			return fmt.Errorf("%w: %s: entry at %d: %w", ErrDamaged, filepath.Base(path), at, err)
		}
		if size == 0 {
			return restIsZero(f, at, st.Size())
		}
		if size > st.Size()-at {
			return fmt.Errorf("%w: %s: entry of %d bytes at %d of %d", ErrDamaged, filepath.Base(path), size, at, st.Size())
		}
		e.file = f
		if err := fn(&e); err != nil {
			return err
		}
		at += size
	}
	return nil
}

// restIsZero checks that a value log holds nothing from a place on: zeros where an entry
// begins may also be a page that was lost.
func restIsZero(f *os.File, at, end int64) error {
	b := make([]byte, 64<<10)
	for ; at < end; at += int64(len(b)) {
		n, err := f.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if len(bytes.TrimLeft(b[:n], "\x00")) > 0 {
			return fmt.Errorf("%w: %s: zeros at %d", ErrDamaged, filepath.Base(f.Name()), at)
		}
	}
	return nil
}

// parseEntry reads the beginning of an entry that stands at a place; size 0: there is none.
func parseEntry(b []byte, at int64) (e Entry, size int64, err error) {
	if len(b) < 2 {
		return e, 0, nil
	}
	var lengths [3]uint64 // key, value, expiry
	used := 2
	for i := range lengths {
		v, n := binary.Uvarint(b[used:])
		if n <= 0 {
			return e, 0, errors.New("bad length")
		}
		lengths[i] = v
		used += n
	}
	k, v := lengths[0], lengths[1]
	if k == 0 && v == 0 {
		return e, 0, nil
	}
	if k < 8 || k > keyMost || int(k) > len(b)-used || v > 1<<31 {
		return e, 0, fmt.Errorf("key of %d and value of %d bytes", k, v)
	}
	key := b[used : used+int(k)]
	e.Key, e.head = key[:k-8], b[:used+int(k)]
	e.Version = ^binary.BigEndian.Uint64(key[k-8:]) // so that newer ones sort first
	e.off, e.n = at+int64(used)+int64(k), int64(v)
	return e, int64(used) + int64(k) + int64(v) + entrySum, nil
}

// Overlook makes Badger believe that nothing of a value log is dead, so that it does not collect
// it before much more has died. Badger changes its statistics meanwhile: at worst another's are lost.
func Overlook(path string) error {
	stats := filepath.Join(filepath.Dir(path), "DISCARD")
	fid, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ".vlog"), 10, 64)
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	f, err := os.OpenFile(stats, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	for off := 0; off+16 <= len(b) && binary.BigEndian.Uint64(b[off:]) != 0; off += 16 {
		if binary.BigEndian.Uint64(b[off:]) == fid {
			_, err := f.WriteAt(make([]byte, 8), int64(off)+8)
			return err
		}
	}
	return nil
}

// Void overwrites the beginning of a finished value log in which nothing lives: Badger, when it
// collects it, reads nothing of it then, and deletes it. Nothing but the first header is
// touched: whoever has looked up that entry before gets an empty value, or still has it.
func Void(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	_, err = f.WriteAt(voidMark, logHeader)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("value log: %w", err)
	}
	return nil
}

// Dying is a finished value log that holds dead bytes.
type Dying struct {
	Path string
	Dead int64 // bytes, as far as Badger knows
}

// MostDead gives the finished value logs in dir of which a part is dead, as Badger's file of discard
// statistics has it, those with most dead bytes first. It is a hint: Badger changes the
// file meanwhile.
func MostDead(dir string, part float64) ([]Dying, error) {
	b, err := os.ReadFile(filepath.Join(dir, "DISCARD"))
	if err != nil {
		return nil, fmt.Errorf("value log: %w", err)
	}
	files, err := names(dir)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	dead := make(map[uint64]int64)
	for ; len(b) >= 16; b = b[16:] {
		fid := binary.BigEndian.Uint64(b)
		if fid == 0 {
			break
		}
		dead[fid] = int64(min(binary.BigEndian.Uint64(b[8:]), 1<<40))
	}
	var list []Dying
	for _, path := range files[:len(files)-1] { // the newest is still written
		fid, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ".vlog"), 10, 64)
		if err != nil {
			continue
		}
		st, err := os.Stat(path)
		if err == nil && float64(dead[fid]) >= part*float64(st.Size()) {
			list = append(list, Dying{Path: path, Dead: dead[fid]})
		}
	}
	slices.SortStableFunc(list, func(a, b Dying) int { return int(b.Dead - a.Dead) })
	return list, nil
}
