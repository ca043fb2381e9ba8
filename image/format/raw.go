package format

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	seekData = unix.SEEK_DATA
	seekHole = unix.SEEK_HOLE
)

// rawSource is a file or device whose bytes are the disk's.
type rawSource struct {
	in   *input
	kind Kind
}

// newRawSource owns in from then on.
func newRawSource(in *input) *rawSource {
	s := &rawSource{in: in, kind: Fixed}
	if in.device {
		s.kind = Linked
		return s
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(in.f.Fd()), &st); err == nil && st.Blocks*512 < in.size {
		s.kind = Dynamic
	}
	return s
}

func (s *rawSource) Size() int64               { return s.in.size }
func (s *rawSource) Kind() Kind                { return s.kind }
func (s *rawSource) Format() string            { return Raw }
func (s *rawSource) Backing() (string, string) { return "", "" }
func (s *rawSource) Close() error              { return s.in.Close() }

func (s *rawSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.in.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("format: read: %w", err)
	}
	return n, err
}

func (s *rawSource) Own(ctx context.Context, off, n int64) ([]Extent, int64, error) {
	return ownAll(ctx, s, off, n)
}

// Extents asks the file system for holes. Where it cannot tell, all is data.
func (s *rawSource) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	if err := checkRange(off, n, s.in.size); err != nil {
		return nil, err
	}
	if s.in.device {
		return dataOnly(off, n), nil
	}
	var list extentList
	for end := off + n; off < end && !list.full(); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		data, err := s.seek(off, end, seekData)
		if err != nil {
			return nil, err
		}
		list.add(off, data-off, true)
		if data >= end {
			break
		}
		hole, err := s.seek(data, end, seekHole)
		if err != nil {
			return nil, err
		}
		if hole <= data { // the file changes under us; what is there is read
			hole = end
		}
		list.add(data, hole-data, false)
		off = hole
	}
	return list, nil
}

// seek finds the next data or hole in [off, end), or gives end.
func (s *rawSource) seek(off, end int64, whence int) (int64, error) {
	pos, err := unix.Seek(int(s.in.f.Fd()), off, whence)
	switch {
	case err == nil:
		return min(pos, end), nil
	case errors.Is(err, unix.ENXIO):
		// No data from here to the end of the file, or the end was
		// before off: only the first is a hole.
		if err := s.in.checkSize(); err != nil {
			return 0, fmt.Errorf("format: find holes: %w", err)
		}
		return end, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOSYS):
		if whence == seekData {
			return off, nil
		}
		return end, nil
	}
	return 0, fmt.Errorf("format: find holes: %w", err)
}

func dataOnly(off, n int64) []Extent {
	if n == 0 {
		return nil
	}
	return []Extent{{Offset: off, Length: n}}
}

// ownAll answers Own for an image that depends on nothing.
func ownAll(ctx context.Context, s Source, off, n int64) ([]Extent, int64, error) {
	list, err := s.Extents(ctx, off, n)
	if err != nil || len(list) == 0 {
		return nil, off, err
	}
	last := list[len(list)-1]
	return list, last.Offset + last.Length, nil
}

// deviceReadOnly returns nil if nothing can write the claimed device at path:
// the device itself is read-only, or all that claims it is read-only mounts.
func deviceReadOnly(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	number := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	if ro, err := os.ReadFile("/sys/dev/block/" + number + "/ro"); err == nil && strings.TrimSpace(string(ro)) == "1" {
		return nil
	}
	mounts, err := mountsOf(number)
	if err != nil {
		return err
	}
	if len(mounts) == 0 {
		return fmt.Errorf("device %s: %w: a partition of it is mounted, or it belongs to a volume", path, ErrInUse)
	}
	for _, m := range mounts {
		if !m.readOnly {
			return fmt.Errorf("device %s: %w: mounted read-write at %s; unmount it, remount it read-only or use a snapshot", path, ErrInUse, m.dir)
		}
	}
	return nil
}

// mount is one mount of a device, as /proc/self/mountinfo has it.
type mount struct {
	dir      string
	readOnly bool // of the file system, not only of this mount
}

// mountsOf lists the mounts of the device with that "major:minor".
func mountsOf(number string) ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mount
	s := bufio.NewScanner(f)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 || l[2] != number {
			continue
		}
		m := mount{dir: l[4]}
		for _, o := range strings.Split(r[2], ",") {
			m.readOnly = m.readOnly || o == "ro"
		}
		out = append(out, m)
	}
	return out, s.Err()
}
