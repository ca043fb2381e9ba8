package format

import (
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"github.com/lima-vm/go-qcow2reader/log"
)

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
