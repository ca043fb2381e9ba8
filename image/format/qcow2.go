package format

import (
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"github.com/lima-vm/go-qcow2reader/log"
)

const (
	qcow2Magic       = "QFI\xfb"
	qcow2V2Length    = 72
	qcow2MaxL1Bytes  = 32 << 20 // QEMU's own limit
	qcow2MaxNameSize = 1023
)

// Incompatible features, as bits.
const (
	qcow2Dirty       = 1 << 0
	qcow2Corrupt     = 1 << 1
	qcow2DataFile    = 1 << 2
	qcow2Compression = 1 << 3
	qcow2ExtendedL2  = 1 << 4
	qcow2KnownBits   = 1<<5 - 1
)

const (
	qcow2ExtEnd           = 0
	qcow2ExtBackingFormat = 0xe2792aca
)

// qcow2Header is what has to be known of a qcow2 header before a library is
// trusted with the image (QEMU, docs/interop/qcow2.txt).
type qcow2Header struct {
	version       uint32
	clusterBits   uint32
	size          int64
	incompatible  uint64
	backing       string
	backingFormat string
}

// parseQcow2Header checks all that go-qcow2reader takes on trust: that no
// size in the header makes it take memory or index beyond the image's file.
func parseQcow2Header(in io.ReaderAt, fileSize int64) (*qcow2Header, error) {
	b := make([]byte, min(fileSize, 64<<10))
	if _, err := in.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if len(b) < qcow2V2Length || string(b[:4]) != qcow2Magic {
		return nil, fmt.Errorf("no qcow2 header: %w", ErrCorrupt)
	}
	be := binary.BigEndian
	h := &qcow2Header{version: be.Uint32(b[4:]), clusterBits: be.Uint32(b[20:])}
	headerLen := uint32(qcow2V2Length)
	switch h.version {
	case 2:
	case 3:
		if len(b) < 104 {
			return nil, fmt.Errorf("qcow2 header cut off: %w", ErrCorrupt)
		}
		h.incompatible = be.Uint64(b[72:])
		headerLen = be.Uint32(b[100:])
		if headerLen < 104 || headerLen%8 != 0 || int64(headerLen) > int64(len(b)) {
			return nil, fmt.Errorf("qcow2 header of %d bytes: %w", headerLen, ErrCorrupt)
		}
	default:
		return nil, fmt.Errorf("qcow2 version %d: %w", h.version, ErrUnsupported)
	}
	if be.Uint32(b[32:]) != 0 {
		return nil, fmt.Errorf("qcow2: %w: decrypt it first, for example with qemu-img convert", ErrEncrypted)
	}
	if err := h.checkFeatures(); err != nil {
		return nil, err
	}
	if err := h.checkGeometry(b, fileSize); err != nil {
		return nil, err
	}
	return h, h.parseBacking(b, headerLen)
}

func (h *qcow2Header) checkFeatures() error {
	if unknown := h.incompatible &^ qcow2KnownBits; unknown != 0 {
		return fmt.Errorf("qcow2 feature bits %#x: %w", unknown, ErrUnsupported)
	}
	if h.incompatible&qcow2DataFile != 0 {
		return fmt.Errorf("qcow2 with an external data file: %w: convert it first, for example with qemu-img convert", ErrUnsupported)
	}
	if h.incompatible&qcow2Corrupt != 0 {
		return fmt.Errorf("qcow2 is marked as corrupt: %w: repair it first with qemu-img check -r all", ErrCorrupt)
	}
	return nil
}

func (h *qcow2Header) checkGeometry(b []byte, fileSize int64) error {
	if h.clusterBits < 9 || h.clusterBits > 21 {
		return fmt.Errorf("qcow2 cluster of 2^%d bytes: %w", h.clusterBits, ErrCorrupt)
	}
	size, l1Size, l1At := binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint32(b[36:]), binary.BigEndian.Uint64(b[40:])
	if size > 1<<62 {
		return fmt.Errorf("qcow2 of %d bytes: %w", size, ErrCorrupt)
	}
	h.size = int64(size)
	l1Bytes := uint64(l1Size) * 8
	if l1Bytes > qcow2MaxL1Bytes || l1At > uint64(fileSize) || l1Bytes > uint64(fileSize)-l1At {
		return fmt.Errorf("qcow2 L1 table of %d bytes at %d in a file of %d: %w", l1Bytes, l1At, fileSize, ErrCorrupt)
	}
	entryBits := uint32(3)
	if h.extendedL2() {
		entryBits = 4
	}
	if covers := 2*h.clusterBits - entryBits; (size+1<<covers-1)>>covers > uint64(l1Size) {
		return fmt.Errorf("qcow2 L1 table of %d entries for %d bytes: %w", l1Size, size, ErrCorrupt)
	}
	return nil
}

func (h *qcow2Header) extendedL2() bool { return h.incompatible&qcow2ExtendedL2 != 0 }

// parseBacking reads the backing file's name, and its format from the header
// extensions.
func (h *qcow2Header) parseBacking(b []byte, headerLen uint32) error {
	at, n := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])
	if at == 0 {
		return nil
	}
	if n == 0 || n > qcow2MaxNameSize || at < uint64(headerLen) || at > uint64(len(b)) || uint64(n) > uint64(len(b))-at {
		return fmt.Errorf("qcow2 backing file name of %d bytes at %d: %w", n, at, ErrCorrupt)
	}
	h.backing = string(b[at : at+uint64(n)])
	for ext := b[headerLen:at]; len(ext) >= 8; {
		kind, size := binary.BigEndian.Uint32(ext), binary.BigEndian.Uint32(ext[4:])
		if kind == qcow2ExtEnd {
			break
		}
		ext = ext[8:]
		if uint64(size) > uint64(len(ext)) {
			return fmt.Errorf("qcow2 header extension of %d bytes: %w", size, ErrCorrupt)
		}
		if kind == qcow2ExtBackingFormat {
			h.backingFormat = string(ext[:size])
		}
		ext = ext[min(uint64(len(ext)), (uint64(size)+7)&^7):]
	}
	return nil
}

