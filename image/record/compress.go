package record

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// scratch is what sealing and opening compressed frames needs beside its input.
type scratch struct{ buf []byte }

// Codecs and buffers are reused; each is used by one goroutine at a time.
var (
	scratches = sync.Pool{New: func() any { return new(scratch) }}
	encoders  = sync.Pool{New: func() any { return newEncoder() }}
	decoders  = sync.Pool{New: func() any { return newDecoder() }}
)

// newEncoder makes frames that say how long their content is and need no window
// beyond it. There is no checksum: the frame is authenticated.
func newEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<MaxFrameLog),
		zstd.WithSingleSegment(true),
		zstd.WithEncoderCRC(false),
		zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic("record: zstd: " + err.Error())
	}
	return e
}

// newDecoder never writes beyond the capacity that it is given.
func newDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(1<<MaxFrameLog),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("record: zstd: " + err.Error())
	}
	return d
}

// bucket is what the length of a compressed frame is padded to a multiple of.
func bucket(frameLog uint8) int { return 1 << frameLog / 16 }

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }

// compress appends u32 length ‖ compressed data ‖ padding to dst (docs/format.md
// §3). If that saves less than an eighth, dst comes back as it was and kept is false.
func compress(dst, data []byte, c Compression, frameLog uint8) (out []byte, kept bool) {
	start := len(dst)
	out = append(dst, 0, 0, 0, 0)
	switch c {
	case Zstd:
		e := encoders.Get().(*zstd.Encoder)
		out = e.EncodeAll(data, out)
		encoders.Put(e)
	case S2:
		room := s2.MaxEncodedLen(len(data))
		out = slices.Grow(out, room)
		n := len(s2.Encode(out[len(out):len(out)+room], data))
		out = out[:len(out)+n]
	default:
		return dst, false
	}
	n := len(out) - start
	padded := roundUp(n, bucket(frameLog))
	if padded > len(data)-len(data)/8 {
		return out[:start], false
	}
	binary.BigEndian.PutUint32(out[start:], uint32(n-4))
	out = slices.Grow(out, padded-n)
	clear(out[len(out) : start+padded])
	return out[:start+padded], true
}

// decompress appends the content of a compressed frame to dst. Want is its exact
// length, or 0 if it may be any number of whole sectors up to a full frame.
func decompress(dst, frame []byte, c Compression, frameLog uint8, want int) ([]byte, error) {
	const what = "compressed frame"
	if len(frame) < 4 {
		return nil, corrupt(what, "%d bytes", len(frame))
	}
	n := uint64(binary.BigEndian.Uint32(frame))
	if n > uint64(len(frame)-4) || roundUp(4+int(n), bucket(frameLog)) != len(frame) {
		return nil, corrupt(what, "length %d in a frame of %d bytes", n, len(frame))
	}
	packed, padding := frame[4:4+n], frame[4+n:]
	if !allZero(padding) {
		return nil, corrupt(what, "padding is not zero")
	}
	most := want
	if want == 0 {
		most = 1 << frameLog
	}
	start := len(dst)
	dst = slices.Grow(dst, most)
	got, err := unpack(dst[start:start:start+most], packed, c)
	if err != nil {
		return nil, corrupt(what, "%v: %w", c, err)
	}
	if want != 0 && len(got) != want || len(got) == 0 || len(got)%SectorSize != 0 {
		return nil, corrupt(what, "%d bytes after %v, want %d", len(got), c, want)
	}
	return dst[:start+len(got)], nil
}

// unpack decompresses into the capacity of dst, which is empty, and no further.
func unpack(dst, packed []byte, c Compression) ([]byte, error) {
	if c == Zstd {
		d := decoders.Get().(*zstd.Decoder)
		defer decoders.Put(d)
		return d.DecodeAll(packed, dst)
	}
	n, err := s2.DecodedLen(packed)
	if err != nil {
		return nil, err
	}
	if n > cap(dst) {
		return nil, s2.ErrTooLarge
	}
	return s2.Decode(dst[:n], packed)
}
