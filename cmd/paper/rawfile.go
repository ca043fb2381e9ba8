package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sealdisk/sealdisk/image"
	"github.com/sealdisk/sealdisk/image/convert"
)

// rawFile is a disk that nothing seals: what convert.Export does with it is collation alone.
type rawFile struct {
	f    *os.File
	size int64
}

var _ convert.Source = (*rawFile)(nil)

func openRaw(name string) (*rawFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawFile{f, info.Size()}, nil
}

func (r *rawFile) Size() int64  { return r.size }
func (r *rawFile) Close() error { return r.f.Close() }

// ReadAt implements convert.Source.
func (r *rawFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return r.f.ReadAt(p, off)
}

// Next implements convert.Source.
func (r *rawFile) Next(_ context.Context, off int64) (image.Extent, error) {
	if off >= r.size {
		return image.Extent{}, io.EOF
	}
	data, err := unix.Seek(int(r.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return image.Extent{Offset: off, Length: r.size - off}, nil
	case err != nil:
		return image.Extent{}, err
	case data > off:
		return image.Extent{Offset: off, Length: data - off}, nil
	}
	hole, err := unix.Seek(int(r.f.Fd()), off, unix.SEEK_HOLE)
	return image.Extent{Offset: off, Length: hole - off, Data: true}, err
}

// sector is what a disk is compared by.
const sector = 4 * kib

// content says of a disk how much of it is not zero, where that lies, and its digest: of each sector that is
// not zero, its place and its bytes.
type content struct {
	bytes  int64
	runs   []span
	digest string
}

// span is bytes that follow each other.
type span struct{ off, n int64 }

func contentOf(ctx context.Context, name string) (c content, err error) {
	r, err := openRaw(name)
	if err != nil {
		return c, err
	}
	defer r.Close()
	h := sha256.New()
	buf, zeros := make([]byte, mib), make([]byte, sector)
	for off := int64(0); off < r.size; {
		e, err := r.Next(ctx, off)
		if err != nil {
			return c, err
		}
		end := min(e.Offset+e.Length, r.size)
		for off /= sector; e.Data && off*sector < end; { // whole sectors, though extents may begin elsewhere
			n, err := r.f.ReadAt(buf, off*sector)
			if err != nil && err != io.EOF {
				return c, err
			}
			clear(buf[n:])
			for i := 0; i < n && off*sector < end; i, off = i+sector, off+1 {
				if b := buf[i : i+sector]; !bytes.Equal(b, zeros) {
					_ = binary.Write(h, binary.LittleEndian, off) // a hash never fails
					h.Write(b)
					c.add(off*sector, sector)
				}
			}
		}
		off = max(end, off*sector)
	}
	c.digest = fmt.Sprintf("%x", h.Sum(nil))
	return c, nil
}

// add notes a sector that is not zero.
func (c *content) add(off, n int64) {
	c.bytes += n
	if k := len(c.runs); k > 0 && c.runs[k-1].off+c.runs[k-1].n == off {
		c.runs[k-1].n += n
		return
	}
	c.runs = append(c.runs, span{off, n})
}
