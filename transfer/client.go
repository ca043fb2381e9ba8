package transfer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sealdisk/sealdisk/blockstore"
	"github.com/sealdisk/sealdisk/transfer/peer"
)

// How long a peer may take: to begin an answer and for each read of it, for all of a
// small answer, and for all of a stream.
const (
	requestTimeout = 60 * time.Second
	answerTimeout  = 2 * time.Minute
	streamTimeout  = 30 * time.Minute
)

// Client asks one peer over one connection. It ends with the connection. Safe for
// concurrent use.
type Client struct {
	Conn *peer.Conn
	http *http.Client
}

// NewClient makes a client of a connection on which this side asks.
func NewClient(conn *peer.Conn) *Client {
	var used atomic.Bool
	t := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, fmt.Errorf("the connection with %s: %w", conn.Peer.Name, net.ErrClosed)
			}
			return conn, nil
		},
		Protocols:              new(http.Protocols),
		MaxConnsPerHost:        1, // requests wait for the one that there is
		ResponseHeaderTimeout:  requestTimeout,
		MaxResponseHeaderBytes: 16 << 10,
		DisableCompression:     true,
		HTTP2: &http.HTTP2Config{
			StrictMaxConcurrentRequests: true,
			MaxReadFrameSize:            256 << 10, MaxReceiveBufferPerStream: maxRequestData, MaxReceiveBufferPerConnection: 8 * maxRequestData,
			SendPingTimeout: pingAfter, PingTimeout: pingAfter,
		},
	}
	t.Protocols.SetUnencryptedHTTP2(true) // the connection is TLS already
	return &Client{Conn: conn, http: &http.Client{Transport: t}}
}

// pingAfter is how long a connection may be silent before a sign of life is asked for.
const pingAfter = 20 * time.Second

// Close ends the connection.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return c.Conn.Close()
}

// do sends a request and gives the answer if it is one of want.
func (c *Client) do(ctx context.Context, method, path string, body []byte, header http.Header, want ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://peer"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("peer %s: %w: %w", c.Conn.Peer.Name, ErrConnection, err)
	}
	for _, status := range want {
		if resp.StatusCode == status {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	return nil, fmt.Errorf("peer %s: %w", c.Conn.Peer.Name, refusal(resp.StatusCode, printable(text)))
}

func refusal(status int, text string) error {
	switch status {
	case http.StatusNotFound:
		return ErrNoImage
	case http.StatusInsufficientStorage:
		return fmt.Errorf("%w: %s: %w", ErrRefused, text, blockstore.ErrNoSpace)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%w: too many requests", ErrRefused)
	}
	return fmt.Errorf("%w: %d %s", ErrRefused, status, text)
}

// printable is a peer's text without what a terminal would obey.
func printable(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return ' '
		}
		return r
	}, string(b)))
}

// Describe asks for an image by name or id. If its head is the commit have, which may be
// zero, there is nothing to tell: nil. What it gives is unchecked, but for its form.
func (c *Client) Describe(ctx context.Context, ref string, have blockstore.CommitID) (*Description, error) {
	h := http.Header{}
	if have != (blockstore.CommitID{}) {
		h.Set("If-None-Match", `"`+have.String()+`"`)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/v1/images/"+url.PathEscape(ref), nil, h, http.StatusOK, http.StatusNotModified)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		if have == (blockstore.CommitID{}) {
			return nil, fmt.Errorf("peer %s: unchanged, but nothing was named: %w", c.Conn.Peer.Name, ErrProtocol)
		}
		return nil, nil
	}
	return c.description(resp)
}

func (c *Client) description(resp *http.Response) (*Description, error) {
	d := new(Description)
	if err := decode(resp.Body, maxDescription, d); err != nil {
		return nil, fmt.Errorf("peer %s: description: %w", c.Conn.Peer.Name, err)
	}
	return d, checkVersion(d.Version)
}

// Lease asks the holder of an image's lease for it, and gives the image as it is then:
// its chain ends with a record for this host, unless the claim only asks. Asked again it gives the same.
func (c *Client) Lease(ctx context.Context, image blockstore.ImageID, claim Claim) (*Description, error) {
	body, err := encMode.Marshal(claim)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "/v1/images/"+image.String()+"/lease", body, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return c.description(resp)
}

// After returns when the head of an image is another commit than have, or soon after
// patience ended; changed says which.
func (c *Client) After(ctx context.Context, image blockstore.ImageID, have blockstore.CommitID) (changed bool, err error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/images/"+image.String()+"/after/"+have.String(), nil, nil, http.StatusNoContent, http.StatusNotModified)
	if err != nil {
		return false, err
	}
	return resp.StatusCode == http.StatusNoContent, resp.Body.Close()
}

