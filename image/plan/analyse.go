package plan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

var (
	// errInvalid: the structure at hand is not what it should be; skip it.
	errInvalid = errors.New("invalid structure")
	// errSpent: the image asks for more work than an honest one would; stop.
	errSpent = errors.New("work limit reached")
)

// Analyse looks for partition tables and for ext2, ext3 and ext4 file systems,
// on the whole image and in each partition, and returns an analyser for each
// kind found: "partition" (always [Never], at a boundary) and "ext4" (always
// [Depends], where one extent of a file lies on both sides).
//
// It reads through r, inode tables in pieces of up to 1 MiB: in all no more
// than 1 MiB beyond the size, nor than 65 MiB and 1/32 of the size. Nothing
// found is no error; the error is that of ctx or of a read, and
// io.ErrUnexpectedEOF if r ends before size.
func Analyse(ctx context.Context, r io.ReaderAt, size int64) ([]Analyser, error) {
	// An honest file system has each inode table and each node of a tree read
	// once; they are 1/64 of it by default and more only in small ones.
	return analyse(&source{ctx: ctx, r: r, size: size, left: 1<<20 + min(size, 64<<20+size/32)})
}

// analyse is Analyse within the source's limit.
func analyse(s *source) ([]Analyser, error) {
	size := s.size
	parts, err := partitions(s)
	if err != nil {
		return nil, fmt.Errorf("plan: reading the partition table: %w", err)
	}
	var found []Analyser
	if a := newPartitioned(parts, size); len(a.cuts) > 0 {
		found = append(found, a)
	}
	out := newSpanner(size)
	volumes := append([]Extent{{0, size}}, parts...)
	slices.SortStableFunc(volumes, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	volumes = slices.CompactFunc(volumes, func(a, b Extent) bool { return a.Off == b.Off })
	for _, v := range volumes {
		err := scanExt4(s, v, out)
		if errors.Is(err, errSpent) {
			break
		}
		if err != nil && !errors.Is(err, errInvalid) {
			return nil, fmt.Errorf("plan: reading the file system at byte %d: %w", v.Off, err)
		}
	}
	if len(out.in.pages) > 0 {
		found = append(found, spanned{"ext4", out.in})
	}
	return found, nil
}

// source reads a hostile image within a limit of bytes.
type source struct {
	ctx  context.Context // of the one Analyse call that the source lives for
	r    io.ReaderAt
	size int64
	left int64 // bytes that may still be read
}

// read fills p from byte off of the image.
func (s *source) read(p []byte, off int64) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	n := int64(len(p))
	if off < 0 || n > s.size || off > s.size-n {
		return errInvalid
	}
	if s.left -= n; s.left < 0 {
		return errSpent
	}
	got, err := s.r.ReadAt(p, off)
	if got == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("byte %d: %w", off, err)
}
