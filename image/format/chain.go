package format

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Layer is one image file of a backing chain.
type Layer struct {
	Path   string // absolute
	Format string
	Size   int64 // of its disk, in bytes
}

// Chain lists the layers of the image at path from base to top. An image
// that depends on nothing has one. With NoBacking only the top is looked at.
// Nothing is read but headers.
func Chain(ctx context.Context, path string, opt Options) ([]Layer, error) {
	infos, err := walk(ctx, path, opt)
	if err != nil {
		return nil, fmt.Errorf("format: chain of %s: %w", path, err)
	}
	var out []Layer
	for _, l := range slices.Backward(infos) {
		out = append(out, l.Layer)
	}
	return out, nil
}

// layerInfo is what a layer's header says.
type layerInfo struct {
	Layer
	kind          Kind
	backing       string // absolute path, or "" if it depends on nothing
	backingFormat string // "" if the image does not say
	parts         []string
	viaQEMU       bool
	self          os.FileInfo
}

// walk inspects the layers of the image at path, from top to base.
func walk(ctx context.Context, path string, opt Options) ([]layerInfo, error) {
	format, err := normalFormat(opt.Format)
	if err != nil {
		return nil, err
	}
	if path == "-" {
		return nil, fmt.Errorf("standard input is a stream: %w", ErrUnsupported)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	var out []layerInfo
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(out) == MaxChain {
			return nil, fmt.Errorf("more than %d layers: %w", MaxChain, ErrChain)
		}
		info, err := inspect(ctx, path, format, opt.NoBacking)
		if err != nil {
			if len(out) > 0 {
				err = fmt.Errorf("backing file of %s: %w", out[len(out)-1].Path, err)
			}
			return nil, err
		}
		for _, above := range out {
			if os.SameFile(above.self, info.self) {
				return nil, fmt.Errorf("%s depends on itself: %w", info.Path, ErrChain)
			}
		}
		out = append(out, *info)
		if info.backing == "" || opt.NoBacking {
			return out, nil
		}
		if info.backingFormat == "" {
			opt.logger().Warn("image does not name the format of its backing file; it is guessed from the content", "image", info.Path, "backing", info.backing)
		}
		path, format = info.backing, info.backingFormat
	}
}

// inspect reads the headers of one image file. With noBacking a backing file
// that is not there is no error.
func inspect(ctx context.Context, path, format string, noBacking bool) (*layerInfo, error) {
	in, err := openInput(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info := &layerInfo{Layer: Layer{Path: path, Format: format, Size: in.size}}
	if info.self, err = in.f.Stat(); err != nil {
		return nil, err
	}
	if info.Format == "" {
		if info.Format, err = detect(in); err != nil {
			return nil, err
		}
	}
	switch info.Format {
	case Raw:
		return info, nil
	case Qcow2:
		err = info.inspectQcow2(in)
	case VHD:
		err = info.inspectVHD(in, noBacking)
	default:
		err = info.inspectQEMU(ctx, in)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return info, nil
}

func (info *layerInfo) inspectQcow2(in *input) error {
	h, err := parseQcow2Header(in, in.size)
	if err != nil {
		return err
	}
	info.Size, info.kind, info.viaQEMU = h.size, Dynamic, h.extendedL2()
	if h.backing == "" {
		return nil
	}
	name, err := localName(h.backing)
	if err != nil {
		return err
	}
	info.backing = beside(info.Path, name)
	info.backingFormat, err = normalFormat(h.backingFormat)
	return err
}

func (info *layerInfo) inspectVHD(in *input, noBacking bool) error {
	h, err := readVHDHeader(in, in.size)
	if err != nil {
		return err
	}
	info.Size = h.footer.size()
	switch h.footer.diskType {
	case vhdFixed:
		info.kind = Fixed
	case vhdDynamic:
		info.kind = Dynamic
	case vhdDifferencing:
		info.kind, info.backingFormat = Dependent, VHD
		info.backing, err = findVHDParent(info.Path, h)
		if err != nil && noBacking {
			info.backing, err = vhdParentPaths(info.Path, h.parents[0])[0], nil
		}
	}
	return err
}

// inspectQEMU asks QEMU about a format that only QEMU reads.
func (info *layerInfo) inspectQEMU(ctx context.Context, in *input) error {
	q, err := qemuInfo(ctx, info.Path, info.Format)
	if err != nil {
		return err
	}
	info.Size, info.kind, info.viaQEMU = q.VirtualSize, Dynamic, true
	for _, e := range q.Specific.Data.Extents {
		if e.Filename != "" {
			info.parts = append(info.parts, beside(info.Path, e.Filename))
		}
	}
	switch {
	case info.Format == VMDK && q.flat():
		info.kind = Fixed
	case info.Format == VDI:
		const typeAt, fixed = 0x4c, 2
		var b [4]byte
		if err := readFull(in, b[:], typeAt); err != nil {
			return err
		}
		if binary.LittleEndian.Uint32(b[:]) == fixed {
			info.kind = Fixed
		}
	}
	if q.BackingFile == "" {
		return nil
	}
	name, err := localName(q.BackingFile)
	if err != nil {
		return err
	}
	info.backing = beside(info.Path, name)
	info.backingFormat, err = normalFormat(q.BackingFormat)
	return err
}