// localName gives the path in a backing file name of QEMU's, which may also
// be a URL or a description of a device tree.
func localName(name string) (string, error) {
	name = strings.TrimPrefix(name, "file:")
	if scheme, _, ok := strings.Cut(name, ":"); ok && !strings.Contains(scheme, "/") {
		return "", fmt.Errorf("backing file %q is not a local file: %w", name, ErrUnsupported)
	}
	if name == "" || strings.Contains(name, "\x00") {
		return "", fmt.Errorf("backing file name %q: %w", name, ErrCorrupt)
	}
	return name, nil
}

// qcow2Layer is a qcow2 file that go-qcow2reader takes for one without a
// backing file: its own handling of backing files reports the state of the
// first small piece of a cluster for all of it, and opens what it likes.
type qcow2Layer struct {
	img     *qcow2.Qcow2
	bytes   int64
	cluster int64
}

// openQcow2 does not own in: closing it is left to the caller.
func openQcow2(in *input) (layer, error) {
	h, err := parseQcow2Header(in, in.size)
	if err != nil {
		return nil, err
	}
	if h.size == 0 {
		return emptyLayer{}, nil
	}
	img, err := qcow2.Open(standalone{in}, nil)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return nil, fmt.Errorf("qcow2: %w", err)
	}
	return &qcow2Layer{img: img, bytes: h.size, cluster: 1 << h.clusterBits}, nil
}

func (l *qcow2Layer) size() int64 { return l.bytes }

func (l *qcow2Layer) span(off, n int64) (held, int64, error) {
	start := off &^ (l.cluster - 1) // Extent is right for aligned starts only
	e, err := l.img.Extent(start, off+n-start)
	if err != nil {
		return absent, 0, l.blame(err)
	}
	length := min(n, start+e.Length-off)
	if length <= 0 {
		return absent, 0, fmt.Errorf("qcow2 extent of %d bytes at %d: %w", e.Length, off, ErrCorrupt)
	}
	switch {
	case !e.Allocated:
		return absent, length, nil
	case e.Zero:
		return zeros, length, nil
	}
	return data, length, nil
}

func (l *qcow2Layer) readOwn(p []byte, off int64) error {
	n, err := l.img.ReadAt(p, off)
	if n == len(p) && (err == nil || err == io.EOF) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return l.blame(err)
}

// blame marks an error that is the image's fault.
func (l *qcow2Layer) blame(err error) error {
	if errors.Is(err, ErrShrunk) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("qcow2: data beyond the end of the file: %w", ErrCorrupt)
	}
	return fmt.Errorf("qcow2: %w", err)
}

// standalone shows a qcow2 file without its reference to a backing file
// (offset and length, bytes 8 to 20 of the header).
type standalone struct{ in *input }

func (s standalone) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.in.ReadAt(p, off)
	const from, to = 8, 20
	if off < to {
		for i := max(from, off); i < to && i < off+int64(n); i++ {
			p[i-off] = 0
		}
	}
	return n, err
}

// emptyLayer is an image of no bytes.
type emptyLayer struct{}

func (emptyLayer) size() int64                            { return 0 }
func (emptyLayer) span(off, n int64) (held, int64, error) { return absent, n, nil }
func (emptyLayer) readOwn([]byte, int64) error            { return nil }

// go-qcow2reader keeps its decompressors and its log in package variables;
// this is the only place that sets them, before anything uses them.
func init() {
	qcow2.SetDecompressor(qcow2.CompressionTypeZlib, inflater(&sync.Pool{}))
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, zstdDecoder(&sync.Pool{}))
	log.SetWarnFunc(func(string) {}) // what it warns of is checked by parseQcow2Header
}

// fullReader fills every buffer it is given, which the library needs: it
// takes a short read for an invitation to decompress the cluster again.
type fullReader struct {
	r       io.Reader
	release func()
}

func (f fullReader) Read(p []byte) (int, error) {
	n, err := io.ReadFull(f.r, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // a cluster is always whole
	}
	return n, err
}

func (f fullReader) Close() error {
	f.release()
	return nil
}

func inflater(pool *sync.Pool) qcow2.Decompressor {
	return func(r io.Reader) (io.ReadCloser, error) {
		z, ok := pool.Get().(io.ReadCloser)
		if !ok {
			z = flate.NewReader(r)
		} else if err := z.(flate.Resetter).Reset(r, nil); err != nil {
			return nil, err
		}
		return fullReader{r: z, release: func() { pool.Put(z) }}, nil
	}
}

func zstdDecoder(pool *sync.Pool) qcow2.Decompressor {
	const maxWindow = 8 << 20 // clusters have at most 2 MiB
	return func(r io.Reader) (io.ReadCloser, error) {
		d, ok := pool.Get().(*zstd.Decoder)
		var err error
		if !ok {
			// Without concurrency a decoder has no goroutine of its own,
			// so that one dropped from the pool is only garbage.
			d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		} else {
			err = d.Reset(r)
		}
		if err != nil {
			return nil, err
		}
		return fullReader{r: d, release: func() { pool.Put(d) }}, nil
	}
}
