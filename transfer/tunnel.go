package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// Passage asks to carry the memory of a guest to a QEMU of the peer, over a connection made for it
// ([peer.Tunnel]).
type Passage struct {
	Version uint64             `cbor:"1,keyasint"`
	Image   blockstore.ImageID `cbor:"2,keyasint"` // is being handed over to the peer
	Guest   string             `cbor:"3,keyasint"` // names the QEMU there
}

// Opened answers a Passage.
type Opened struct {
	Refused string `cbor:"1,keyasint"` // why; "": QEMU is at the other end
	QEMU    string `cbor:"2,keyasint"` // its version
}

// A tunnel carries frames of u32 length ‖ bytes each way; length 0 is a sign of life, and
// endOfStream says that nothing more comes that way.
const (
	maxFrame    = 128 << 10
	endOfStream = 1<<32 - 1
	lifeSign    = 15 * time.Second
	maxPassage  = 4 << 10
)

// Ask asks for a passage ([ErrRefused]).
func (p Passage) Ask(c *peer.Conn) (o Opened, err error) {
	if err := writeMessage(c, p); err != nil {
		return o, err
	}
	if err := readMessage(c, &o); err != nil {
		return o, fmt.Errorf("peer %s: %w", c.Peer.Name, err)
	}
	if o.Refused != "" {
		return o, fmt.Errorf("peer %s: %w: %s", c.Peer.Name, ErrRefused, printable([]byte(o.Refused)))
	}
	return o, nil
}

// ReadPassage reads what a peer asks for.
func ReadPassage(c *peer.Conn) (p Passage, err error) {
	if err := readMessage(c, &p); err != nil {
		return p, err
	}
	return p, checkVersion(p.Version)
}

// Answer answers a passage; unless it is refused the tunnel begins.
func (o Opened) Answer(c *peer.Conn) error { return writeMessage(c, o) }

func writeMessage(w io.Writer, v any) error {
	b, err := encMode.Marshal(v)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader, v any) error {
	n, err := readLength(r)
	if err != nil {
		return err
	}
	if n > maxPassage {
		return fmt.Errorf("message of %d bytes: %w", n, ErrProtocol)
	}
	return decode(io.LimitReader(r, int64(n)), maxPassage, v)
}

// Tunnel joins a stream with a local one until both ways have ended, one fails, or ctx ends.
// It closes both.
func Tunnel(ctx context.Context, c *peer.Conn, local net.Conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		_ = c.Close() // whoever uses them gets an error
		_ = local.Close()
	})
	defer stop()
	ways := make(chan error, 2)
	go func() { ways <- outward(c, local) }()
	go func() { ways <- inward(local, c) }()
	var failed error
	for range 2 {
		if err := <-ways; err != nil && failed == nil {
			failed = err
			cancel(err)
		}
	}
	if failed == nil {
		failed = ctx.Err()
	}
	return errors.Join(failed, ignoreClosed(c.Close()), ignoreClosed(local.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// piece is what was read of the local stream.
type piece struct {
	buf []byte // with room for the length before it
	n   int
	err error
}

// outward sends what the local stream gives.
func outward(c *peer.Conn, local net.Conn) error {
	free, full := make(chan []byte, 2), make(chan piece, 2)
	for range cap(free) {
		free <- make([]byte, 4+maxFrame)
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case b := <-free:
				n, err := local.Read(b[4:])
				full <- piece{b, n, err} // one for each buffer: there is room
				if err != nil {
					return
				}
			case <-over:
				return
			}
		}
	}()
	alive := time.NewTicker(lifeSign)
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			if _, err := c.Write(make([]byte, 4)); err != nil {
				return err
			}
		case p := <-full:
			if p.n > 0 {
				binary.BigEndian.PutUint32(p.buf, uint32(p.n))
				if _, err := c.Write(p.buf[:4+p.n]); err != nil {
					return err
				}
			}
			if errors.Is(p.err, io.EOF) {
				_, err := c.Write(binary.BigEndian.AppendUint32(nil, endOfStream))
				return err
			}
			if p.err != nil {
				return p.err
			}
			free <- p.buf
		}
	}
}

// inward gives the local stream what comes.
func inward(local net.Conn, c *peer.Conn) error {
	buf := make([]byte, maxFrame)
	for {
		n, err := readLength(c)
		if err != nil {
			return err
		}
		switch {
		case n == endOfStream:
			if half, ok := local.(interface{ CloseWrite() error }); ok {
				return half.CloseWrite()
			}
			return nil
		case n > maxFrame:
			return fmt.Errorf("frame of %d bytes: %w", n, ErrProtocol)
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return cut(err)
		}
		if err := local.SetWriteDeadline(time.Now().Add(stallTimeout)); err != nil {
			return err
		}
		if _, err := local.Write(buf[:n]); err != nil {
			return err
		}
	}
}
