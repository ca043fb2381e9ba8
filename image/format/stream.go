package format

import (
	"fmt"
	"io"
)

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
