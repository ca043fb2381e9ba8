package format

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// held says what a layer has for a run of bytes.
type held int

const (
	absent held = iota // nothing: the backing file decides
	zeros              // explicit zeros
	data               // bytes to read
)

// layer is one image file, without its backing file. Its methods are safe
// for concurrent use.
type layer interface {
	size() int64
	// span says what the layer holds at off and for how many of the next n
	// bytes, at least one. [off, off+n) lies within size, and n > 0.
	span(off, n int64) (held, int64, error)
	// readOwn fills p from off on. All of it is data by span.
	readOwn(p []byte, off int64) error
}

// spanLimit bounds the work of one span call, so that a context is obeyed.
const spanLimit = 1 << 30

// overlay is a layer over its backing file, if it has one.
type overlay struct {
	layer
	base Source // nil: nothing below, what is absent reads as zeros
	info layerInfo
	in   *input
}

func (s *overlay) Size() int64    { return s.size() }
func (s *overlay) Format() string { return s.info.Format }

func (s *overlay) Kind() Kind {
	if s.info.backing != "" {
		return Dependent
	}
	return s.info.kind
}

func (s *overlay) Backing() (string, string) { return s.info.backing, s.info.backingFormat }

func (s *overlay) Close() error {
	err := s.in.Close()
	if s.base != nil {
		err = errors.Join(err, s.base.Close())
	}
	return err
}

func (s *overlay) ReadAt(p []byte, off int64) (int, error) {
	want, eof := clipRead(p, off, s.size())
	if eof != nil && eof != io.EOF {
		return 0, eof
	}
	for n := 0; n < len(want); {
		pos := off + int64(n)
		state, k, err := s.span(pos, int64(len(want)-n))
		if err == nil {
			err = s.readSpan(want[n:n+int(k)], pos, state)
		}
		if err != nil {
			return n, fmt.Errorf("format: read %s: %w", s.info.Path, err)
		}
		n += int(k)
	}
	return len(want), eof
}

func (s *overlay) readSpan(p []byte, off int64, state held) error {
	switch {
	case state == data:
		return s.readOwn(p, off)
	case state == absent && s.base != nil && off < s.base.Size():
		k := min(int64(len(p)), s.base.Size()-off)
		clear(p[k:])
		if _, err := s.base.ReadAt(p[:k], off); err != nil && err != io.EOF {
			return err
		}
		return nil
	}
	clear(p)
	return nil
}

func (s *overlay) Extents(ctx context.Context, off, n int64) ([]Extent, error) {
	var list extentList
	_, err := s.spans(ctx, off, n, &list, func(state held, off, n int64) error {
		if state != absent || s.base == nil {
			list.add(off, n, state != data)
			return nil
		}
		k := max(0, min(n, s.base.Size()-off))
		if k > 0 {
			if err := s.baseExtents(ctx, off, k, &list); err != nil || list.full() {
				return err
			}
		}
		list.add(off+k, n-k, true)
		return nil
	})
	return list, err
}

func (s *overlay) baseExtents(ctx context.Context, off, n int64, list *extentList) error {
	below, err := s.base.Extents(ctx, off, n)
	for _, e := range below {
		list.add(e.Offset, e.Length, e.Zero)
	}
	return err
}

func (s *overlay) Own(ctx context.Context, off, n int64) ([]Extent, int64, error) {
	if s.info.backing == "" {
		return ownAll(ctx, s, off, n)
	}
	var list extentList
	done, err := s.spans(ctx, off, n, &list, func(state held, off, n int64) error {
		if state != absent {
			list.add(off, n, state == zeros)
		}
		return nil
	})
	return list, done, err
}

// spans visits [off, off+n) span by span, until list is full, and returns
// where it stopped.
func (s *overlay) spans(ctx context.Context, off, n int64, list *extentList, visit func(state held, off, n int64) error) (int64, error) {
	if err := checkRange(off, n, s.size()); err != nil {
		return off, err
	}
	for end := off + n; off < end && !list.full(); {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		state, k, err := s.span(off, min(end-off, spanLimit))
		if err == nil {
			err = visit(state, off, k)
		}
		if err != nil {
			return off, fmt.Errorf("format: extents of %s: %w", s.info.Path, err)
		}
		off += k
	}
	return off, nil
}
