package imagetest

import (
	"context"
	"errors"
	"io"

	"github.com/sealdisk/sealdisk/image"
)

// Disk is what a [DiskTarget] needs of a disk.
type Disk interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	ReadVector(ctx context.Context, off int64, n int) ([][]byte, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	Discard(ctx context.Context, off, n int64) error
	Flush(ctx context.Context) error
	Resize(ctx context.Context, size int64) error
	Next(ctx context.Context, off int64) (image.Extent, error)
	Close(ctx context.Context) error
}

var _ Disk = (*image.Disk)(nil)

// DiskTarget is a disk used in this process. Its two paths read with ReadAt and
// with ReadVector.
type DiskTarget struct {
	ctx  context.Context
	open func(context.Context) (Disk, error)
	disk Disk
}

var _ Target = (*DiskTarget)(nil)

// OpenDisk opens a disk, and again at each Reopen.
func OpenDisk(ctx context.Context, open func(context.Context) (Disk, error)) (*DiskTarget, error) {
	d, err := open(ctx)
	if err != nil {
		return nil, err
	}
	return &DiskTarget{ctx: ctx, open: open, disk: d}, nil
}

func (d *DiskTarget) Paths() []ReadWriterAt {
	return []ReadWriterAt{diskPath{d.ctx, d.disk}, vectorPath{diskPath{d.ctx, d.disk}}}
}

func (d *DiskTarget) Discard(off, n int64) error { return d.disk.Discard(d.ctx, off, n) }
func (d *DiskTarget) Zero(off, n int64) error    { return d.disk.Discard(d.ctx, off, n) }
func (d *DiskTarget) Sync() error                { return d.disk.Flush(d.ctx) }
func (d *DiskTarget) Grow(size int64) error      { return d.disk.Resize(d.ctx, size) }
func (d *DiskTarget) Size() (int64, error)       { return d.disk.Size(), nil }
func (d *DiskTarget) Close() error               { return d.disk.Close(d.ctx) }

func (d *DiskTarget) SeekData(off int64) (int64, error) { return d.seek(off, true) }
func (d *DiskTarget) SeekHole(off int64) (int64, error) { return d.seek(off, false) }

func (d *DiskTarget) seek(off int64, data bool) (int64, error) {
	if off >= d.disk.Size() {
		return 0, io.EOF
	}
	for {
		e, err := d.disk.Next(d.ctx, off)
		switch {
		case errors.Is(err, io.EOF) && !data:
			return off, nil
		case err != nil:
			return 0, err
		case e.Offset > off || e.Offset+e.Length <= off:
			return 0, errors.New("imagetest: Next gave an extent elsewhere")
		case e.Data == data:
			return off, nil
		}
		off = e.Offset + e.Length
	}
}

func (d *DiskTarget) Reopen() (err error) {
	if err := d.disk.Close(d.ctx); err != nil {
		return err
	}
	d.disk, err = d.open(d.ctx)
	return err
}

type diskPath struct {
	ctx  context.Context
	disk Disk
}

func (p diskPath) ReadAt(b []byte, off int64) (int, error)  { return p.disk.ReadAt(p.ctx, b, off) }
func (p diskPath) WriteAt(b []byte, off int64) (int, error) { return p.disk.WriteAt(p.ctx, b, off) }

type vectorPath struct{ diskPath }

func (p vectorPath) ReadAt(b []byte, off int64) (n int, err error) {
	v, err := p.disk.ReadVector(p.ctx, off, len(b))
	if err != nil {
		return 0, err
	}
	for _, s := range v {
		if len(s) > len(b)-n {
			return n, errors.New("imagetest: ReadVector gave more than was asked for")
		}
		n += copy(b[n:], s)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
