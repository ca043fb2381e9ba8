package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
)

// The formats this package reads, as Options.Format, Detect and Layer.Format
// name them.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
	VMDK  = "vmdk"
	VHD   = "vhd"
	VHDX  = "vhdx"
	VDI   = "vdi"
)

// Errors that callers tell apart.
var (
	// ErrShrunk: the image's file is shorter than it was when it was opened.
	ErrShrunk = errors.New("source shrank while it was read")
	// ErrInUse: the image or device is open for writing elsewhere.
	ErrInUse = errors.New("in use")
	// ErrEncrypted: the image is encrypted in its own format.
	ErrEncrypted = errors.New("image is encrypted")
	// ErrUnsupported: a format, or a feature of one, that is not read here.
	ErrUnsupported = errors.New("not supported")
	// ErrCorrupt: the image's metadata contradicts its format.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrChain: the backing chain loops or is longer than MaxChain.
	ErrChain = errors.New("bad backing chain")
)

// MaxChain bounds the number of layers in a backing chain.
const MaxChain = 64

// MaxExtents bounds the number of extents in one answer.
const MaxExtents = 1 << 16

// Extent is a run of bytes of an image in one allocation state.
type Extent struct {
	Offset, Length int64 // bytes
	Zero           bool  // reads as zeros and need not be read
}

// Kind says how an image holds its content.
type Kind int

const (
	// Fixed: every byte has its place in the file from the start.
	Fixed Kind = iota + 1
	// Dynamic: space is given as it is written; holes read as zeros.
	Dynamic
	// Dependent: what the image does not hold is in its backing file.
	Dependent
	// Linked: a block device or a partition.
	Linked
)

// String returns the kind in one lower-case word.
func (k Kind) String() string {
	switch k {
	case Fixed:
		return "fixed"
	case Dynamic:
		return "dynamic"
	case Dependent:
		return "dependent"
	case Linked:
		return "linked"
	}
	return fmt.Sprintf("kind(%d)", int(k))
}

// Source is an opened disk image. All methods but Close are safe for
// concurrent use.
type Source interface {
	// Size is the size of the guest's disk in bytes. It never changes.
	Size() int64
	// ReadAt follows io.ReaderAt. It answers io.EOF only for reads that go
	// beyond Size, and ErrShrunk where the file has become too short.
	ReadAt(p []byte, off int64) (int, error)
	// Extents covers [off, off+n) in order and without gaps. If that takes
	// more than MaxExtents extents it covers a part from off on, and the
	// caller asks again from where that ends.
	Extents(ctx context.Context, off, n int64) ([]Extent, error)
	// Own lists, in order, what of [off, off+n) the top layer holds itself,
	// explicit zeros included. In the gaps the image reads as its backing
	// file does, and as zeros beyond that file's end. For an image that is
	// not Dependent it is the same as Extents. If done is below off+n the
	// answer was bounded by MaxExtents: the caller asks again from done.
	Own(ctx context.Context, off, n int64) (own []Extent, done int64, err error)
	// Kind says how the image holds its content.
	Kind() Kind
	// Format is the format it was opened with.
	Format() string
	// Backing names the backing file of a Dependent image, with a path that
	// does not depend on the image's place, and its format; else "".
	Backing() (path, format string)
	// Close ends the reading. It must be called once, after all else.
	Close() error
}

// Options say how to open an image. The zero value detects the format and
// reads through the whole chain.
type Options struct {
	// Format is one of this package's formats; "" detects it.
	Format string
	// NoBacking opens the top layer alone, without looking for its backing
	// file: outside of Own it reads as zeros.
	NoBacking bool
	// Logger takes warnings about suspicious images; nil drops them.
	Logger *slog.Logger
}

func (o Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// Open opens the image at path for reading. It refuses an image or a device
// that someone is known to write (ErrInUse): a file that QEMU holds open for
// writing, a device that is mounted read-write or claimed.
//
// The context bounds opening only.
func Open(ctx context.Context, path string, opt Options) (Source, error) {
	layers, err := walk(ctx, path, opt)
	if err != nil {
		return nil, fmt.Errorf("format: open %s: %w", path, err)
	}
	src, err := assemble(ctx, layers, opt)
	if err != nil {
		return nil, fmt.Errorf("format: open %s: %w", path, err)
	}
	return src, nil
}

// assemble opens layers, which run from the top to the base, as one Source.
func assemble(ctx context.Context, layers []layerInfo, opt Options) (Source, error) {
	// QEMU opens the backing files of what it opens, so that nothing below
	// the first layer that it reads is opened here.
	base := len(layers) - 1
	for i, l := range layers {
		if l.viaQEMU {
			base = i
			break
		}
	}
	var src Source
	for i := base; i >= 0; i-- {
		next, err := openLayer(ctx, layers[i:], src, opt)
		if err != nil {
			if src != nil {
				_ = src.Close() // the first error is the one to report
			}
			return nil, fmt.Errorf("%s: %w", layers[i].Path, err)
		}
		src = next
	}
	return src, nil
}

// openLayer opens chain[0] over base, which it owns from then on unless it
// fails. Only QEMU looks at the rest of the chain.
func openLayer(ctx context.Context, chain []layerInfo, base Source, opt Options) (Source, error) {
	info := chain[0]
	if info.viaQEMU {
		return openQEMU(ctx, chain, opt)
	}
	in, err := openInput(info.Path)
	if err != nil {
		return nil, err
	}
	if info.Format == Raw {
		return newRawSource(in), nil
	}
	var l layer
	switch info.Format {
	case Qcow2:
		l, err = openQcow2(in)
	case VHD:
		l, err = openVHD(in)
	default:
		err = fmt.Errorf("format %q: %w", info.Format, ErrUnsupported)
	}
	if err != nil {
		_ = in.Close() // nothing was written
		return nil, err
	}
	return &overlay{layer: l, base: base, info: info, in: in}, nil
}

// normalFormat gives the name used here for a format's name in QEMU or in an
// image's header.
func normalFormat(name string) (string, error) {
	switch name {
	case "", Raw, Qcow2, VMDK, VHD, VHDX, VDI:
		return name, nil
	case "vpc":
		return VHD, nil
	case "file", "host_device":
		return Raw, nil
	}
	return "", fmt.Errorf("format %q: %w", name, ErrUnsupported)
}

// checkRange says whether [off, off+n) lies in an image of that size.
func checkRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("format: range of %d bytes at %d is outside of the image of %d bytes", n, off, size)
	}
	return nil
}