// Objects asks for objects of an image, at most maxRequestIDs. Take gets each with its
// place in refs, in order, or an error that ends it: [ErrAbsent] for one that the peer
// does not have. The bytes have the length that the ref tells and are otherwise
// unchecked. Buffer gives room for n bytes and may be nil.
func (c *Client) Objects(ctx context.Context, image blockstore.ImageID, refs []blockstore.SmallRef, buffer func(n int) []byte, take func(i int, b []byte) error) error {
	body := make([]byte, 0, 32*len(refs))
	for i := range refs {
		body = append(body, refs[i].ID[:]...)
	}
	ctx, end := context.WithTimeout(ctx, streamTimeout)
	defer end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.do(ctx, http.MethodPost, "/v1/images/"+image.String()+"/objects", body, nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r := bufio.NewReaderSize(impatient(resp.Body, func() { cancel(errStalled) }), 64<<10)
	for i := range refs {
		n, err := readLength(r)
		switch {
		case err != nil:
			return fmt.Errorf("peer %s: %w", c.Conn.Peer.Name, err)
		case n == 0:
			return fmt.Errorf("peer %s: object %v: %w", c.Conn.Peer.Name, refs[i].ID, ErrAbsent)
		case n != int(refs[i].Length):
			return fmt.Errorf("peer %s: object %v of %d bytes, want %d: %w", c.Conn.Peer.Name, refs[i].ID, n, refs[i].Length, ErrProtocol)
		}
		var b []byte
		if buffer != nil {
			b = buffer(n)[:n]
		} else {
			b = make([]byte, n)
		}
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("peer %s: %w", c.Conn.Peer.Name, cut(err))
		}
		if err := take(i, b); err != nil {
			return err
		}
	}
	return nil
}

var errStalled = errors.New("the peer sends nothing any more")

// stalling reads from a peer and gives up on it if a read takes too long. Between reads
// it has time.
type stalling struct {
	r     io.Reader
	timer *time.Timer
}

func impatient(r io.Reader, giveUp func()) *stalling {
	s := &stalling{r: r, timer: time.AfterFunc(requestTimeout, giveUp)}
	s.timer.Stop()
	return s
}

func (s *stalling) Read(p []byte) (int, error) {
	s.timer.Reset(requestTimeout)
	defer s.timer.Stop()
	return s.r.Read(p)
}

// Commits asks for commits of an image, at most maxRequestIDs, and gives each to take
// after its digest was compared.
func (c *Client) Commits(ctx context.Context, image blockstore.ImageID, ids []blockstore.CommitID, take func(id blockstore.CommitID, raw []byte) error) error {
	body := make([]byte, 0, 32*len(ids))
	for i := range ids {
		body = append(body, ids[i][:]...)
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "/v1/images/"+image.String()+"/commits", body, nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for _, id := range ids {
		n, err := readLength(resp.Body)
		if err != nil {
			return fmt.Errorf("peer %s: %w", c.Conn.Peer.Name, err)
		}
		if n == 0 {
			return fmt.Errorf("peer %s: commit %v: %w", c.Conn.Peer.Name, id, ErrAbsent)
		}
		if n > blockstore.MaxCommit {
			return fmt.Errorf("peer %s: commit of %d bytes: %w", c.Conn.Peer.Name, n, ErrProtocol)
		}
		raw := make([]byte, n)
		if _, err := io.ReadFull(resp.Body, raw); err != nil {
			return fmt.Errorf("peer %s: %w", c.Conn.Peer.Name, cut(err))
		}
		if blockstore.CommitIDOf(raw) != id {
			return fmt.Errorf("peer %s: commit %v: digest differs: %w", c.Conn.Peer.Name, id, ErrProtocol)
		}
		if err := take(id, raw); err != nil {
			return err
		}
	}
	return nil
}

// Done tells the peer that nothing more of an image will be asked for now.
func (c *Client) Done(ctx context.Context, image blockstore.ImageID) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodDelete, "/v1/images/"+image.String()+"/pin", nil, nil, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// AddRecipients asks for an image to be sealed to further recipients, in age's notation, and
// gives the image as it is then, as [Client.Describe] does.
func (c *Client) AddRecipients(ctx context.Context, image blockstore.ImageID, recipients []string) (*Description, error) {
	body, err := encMode.Marshal(recipients)
	if err != nil {
		return nil, fmt.Errorf("transfer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "/v1/images/"+image.String()+"/recipients", body, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return c.description(resp)
}

// Offer asks the host that dialled what it wants pulled.
func (c *Client) Offer(ctx context.Context) (*Offer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/v1/offer", nil, nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	o := new(Offer)
	if err := decode(resp.Body, maxReport, o); err != nil {
		return nil, fmt.Errorf("peer %s: offer: %w", c.Conn.Peer.Name, err)
	}
	return o, checkVersion(o.Version)
}

// Report tells the host that dialled how its offer goes.
func (c *Client) Report(ctx context.Context, r Report) error {
	body, err := encMode.Marshal(r)
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "/v1/report", body, nil, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