// clipRead cuts p to what an image of that size has at off; io.EOF tells
// whether anything was cut.
func clipRead(p []byte, off, size int64) ([]byte, error) {
	if off < 0 {
		return nil, fmt.Errorf("format: negative offset %d", off)
	}
	if off >= size {
		if len(p) == 0 {
			return nil, nil
		}
		return nil, io.EOF
	}
	if int64(len(p)) > size-off {
		return p[:size-off], io.EOF
	}
	return p, nil
}

// extentList collects extents in order and joins neighbours.
type extentList []Extent

func (l *extentList) add(off, n int64, zero bool) {
	if n <= 0 {
		return
	}
	if k := len(*l); k > 0 {
		last := &(*l)[k-1]
		if last.Zero == zero && last.Offset+last.Length == off {
			last.Length += n
			return
		}
	}
	*l = append(*l, Extent{Offset: off, Length: n, Zero: zero})
}

func (l *extentList) full() bool { return len(*l) >= MaxExtents }

// beside resolves a name found in the image at path.
func beside(path, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(filepath.Dir(path), name)
}

// Stream is a raw image of unknown size that can only be read once, in order,
// such as standard input. Not safe for concurrent use.
type Stream struct {
	r   io.Reader
	off int64
	err error
}

// OpenStream reads a raw image from r. The Stream does not close r.
func OpenStream(r io.Reader) *Stream { return &Stream{r: r} }

// Next fills buf with the image's next bytes. At the end it returns the
// number of bytes that were left, possibly zero, and io.EOF; every later call
// returns 0 and io.EOF. Another error is final too.
func (s *Stream) Next(buf []byte) (n int, err error) {
	if s.err != nil {
		return 0, s.err
	}
	for n < len(buf) && s.err == nil {
		var k int
		k, err = s.r.Read(buf[n:])
		n += k
		s.off += int64(k)
		// Only a plain io.EOF is the end: a reader that was cut off
		// says io.ErrUnexpectedEOF, and that image is not whole.
		if err == io.EOF {
			s.err = io.EOF
		} else if err != nil {
			s.err = fmt.Errorf("format: read stream at byte %d: %w", s.off, err)
		}
	}
	return n, s.err
}

// Offset is the number of bytes read so far: at the end, the image's size.
func (s *Stream) Offset() int64 { return s.off }

// Detect tells the format of the image at path by its content. A block device
// is always raw, and so is what no other format claims. Content can lie: a
// guest can write another format's header into its own raw disk, so give
// Options.Format where the image's origin tells the format.
func Detect(path string) (string, error) {
	in, err := openInput(path)
	if err != nil {
		return "", fmt.Errorf("format: detect: %w", err)
	}
	defer in.Close()
	f, err := detect(in)
	if err != nil {
		return "", fmt.Errorf("format: detect: %w", err)
	}
	return f, nil
}

func detect(in *input) (string, error) {
	if in.device {
		return Raw, nil
	}
	head := make([]byte, min(in.size, 512))
	if _, err := in.ReadAt(head, 0); err != nil {
		return "", err
	}
	if f := detectHead(head); f != "" {
		return f, nil
	}
	// A fixed vhd has no header, only a footer, which must fit the file:
	// the last sector of a raw disk is the guest's.
	if in.size >= 2*vhdSector && in.size%vhdSector == 0 {
		foot := make([]byte, vhdSector)
		if _, err := in.ReadAt(foot, in.size-vhdSector); err != nil {
			return "", err
		}
		f, err := parseVHDFooter(foot)
		if err == nil && f.diskType == vhdFixed && f.currentSize == in.size-vhdSector {
			return VHD, nil
		}
	}
	return Raw, nil
}

// detectHead knows the formats that begin with a mark.
func detectHead(head []byte) string {
	const vdiSignatureAt, vdiSignature = 0x40, 0xbeda107f
	switch {
	case bytes.HasPrefix(head, []byte(qcow2Magic)) && len(head) >= 8 && binary.BigEndian.Uint32(head[4:]) >= 2:
		return Qcow2
	case bytes.HasPrefix(head, []byte("KDMV")), bytes.HasPrefix(head, []byte("COWD")),
		bytes.HasPrefix(head, []byte("# Disk DescriptorFile")):
		return VMDK
	case bytes.HasPrefix(head, []byte("vhdxfile")):
		return VHDX
	case bytes.HasPrefix(head, []byte(vhdCookie)):
		return VHD
	case len(head) >= vdiSignatureAt+4 && binary.LittleEndian.Uint32(head[vdiSignatureAt:]) == vdiSignature:
		return VDI
	}
	return ""
}
